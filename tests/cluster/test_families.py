"""Families of every kind in the real engine: what two ranks train comes back from commit, export and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.train.checkpoint.commits import latest
from raydpo.train.checkpoint.state import SavedState
from raydpo.train.offline import export_commit
from tests.cluster.family_worker import LIVES, ROWS, WORLD, Life, run_rank
from tests.families import save_family
from tests.models import make_batch, random_rows

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two ranks have left what they found; they run once for all tests."""
    directory = tmp_path_factory.mktemp("families")
    for life in LIVES:
        save_family(life.family, directory / str(life) / "model")
    spawn(run_rank, args=(directory,), nprocs=WORLD)
    return directory


def of_rank(out: Path, life: Life, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / str(life) / f"life.rank{rank}.pt")
    return found


@pytest.mark.parametrize("life", LIVES, ids=str)
def test_a_resumed_policy_is_the_one_that_was_saved_and_goes_on_alike(out: Path, life: Life) -> None:
    for rank in range(WORLD):
        found = of_rank(out, life, rank)
        assert torch.equal(found["resumed"], found["after"])
        gone_on, resumed = found["next"]
        assert gone_on == resumed


@pytest.mark.parametrize("life", LIVES, ids=str)
def test_both_exports_are_the_policy(out: Path, life: Life, tmp_path: Path) -> None:
    commit = latest(out / str(life) / "checkpoints")
    assert commit is not None
    expected, batch = of_rank(out, life, 0)["after"], make_batch(random_rows(ROWS, seed=0))
    for path in (out / str(life) / "export", export_commit(commit, tmp_path / "export")):
        found = ScoringModel(load_model(str(path), dtype="float32")).token_logps(batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma4_text"])
def test_a_commit_holds_the_buffers_once_whatever_the_stage(family: str, out: Path) -> None:
    held = []
    for stage in (2, 3):
        commit = latest(out / f"{family}-zero{stage}" / "checkpoints")
        assert commit is not None
        held.append(SavedState(commit.path).untrained)
    assert held[0].keys() == held[1].keys() != set()
