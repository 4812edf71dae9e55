"""Laws of rewards that are models: a pool rates as one process does, and a death costs nothing but time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raydpo.config.schema import RunFile
from raydpo.data.tokens import TokenRow
from raydpo.model.load import load_model
from raydpo.model.rate import rate_rows
from raydpo.model.reward_model import load_reward_model, save_reward_model, start_reward_model
from raydpo.model.score import ScoringModel
from raydpo.model.tokenizer import load_tokenizer
from raydpo.reference.scoring import score_rows
from raydpo.reward.contract import Group
from raydpo.reward.names import ModelReward
from raydpo.runtime.pools import reward_models
from raydpo.runtime.pools.reward_models import Members, PooledReward, RewardActor
from raydpo.runtime.pools.rewards import reward_process
from raydpo.stages.values import RunValues
from raydpo.workspace.rewards import RewardSettings
from tests.cluster.own_ray import own_ray
from tests.models import random_rows, save_tiny_model, tiny_llama

pytestmark = pytest.mark.cluster

NUM_PROMPTS = 150  # three units


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with own_ray(cpus=2):
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a policy that was moved away from it, and two reward models."""
    root = tmp_path_factory.mktemp("rewards")
    for name in ("model", "policy"):
        save_tiny_model(root / name)
    vocabulary = len(load_tokenizer(str(root / "model")))
    policy = tiny_llama(vocab_size=vocabulary)
    with torch.no_grad():
        policy.model.norm.weight += 0.1
    policy.save_pretrained(root / "policy")
    for seed in (0, 1):
        lm = start_reward_model(str(root / "model"), dtype="float32", heads=1, seed=seed)
        state = {name: value.clone() for name, value in lm.state_dict().items()}
        tokenizer = load_tokenizer(str(root / "model"))
        save_reward_model(lm, tokenizer, root / f"reward-{seed}", state, identity="x", step=1)
    return root


@pytest.fixture
def settings(directory: Path, tmp_path: Path) -> RewardSettings:
    model = {"path": str(directory / "model"), "dtype": "float32"}
    run = {"name": "x", "output_dir": str(tmp_path), "model": model, "data": {"train": ["x"]}}
    return RunValues(RunFile.model_validate(run)).rewards()


def rows() -> list[TokenRow]:
    return random_rows(NUM_PROMPTS, seed=3, completions=3)


def groups() -> list[Group]:
    return [
        Group(number, "prompt", ["text"] * len(row.completions), row.prompt_ids, row.completions)
        for number, row in enumerate(rows(), start=1)
    ]


def by_one_process(path: Path) -> np.ndarray:
    model = load_reward_model(str(path), dtype="float32")
    return rate_rows(model, rows(), tokens_per_microbatch=512)[:, 0].numpy()


def test_reward_models_rate_in_the_pool_as_in_one_process_and_only_once(
    directory: Path, settings: RewardSettings
) -> None:
    one, two = (by_one_process(directory / f"reward-{seed}") for seed in (0, 1))
    with reward_process(f"ensemble:{directory}/reward-0,{directory}/reward-1", settings) as rewards:
        found = rewards.rate(groups())
        np.testing.assert_allclose(np.ravel(found), (one + two) / 2, atol=1e-5)
    files = {path: path.stat().st_mtime_ns for path in settings.layout.scores.rglob("*.parquet")}
    assert len(files) == 3, "a file a unit"
    with reward_process(f"ensemble:{directory}/reward-0,{directory}/reward-1", settings) as rewards:
        assert rewards.rate(groups()) == found
    assert {path: path.stat().st_mtime_ns for path in settings.layout.scores.rglob("*.parquet")} == files


def test_an_implicit_reward_is_beta_times_the_log_ratio(directory: Path, settings: RewardSettings) -> None:
    sums = []
    for name in ("policy", "model"):
        model = ScoringModel(load_model(str(directory / name), dtype="float32"))
        values, _ = score_rows(model, rows(), tokens_per_microbatch=512, device=torch.device("cpu"))
        sums.append(np.asarray([each.sum() for of_row in values for each in of_row]))
    with reward_process(f"implicit:{directory}/policy?beta=0.5&reference={directory}/model", settings) as rewards:
        found = np.ravel(rewards.rate(groups()))
    assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(found, 0.5 * (sums[0] - sums[1]), atol=1e-4)


class DiesOnce(RewardActor):
    """An actor that the system kills at the first unit that any of them gets."""

    def score(self, rows: list[TokenRow]) -> Members:  # type: ignore[override]
        """Rate, unless nobody has died yet."""
        died = Path(self._kind.paths[0]).parent / "died"  # type: ignore[union-attr]
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(rows)


def test_the_death_of_an_actor_changes_no_reward(
    directory: Path, settings: RewardSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_models, "RewardActor", DiesOnce)
    path = directory / "reward-0"
    pool = PooledReward("reward_model:x", ModelReward((str(path),)), settings.model, settings.rating)
    found = {rated.group.row: rated.rewards for batch in pool(groups()) for rated in batch}
    pool.close()
    assert (directory / "died").exists()
    np.testing.assert_allclose(np.ravel([found[group.row] for group in groups()]), by_one_process(path), atol=1e-5)
