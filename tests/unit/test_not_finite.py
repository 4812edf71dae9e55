"""Laws of numbers that are not finite: they are noticed, named, and never written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from raydpo.train.checkpoint.state import WEIGHT, SavedSlice
from raydpo.train.step import RankBatch, _not_finite

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [WEIGHT, "exp_avg_sq"])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_value_is_enough_wherever_it_stands(value: float, kind: str, place: int) -> None:
    values = {name: np.linspace(-3e38, 3e38, 1000, dtype=np.float32) for name in (WEIGHT, "exp_avg_sq")}
    saved = SavedSlice("w", (1000,), 0, values)
    assert saved.first_not_finite() is None, "large, and finite"
    values[kind][place] = value
    assert saved.first_not_finite() == f"{kind}/w"


def test_a_slice_of_no_length_is_finite() -> None:
    assert SavedSlice("w", (8,), 8, {WEIGHT: np.empty(0, np.float32)}).first_not_finite() is None


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_step_that_is_not_finite_names_figures_ranks_and_rows() -> None:
    rank_batch = RankBatch(6, [], totals={}, row_ids=[["aa", "bb"], ["cc", "dd"]])
    losses = [torch.tensor([0.5, math.nan]), torch.tensor([math.inf, 0.1])]
    said = str(_not_finite(rank_batch, losses, {"loss": math.nan, "grad_norm": math.inf}))
    assert said.startswith("step 7 has figures that are not finite: loss nan, grad_norm inf; ")
    assert "rows whose loss is not finite: rank 0: bb, cc." in said
    assert "the last commit stands" in said
    said = str(_not_finite(rank_batch, [torch.zeros(2)] * 2, {"rewards/chosen": -math.inf}))
    assert "rewards/chosen -inf; the loss of every row is finite." in said
