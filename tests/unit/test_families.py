"""Laws of every architecture: log-probs and gradients are those of the model itself in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, PreTrainedModel

from raydpo.config.errors import UserError
from raydpo.data.tokens import TokenRow
from raydpo.model.layout import is_packed, layout_name
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.objective.objectives import dpo
from tests.families import FAMILIES, GROUPED, PACKED, save_family
from tests.models import exact_logps, make_batch, make_row, random_rows

pytestmark = pytest.mark.unit

SHARED_PREFIX = [make_row([3, 4, 5, 6], [7, 8, 9, 10], [7, 8, 9, 11]), make_row([3, 4, 5, 6], [7, 8], [7, 8, 9])]
ONE_TOKEN = [make_row([5], [7], [8]), make_row([5], [9, 10, 11], [12]), make_row([5, 6, 7], [13], [14, 15])]
ROWS = {
    "ragged": random_rows(6, seed=1),
    "one token": ONE_TOKEN,
    "shared prefix": SHARED_PREFIX,
    "four completions": random_rows(3, seed=2, completions=4),
}
LOSS = dpo(beta=0.1).loss


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return request.param, save_family(request.param, tmp_path_factory.mktemp(request.param))


def _twin(path: str) -> PreTrainedModel:
    """The model in float64, with transformers' own attention."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager").eval()


def _oracle(twin: PreTrainedModel, rows: list[TokenRow]) -> list[Tensor]:
    return [
        logps.double().gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        for row in rows
        for logps, completion in zip(exact_logps(twin, row), row.completions, strict=True)
    ]


def test_a_family_is_packed_or_padded_as_it_allows_and_says_which(family: tuple[str, str]) -> None:
    name, path = family
    lm = load_model(path, dtype="float32")
    assert is_packed(lm) == (name in PACKED)
    assert layout_name(lm).startswith("packed rows" if name in PACKED else "padded sequences")


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_token_logps_are_the_models_own(family: tuple[str, str], rows: list[TokenRow]) -> None:
    model = ScoringModel(load_model(family[1], dtype="float32"))
    with torch.no_grad():
        expected = torch.cat(_oracle(_twin(family[1]), rows))
    torch.testing.assert_close(model.token_logps(make_batch(rows)).double(), expected, rtol=0, atol=1e-5)


def test_gradients_are_the_models_own(family: tuple[str, str]) -> None:
    rows = ROWS["ragged"]
    ref_logps = torch.full((len(rows), 2), -50.0)
    lm, twin = load_model(family[1], dtype="float32"), _twin(family[1])
    total, *_ = ScoringModel(lm)(make_batch(rows, ref_logps), LOSS)
    total.backward()
    sums = torch.stack([each.sum() for each in _oracle(twin, rows)]).view(len(rows), 2)
    LOSS(sums, ref_logps.double()).sum().backward()
    expected = dict(twin.named_parameters())
    scale = max(p.grad.norm() for p in expected.values())
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        gap = (parameter.grad - expected[name].grad).norm()
        assert gap <= 1e-4 * expected[name].grad.norm() + 1e-8 * scale, name


def test_bfloat16_models_pass_their_trial_too(family: tuple[str, str]) -> None:
    assert is_packed(load_model(family[1], dtype="bfloat16")) == (family[0] in PACKED)


def test_a_logit_scale_that_raydpo_does_not_know_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CohereConfig(**GROUPED, logit_scale=0.25)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does something to its logits"):
        load_model(str(tmp_path), dtype="float32")
