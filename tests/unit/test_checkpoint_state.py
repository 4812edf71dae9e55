"""The training state in files: whoever wrote them, any stretch is read back as it was."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.train.state import WEIGHT, Buffer, SavedState, Stretch, largest_differences, write_state

pytestmark = pytest.mark.unit

SHAPE = (3, 7)
WHOLE = {WEIGHT: np.arange(21, dtype=np.float32), "exp_avg": -np.arange(21, dtype=np.float32)}
CUTS = st.lists(st.integers(0, 21), max_size=5).map(lambda cuts: sorted({0, *cuts, 21}))


def write(directory: Path, cuts: list[int], whole: dict[str, np.ndarray] = WHOLE) -> SavedState:
    """The parameter "w" in as many files as there are pieces."""
    directory.mkdir()
    for rank, (start, stop) in enumerate(pairwise(cuts)):
        stretch = Stretch("w", SHAPE, start, {kind: values[start:stop] for kind, values in whole.items()})
        write_state(directory / f"rank-{rank:05d}.safetensors", [stretch], {"step": 4.0})
    return SavedState(directory)


@given(CUTS, CUTS)
def test_any_stretch_is_read_back_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, written: list[int], wanted: list[int]
) -> None:
    saved = write(tmp_path_factory.mktemp("state") / "step", written)
    assert (saved.shapes, saved.scalars, saved.kinds) == ({"w": SHAPE}, {"step": 4.0}, sorted(WHOLE))
    for kind, values in WHOLE.items():
        for start, stop in pairwise(wanted):
            assert np.array_equal(saved.read(kind, "w", start, stop), values[start:stop])
        assert np.array_equal(saved.whole(kind, "w"), values.reshape(SHAPE))


def test_a_stretch_that_no_file_holds_is_an_error(tmp_path: Path) -> None:
    saved = write(tmp_path / "step", [0, 9])
    with pytest.raises(RuntimeError, match="lacks 3 of the elements 7 to 12 of weight of w"):
        saved.read(WEIGHT, "w", 7, 12)


def test_a_rank_without_any_stretch_writes_a_file_that_reads_as_nothing(tmp_path: Path) -> None:
    saved = write(tmp_path / "step", [0, 21])
    write_state(tmp_path / "step/rank-00001.safetensors", [], {})
    with_empty = SavedState(tmp_path / "step")
    assert (with_empty.shapes, with_empty.kinds) == (saved.shapes, saved.kinds)


def test_differences_are_the_largest_of_each_tensor(tmp_path: Path) -> None:
    moved = {WEIGHT: WHOLE[WEIGHT] + np.eye(21, dtype=np.float32)[5] / 4, "exp_avg": WHOLE["exp_avg"]}
    first, second = write(tmp_path / "a", [0, 21]), write(tmp_path / "b", [0, 5, 21], moved)
    assert largest_differences(first, second) == {"weight/w": 0.25, "exp_avg/w": 0.0}
    without = write(tmp_path / "c", [0, 21], {WEIGHT: WHOLE[WEIGHT]})
    assert largest_differences(first, without) == {"weight/w": 0.0, "exp_avg/w": np.inf}


def test_buffers_come_back_as_they_were_and_count_as_differences(tmp_path: Path) -> None:
    buffers = [Buffer("bias", "bfloat16", np.float32([0.5, -1.0])), Buffer("table", "int64", np.arange(3))]
    moved = [Buffer("bias", "bfloat16", np.float32([0.5, -1.5])), buffers[1]]
    first, second = (with_buffers(tmp_path / name, each) for name, each in (("a", buffers), ("b", moved)))
    for buffer in buffers:
        found = first.buffers[buffer.name]
        assert (found.dtype, found.values.dtype) == (buffer.dtype, buffer.values.dtype)
        assert np.array_equal(found.values, buffer.values)
    assert largest_differences(first, second) == {"weight/w": 0.0, "buffer/bias": 0.5, "buffer/table": 0.0}
    without = with_buffers(tmp_path / "c", [])
    assert largest_differences(first, without)["buffer/bias"] == np.inf


def with_buffers(directory: Path, buffers: list[Buffer]) -> SavedState:
    """The parameter "w" whole in the file of rank 0, beside these buffers."""
    write_state(directory / "rank-00000.safetensors", [Stretch("w", (2,), 0, {WEIGHT: np.ones(2)})], {}, buffers)
    return SavedState(directory)
