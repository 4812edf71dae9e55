"""Two passes over the model have the gradient of one pass over the whole global batch, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydpo.model import attention
from raydpo.model.batch import Batch
from raydpo.model.score import ScoringModel
from raydpo.objective.contract import LABEL, MISMATCHED
from raydpo.objective.coupling import SLOPE, Coupled, Part, couple, linear
from raydpo.objective.registry import make_objective, resolve
from tests.models import make_batch, random_rows, tiny_llama

pytestmark = pytest.mark.unit

ROWS = random_rows(6, seed=3, completions=3)
REFERENCE = torch.linspace(-70, -20, 18)[torch.randperm(18, generator=torch.Generator().manual_seed(0))].view(6, 3)
SPLITS = [[[0, 1, 2, 3, 4, 5]], [[5, 0], [1, 3, 4], [2]], [[4], [3], [2], [1], [0], [5]]]
NAMES = ["kto", "bco", "aot", "aot_unpaired", "bco_pair", "aot+sft"]


def batch_of(members: list[int]) -> Batch:
    """Each row a wanted completion, another, and one of another prompt."""
    labels = torch.tensor([True, False, False]).repeat(len(members))
    others = torch.tensor([False, False, True]).repeat(len(members))
    columns = {LABEL: labels, MISMATCHED: others}
    return make_batch([ROWS[i] for i in members], REFERENCE[members], **columns)


def scoring_model() -> ScoringModel:
    lm = tiny_llama(dtype=torch.float64)
    lm.set_attn_implementation(attention.NAME)
    return ScoringModel(lm)


def gradients(model: ScoringModel) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def in_two_passes(model: ScoringModel, name: str, split: list[list[int]]) -> list[Coupled]:
    batches = [batch_of(members) for members in split]
    scored = [batch.scored(model.token_logps(batch)) for batch in batches]
    names = [[ROWS[i].row_id.hex() for i in members] for members in split]
    parts = [Part(rows, of_rows) for rows, of_rows in zip(scored, names, strict=True)]
    coupled = couple(make_objective(resolve(name.split("+"))), parts)
    for batch, of_part in zip(batches, coupled, strict=True):
        total, *_ = model(replace(batch, token_columns={SLOPE: of_part.slopes}), linear)
        total.backward()
    return coupled


@pytest.mark.parametrize("split", SPLITS, ids=["whole", "uneven", "single rows"])
@pytest.mark.parametrize("name", NAMES)
def test_two_passes_have_the_gradient_of_one_over_the_whole_batch(name: str, split: list[list[int]]) -> None:
    alone = scoring_model()
    batch = batch_of(SPLITS[0][0])
    losses = make_objective(resolve(name.split("+"))).loss(batch.scored(alone(batch)))
    losses.sum().backward()

    model = scoring_model()
    coupled = in_two_passes(model, name, split)
    assert float(sum(of_part.losses.sum() for of_part in coupled)) == pytest.approx(float(losses.detach().sum()))
    expected = gradients(alone)
    assert expected
    for found, exact in zip(gradients(model), expected, strict=True):
        assert float((found - exact).norm() / exact.norm()) <= 1e-12
