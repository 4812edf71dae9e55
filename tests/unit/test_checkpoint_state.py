"""The training state in files: whoever wrote them, any slice is read back as it was."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.train.checkpoint.state import WEIGHT, SavedSlice, SavedState, Untrained, largest_differences, write_state

pytestmark = pytest.mark.unit

SHAPE = (3, 7)
WHOLE = {WEIGHT: np.arange(21, dtype=np.float32), "exp_avg": -np.arange(21, dtype=np.float32)}
CUTS = st.lists(st.integers(0, 21), max_size=5).map(lambda cuts: sorted({0, *cuts, 21}))


def write(directory: Path, cuts: list[int], whole: dict[str, np.ndarray] = WHOLE) -> SavedState:
    """The parameter "w" in as many files as there are pieces."""
    directory.mkdir()
    for rank, (start, stop) in enumerate(pairwise(cuts)):
        saved = SavedSlice("w", SHAPE, start, {kind: values[start:stop] for kind, values in whole.items()})
        write_state(directory / f"rank-{rank:05d}.safetensors", [saved], {"step": 4.0})
    return SavedState(directory)


@given(CUTS, CUTS)
def test_any_slice_is_read_back_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, written: list[int], wanted: list[int]
) -> None:
    saved = write(tmp_path_factory.mktemp("state") / "step", written)
    assert (saved.shapes, saved.scalars, saved.kinds) == ({"w": SHAPE}, {"step": 4.0}, sorted(WHOLE))
    for kind, values in WHOLE.items():
        for start, stop in pairwise(wanted):
            assert np.array_equal(saved.read(kind, "w", start, stop), values[start:stop])
        assert np.array_equal(saved.whole(kind, "w"), values.reshape(SHAPE))


def test_a_slice_that_no_file_holds_is_an_error(tmp_path: Path) -> None:
    saved = write(tmp_path / "step", [0, 9])
    with pytest.raises(RuntimeError, match="lacks 3 of the elements 7 to 12 of weight of w"):
        saved.read(WEIGHT, "w", 7, 12)


def test_a_rank_without_any_slice_writes_a_file_that_reads_as_nothing(tmp_path: Path) -> None:
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


def test_what_is_not_trained_comes_back_as_it_was_and_counts_as_differences(tmp_path: Path) -> None:
    tensors = [Untrained("bias", "bfloat16", np.float32([0.5, -1.0])), Untrained("table", "int64", np.arange(3))]
    moved = [Untrained("bias", "bfloat16", np.float32([0.5, -1.5])), tensors[1]]
    first, second = (beside(tmp_path / name, each) for name, each in (("a", tensors), ("b", moved)))
    for tensor in tensors:
        found = first.untrained[tensor.name]
        assert (found.dtype, found.values.dtype) == (tensor.dtype, tensor.values.dtype)
        assert np.array_equal(found.values, tensor.values)
    assert largest_differences(first, second) == {"weight/w": 0.0, "untrained/bias": 0.5, "untrained/table": 0.0}
    without = beside(tmp_path / "c", [])
    assert largest_differences(first, without)["untrained/bias"] == np.inf


def beside(directory: Path, tensors: list[Untrained]) -> SavedState:
    """The parameter "w" whole in the file of rank 0, beside these."""
    write_state(directory / "rank-00000.safetensors", [SavedSlice("w", (2,), 0, {WEIGHT: np.ones(2)})], {}, tensors)
    return SavedState(directory)
