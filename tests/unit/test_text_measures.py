"""Measures of texts, against values worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.evaluate.text import distinct, self_bleu

pytestmark = pytest.mark.unit

TEXT = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8).map(" ".join)


def test_distinct_counts_different_words_of_all_texts() -> None:
    texts = ["the film the", "The plot"]
    assert distinct(texts, 1) == 3 / 5
    assert distinct(texts, 2) == 1.0
    assert distinct(["", ""], 1) == 0


def test_bleu_by_hand() -> None:
    # Of "a b c d e": 5/5 words, 3/4 pairs, 2/3 triples, 1/2 fours stand in "a b c d x e"; of equal length but for one.
    first, second = self_bleu(["a b c d e", "a b c d x e"])
    assert first == pytest.approx(math.exp(1 - 6 / 5) * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert second == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


@given(st.lists(TEXT, min_size=2, max_size=6))
def test_measures_are_shares(texts: list[str]) -> None:
    for value in [*self_bleu(texts), distinct(texts, 1), distinct(texts, 2)]:
        assert 0 <= value <= 1


def test_one_text_has_no_others() -> None:
    with pytest.raises(ValueError, match="1 texts have no others"):
        self_bleu(["a"])
