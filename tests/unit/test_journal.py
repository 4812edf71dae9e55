"""Laws of journals: a line counts when it is whole, and a killed writer costs at most the line it was at."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.errors import UserError
from raydpo.storage.journal import Journal

pytestmark = pytest.mark.unit


def test_what_was_added_is_there_for_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "below" / "journal.jsonl"
    journal = Journal(path)
    journal.add({"text": "one\n{é}"})
    journal.add({"text": "two"})
    assert Journal(path).entries == journal.entries == [{"text": "one\n{é}"}, {"text": "two"}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_is_dropped_and_nothing_is_glued_to_it(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add({"k": 1})
    Journal(path).add({"kä": 22})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    Journal(path).add({"k": 3})
    assert Journal(path).entries == [{"k": 1}, {"k": 3}]


@pytest.mark.parametrize("line", ["{", "[1]", "3"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"k": 1}}\n{line}\n{{"k": 2}}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl line 2 is damaged"):
        Journal(path)
