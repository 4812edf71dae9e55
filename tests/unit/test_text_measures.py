"""Measures of texts, against values worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.evaluate.text import against_reference, distinct, exact_match, rouge_l, rouge_n, rouge_words, self_bleu

pytestmark = pytest.mark.unit

TEXT = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8).map(" ".join)


def test_distinct_counts_different_words_of_all_texts() -> None:
    texts = ["the film the", "The plot"]
    assert distinct(texts, 1) == 3 / 5
    assert distinct(texts, 2) == 1.0
    assert distinct(["", ""], 1) == 0


def test_rouge_is_that_of_the_paper() -> None:
    # Lin 2004, section 3.1: "police killed the gunman" against "police kill the gunman" and "the gunman kill police".
    reference = rouge_words("Police killed the gunman.")
    near, far = rouge_words("police kill the gunman"), rouge_words("the gunman kill police")
    assert (rouge_l(near, reference), rouge_l(far, reference)) == (3 / 4, 2 / 4)
    assert (rouge_n(near, reference, 2), rouge_n(far, reference, 2)) == (1 / 3, 1 / 3)
    assert rouge_n(["the", "the"], ["the"], 1) == pytest.approx(2 / 3)


def test_words_of_rouge_are_those_of_its_package() -> None:
    # rouge_score 0.1.2 makes these of it, but for what is not English: it has no letters beyond a to z.
    assert rouge_words("The film's plot -- thin_ice, 3.5/10!") == [
        "the",
        "film",
        "s",
        "plot",
        "thin",
        "ice",
        "3",
        "5",
        "10",
    ]
    assert rouge_words("Über das") == ["über", "das"]


def test_bleu_by_hand() -> None:
    # Of "a b c d e": 5/5 words, 3/4 pairs, 2/3 triples, 1/2 fours stand in "a b c d x e"; of equal length but for one.
    first, second = self_bleu(["a b c d e", "a b c d x e"])
    assert first == pytest.approx(math.exp(1 - 6 / 5) * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert second == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


@given(TEXT)
def test_a_text_is_its_own_best_match(text: str) -> None:
    of_words = 1.0 if text else 0.0
    found = against_reference(text, f" {text.upper()} ")
    assert found == {"rouge_1": of_words, "rouge_2": float(" " in text), "rouge_l": of_words, "exact_match": 1.0}
    assert not exact_match(text, f"{text} a")


@given(st.lists(TEXT, min_size=2, max_size=6))
def test_measures_are_shares(texts: list[str]) -> None:
    for value in [*self_bleu(texts), distinct(texts, 1), *against_reference(*texts[:2]).values()]:
        assert 0 <= value <= 1


def test_one_text_has_no_others() -> None:
    with pytest.raises(ValueError, match="1 texts have no others"):
        self_bleu(["a"])
