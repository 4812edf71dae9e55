"""Laws of processes that sampling needs: one that is lost ends the stage in plain words, one that is slow is told."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray

from raydpo.config.errors import UserError
from raydpo.config.schema import Decoding, Sampler
from raydpo.data.prompts import Prompt
from raydpo.runtime import rewards
from raydpo.runtime.rewards import Group, rate_each, reward_process
from raydpo.runtime.sampling import Samplers
from tests.cluster.own_ray import own_ray

pytestmark = pytest.mark.cluster

OPTIONS = {"num_cpus": 0, "max_restarts": 1, "max_task_retries": 1}  # as the product's
PROMPTS = [Prompt("a", [0, 1], "p row 1")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with own_ray(cpus=2):
        yield


class Dying:
    """An engine that the system kills, every time."""

    def sample(self, *_: object) -> None:
        os._exit(9)


class Refusing:
    """An engine that does not start."""

    def __init__(self) -> None:
        raise ValueError("No available memory for the cache blocks")

    def sample(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Dying, "was lost, and again after a restart"),
        (Refusing, "could not start: ValueError: No available memory for the cache blocks"),
    ],
)
def test_a_sampler_that_is_lost_says_why_and_what_to_lower(engine: type, says: str) -> None:
    actor = ray.remote(**OPTIONS)(engine).remote()
    samplers = Samplers([actor], Sampler(kv_cache_gib=7, max_num_seqs=33))
    with pytest.raises(UserError, match=says) as raised:
        list(samplers.sample("/m", PROMPTS, Decoding(), n=1, seed=0))
    for words in ("sampler.kv_cache_gib=7", "sampler.max_num_seqs=33", actor._actor_id.hex()):
        assert words in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_a_reward_function_that_takes_its_process_down_is_named() -> None:
    with pytest.raises(UserError, match=r"'tests.cluster.rewards:dies' took its process down at prompts 1 to 2"):
        rate_each("tests.cluster.rewards:dies", ["a", "b"], ["c", "d"])


def test_a_wait_for_a_reward_function_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewards, "SAY_EVERY_S", 1.0)
    with reward_process("tests.cluster.rewards:takes_long") as process:
        assert process.rate([Group(3, "a", ["b", "c"])]) == [[1.0, 1.0]]
    assert "scorer 'tests.cluster.rewards:takes_long' has been at prompt 3 for" in capfd.readouterr().err
