"""Checkpoints between real ranks: bitwise where nothing changed, within rounding where ranks and ZeRO stage did."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from raydpo.cli import main
from raydpo.model.reward_model import load_reward_model, own_rewards
from raydpo.train.checkpoint.commits import latest
from raydpo.train.checkpoint.state import WEIGHT, SavedState
from raydpo.train.mark import read_mark
from tests.cluster.elastic import STEPS, Problem, Route, Stage, travel
from tests.cluster.saving import WORLD, run_rank
from tests.helpers import tiny_tokenizer
from tests.models import make_batch, random_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # nine processes import torch and DeepSpeed first

RELATIVE = 1e-5
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
REWARD = Problem("adamw", heads=3)
RMSPROP, ADAMW, UNTIED = Problem(), Problem("adamw"), Problem("adamw", tied=False)
STAYING = [
    *(Route(((2, stage),) * 2, RMSPROP) for stage in STAGES),
    *(Route(((2, stage),) * 2, Problem("adamw", dtype="bfloat16")) for stage in STAGES[1:]),
    *(Route(((2, stage),) * 2, ADAMW, offload=True) for stage in STAGES[2:]),
    Route(((2, 3),) * 2, UNTIED),
    *(Route(((2, stage),) * 2, REWARD) for stage in STAGES),
    Route(((2, 2),) * 2, Problem("adamw", dtype="bfloat16", heads=1)),
]
CHANGING = [
    Route(((2, 1), (1, 2), (4, 3)), RMSPROP),
    Route(((2, 3), (1, 2), (4, 1)), RMSPROP),
    Route(((2, 0), (1, 3), (4, 2)), RMSPROP),
    Route(((2, 1), (1, 3), (4, 0)), ADAMW),
    Route(((2, 2), (1, 0), (4, 3)), ADAMW),
    Route(((2, 3), (1, 1), (4, 2)), UNTIED),
    Route(((2, 2), (1, 3), (4, 1)), ADAMW, offload=True),
]


def undisturbed(route: Route) -> Route:
    """The same run in one go: by the first leg's group, or by two ranks under ZeRO-2 where the group changes."""
    same = len(set(route.legs)) == 1
    return Route((route.legs[0] if same else (2, 2),), route.problem, route.offload and same)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all routes have been travelled; every group of ranks starts once for all of them."""
    directory = tmp_path_factory.mktemp("routes")
    routes = [*STAYING, *CHANGING]
    travel([*routes, *dict.fromkeys(map(undisturbed, routes))], directory)
    return directory


def metrics_of(out: Path, route: Route) -> list[dict[str, Any]]:
    """Every step as rank 0 saw it, with the row ids of all ranks."""
    steps: list[dict[str, Any]] = []
    for leg, (world, _) in enumerate(route.legs):
        ranks = [torch.load(out / str(route) / f"leg{leg}.rank{rank}.pt") for rank in range(world)]
        for seen in zip(*ranks, strict=True):
            steps.append({**seen[0], "rows": sorted(row for each in seen for row in each["rows"])})
    return steps


def state_of(out: Path, route: Route) -> SavedState:
    last = latest(out / str(route) / "checkpoints")
    assert last is not None
    assert last.cursor.step == STEPS
    return SavedState(last.path)


@pytest.mark.parametrize("route", STAYING, ids=str)
def test_a_run_resumed_by_as_many_ranks_goes_on_bitwise(out: Path, route: Route) -> None:
    assert metrics_of(out, route) == metrics_of(out, undisturbed(route))
    found, expected = state_of(out, route), state_of(out, undisturbed(route))
    assert (found.kinds, found.scalars, found.shapes) == (expected.kinds, expected.scalars, expected.shapes)
    for kind, name in product(expected.kinds, expected.shapes):
        assert np.array_equal(found.whole(kind, name), expected.whole(kind, name))


@pytest.mark.parametrize("route", CHANGING, ids=str)
def test_a_run_resumed_by_other_ranks_under_another_stage_goes_on_within_rounding(out: Path, route: Route) -> None:
    found, expected = metrics_of(out, route), metrics_of(out, undisturbed(route))
    assert [step["rows"] for step in found] == [step["rows"] for step in expected]
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], rel=RELATIVE)


@pytest.mark.parametrize("route", CHANGING, ids=str)
def test_weights_and_optimizer_state_do_not_depend_on_the_ranks_that_trained_them(out: Path, route: Route) -> None:
    found, expected = state_of(out, route), state_of(out, undisturbed(route))
    assert found.scalars == expected.scalars == {"step": STEPS}
    assert found.shapes == expected.shapes
    for name in expected.shapes:
        weight, other = expected.whole(WEIGHT, name), found.whole(WEIGHT, name)
        assert np.linalg.norm(other - weight) <= RELATIVE * np.linalg.norm(weight)
    moments = {"rmsprop": ["square_avg"], "adamw": ["exp_avg", "exp_avg_sq"]}[route.problem.optimizer]
    assert found.kinds == expected.kinds == sorted([WEIGHT, *moments])
    for kind, name in product(moments, expected.shapes):
        value, other = expected.whole(kind, name), found.whole(kind, name)
        assert np.linalg.norm(other - value) <= 1e-3 * np.linalg.norm(value)


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw of its saves."""
    directory = tmp_path_factory.mktemp("saving")
    spawn(run_rank, args=(directory,), nprocs=WORLD)
    return [torch.load(directory / f"saw.rank{rank}.pt") for rank in range(WORLD)]


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(saw: list[dict[str, Any]]) -> None:
    for seen in saw:
        assert seen["when the block ends"] == 1
        assert seen["while the disk is slow"] == 1
        assert seen["when the next save begins"] == 2
        assert seen["trained on"]
        assert seen["as it was"]


@pytest.mark.parametrize(("what", "reason"), [("full", "No space left"), ("read-only", "Read-only file system")])
def test_storage_that_fails_one_rank_is_the_same_refusal_on_all_and_leaves_the_last_commit(
    what: str, reason: str, saw: list[dict[str, Any]]
) -> None:
    assert saw[0][what] == saw[1][what]
    said, newest = saw[0][what]
    assert newest == 2
    assert re.search(rf"/checkpoints/step-000004.* cannot be written: .*{reason}", said)
    assert re.search(r"needs [\d,]+ bytes, and [\d,]+ are free", said)


@pytest.mark.parametrize(
    ("stage", "weight"),
    [(0, "model.embed_tokens.weight"), (2, "model.norm.weight")],  # without sharding, the step was applied to all
)
def test_what_is_not_finite_ends_training_on_all_ranks_and_leaves_the_last_commit(
    stage: int, weight: str, saw: list[dict[str, Any]]
) -> None:
    first, second = (seen["not a number"][stage] for seen in saw)
    for what in ("step", "commit", "newest", "left"):
        assert first[what] == second[what]
    assert re.match(r"step 2 has figures that are not finite: loss nan, .*grad_norm (nan|inf)", first["step"])
    assert re.search(r"rows whose loss is not finite: rank 1: ([0-9a-f]{32}(, |\.)){4} ", first["step"] + " ")
    assert re.match(
        r"step 2 has left numbers that are not finite in weight/\S+\. Nothing of this step", first["commit"]
    )
    assert first["export"].startswith(f"step 2 has left numbers that are not finite in {weight}. ")
    assert first["left"] == []
    assert first["newest"] == 1


def test_the_export_of_a_commit_is_its_model_in_plain_transformers(out: Path, tmp_path: Path) -> None:
    route = CHANGING[0]
    assert main(["checkpoints", "export", str(out / str(route) / "checkpoints"), str(tmp_path / "model")]) == 0
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    state = state_of(out, route)
    assert {name for name, _ in lm.named_parameters()} == state.shapes.keys()
    assert all(np.array_equal(p.detach(), state.whole(WEIGHT, name)) for name, p in lm.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tiny_tokenizer().get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    mark = read_mark(tmp_path / "model")
    assert mark
    assert (mark.identity, mark.step) == ("run", STEPS)


def test_the_export_of_a_reward_models_commit_gives_the_same_rewards_in_plain_transformers(
    out: Path, tmp_path: Path
) -> None:
    route, export = Route(((2, 3),) * 2, REWARD), tmp_path / "model"
    assert main(["checkpoints", "export", str(out / str(route) / "checkpoints"), str(export)]) == 0
    state = state_of(out, route)
    lm = AutoModelForSequenceClassification.from_pretrained(export)
    assert {name for name, _ in lm.named_parameters()} == state.shapes.keys()
    heads = state.whole(WEIGHT, "score.weight")
    assert len(heads) == REWARD.heads
    np.testing.assert_allclose(lm.score.weight.detach(), heads.mean(axis=0, keepdims=True), rtol=1e-6, atol=1e-7)
    model = load_reward_model(str(export), dtype="float32")
    assert np.array_equal(model.score.weight.detach(), heads)
    batch = make_batch(random_rows(4, seed=7))
    torch.testing.assert_close(own_rewards(export, batch, dtype="float32"), model.rewards(batch), rtol=1e-5, atol=1e-5)
