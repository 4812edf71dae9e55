"""Laws of the policy scorers: what a pool finds is what one process finds, however rows are shared out among actors."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from raydpo.config.schema import Model
from raydpo.model import load
from raydpo.model.score import ScoringModel
from raydpo.reference.scoring import score_rows
from raydpo.runtime.pools import policies
from raydpo.runtime.pools.policies import PolicyScorers
from tests.local_scorers import local_scorers
from tests.models import exact, exact_logps, random_rows, tiny_llama

pytestmark = pytest.mark.unit

ROWS = random_rows(7, seed=3, completions=1)
BOUND = 48


def scorers_of(actors: int, form: Model) -> PolicyScorers:
    return local_scorers(actors, form, BOUND)


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """A policy that has moved, and its reference."""
    ref = tiny_llama()
    ref.save_pretrained(tmp_path / "ref")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in ref.parameters():
            weights += 0.05 * torch.randn(weights.shape, generator=generator)
    ref.save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy"), str(tmp_path / "ref")


def form(models: tuple[str, str], dtype: str = "float32") -> Model:
    return Model.model_validate({"path": models[1], "dtype": dtype})


@pytest.mark.parametrize("actors", [1, 3, 9])
def test_the_kl_is_the_exact_one_whatever_the_actors(models: tuple[str, str], actors: int) -> None:
    found = scorers_of(actors, form(models)).kl(*models, ROWS)
    policy, ref = (exact(LlamaForCausalLM.from_pretrained(path)) for path in models)
    with torch.no_grad():
        both = [(exact_logps(policy, row)[0], exact_logps(ref, row)[0]) for row in ROWS]
    expected = [float((p.exp() * (p - q)).sum()) for p, q in both]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probs_are_those_of_training_whatever_the_units(
    models: tuple[str, str], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "ROWS_PER_UNIT", 2)
    rows = random_rows(7, seed=3)
    found = scorers_of(2, form(models, dtype)).logps(models[0], rows)
    policy = ScoringModel(load.load_model(models[0], dtype=dtype))
    # The rows of a unit together, since the size of a pack decides how bfloat16 rounds.
    expected = []
    for first in range(0, len(rows), 2):
        expected += score_rows(
            policy, rows[first : first + 2], tokens_per_microbatch=BOUND, device=torch.device("cpu")
        )[0]
    assert [[each.tolist() for each in row] for row in found] == [[each.tolist() for each in row] for row in expected]


def test_an_actor_holds_one_model_and_loads_the_less_the_better(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    loaded: list[str] = []
    really = load.load_model

    def counting(path: str, **how: Any) -> Any:
        gc.collect()
        assert [lm for each in alive if (lm := each())] == [], "one is in memory while another is loaded"
        lm = really(path, **how)
        alive.append(weakref.ref(lm))
        loaded.append(Path(path).name)
        return lm

    monkeypatch.setattr(load, "load_model", counting)
    scorers = scorers_of(1, form(models))
    scorers.logps(models[0], ROWS)
    scorers.kl(*models, ROWS)
    assert loaded == ["policy", "ref"]
    scorers.kl(*models, ROWS)
    assert loaded == ["policy", "ref", "policy"], "the reference was there"


def test_bfloat16_weights_are_compared_without_its_rounding(models: tuple[str, str]) -> None:
    unmoved = scorers_of(2, form(models, "bfloat16")).kl(models[1], models[1], ROWS)
    assert unmoved.tolist() == [0.0] * len(ROWS)


def test_nothing_to_score_is_nothing_found(models: tuple[str, str]) -> None:
    scorers = scorers_of(2, form(models))
    assert scorers.logps(models[0], []) == []
    assert scorers.kl(*models, []).tolist() == []
