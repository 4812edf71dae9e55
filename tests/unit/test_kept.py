"""Laws of kept pieces: they stay for the same work, go for another, and other files are nobody's to remove."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from raydpo.errors import UserError
from raydpo.storage.kept import Kept

pytestmark = pytest.mark.unit


def test_pieces_are_there_for_the_same_work(tmp_path: Path) -> None:
    Kept(tmp_path / "k", {"seed": 1}).write(7, [1, "é"])
    again = Kept(tmp_path / "k", {"seed": 1})
    assert again.read(7) == [1, "é"]
    assert again.read(8) is None


def test_pieces_of_other_work_are_gone_and_other_files_stay(tmp_path: Path) -> None:
    Kept(tmp_path, {"seed": 1}).write(0, "old")
    (tmp_path / "mine.json").write_text("{}")
    Kept(tmp_path, {"seed": 2}).write(1, "new")
    assert Kept(tmp_path, {"seed": 2}).read(0) is None
    assert Kept(tmp_path, {"seed": 2}).read(1) == "new"
    assert (tmp_path / "mine.json").exists()


def test_pieces_whose_origin_is_not_written_down_do_not_count(tmp_path: Path) -> None:
    Kept(tmp_path, {"seed": 1}).write(0, "old")
    (tmp_path / "made_from.json").unlink()
    assert Kept(tmp_path, {"seed": 1}).read(0) is None


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.write(0, math.nan)
    assert kept.read(0) is None


def test_a_damaged_piece_is_named(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {})
    (tmp_path / "000003.json").write_text("[1,")
    with pytest.raises(UserError, match=r"000003.json is damaged"):
        kept.read(3)
