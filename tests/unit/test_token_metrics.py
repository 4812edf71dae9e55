"""Laws of the metrics of tokens: they are TRL's, however the work is cut, and asking for them changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from raydpo.data.tokens import TokenRow
from raydpo.model import head
from raydpo.model.batch import Batch
from raydpo.model.head import CompletionHead
from raydpo.model.score import ScoringModel
from raydpo.objective.contract import RowLoss, TokenMetric
from raydpo.objective.likelihood import fine_tuning
from raydpo.objective.registry import make_objective, resolve
from raydpo.objective.token_metrics import observe, token_means
from raydpo.train.step import RankBatch, train_step
from tests.models import VOCAB_SIZE, make_batch, random_rows, tiny_llama

pytestmark = pytest.mark.unit

HIDDEN_SIZE = 16
EVERY: tuple[TokenMetric, ...] = ("entropy", "mean_token_accuracy", "logits")
ON_PAIRS = make_objective(resolve(["sigmoid"], beta=0.1)).loss


def batch_of(n: int, seed: int = 0) -> Batch:
    rows = random_rows(5, seed=seed, completions=n)
    return make_batch(rows, torch.full((5 * n,), -20.0))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)
    nn.init.normal_(made.weight, std=0.5)
    return made


def states(batch: Batch, matrix: nn.Linear) -> Tensor:
    """That point at the target of every third position, so that some predictions come true."""
    drawn = torch.Generator().manual_seed(1)
    hidden = torch.randn(len(batch.target), HIDDEN_SIZE, generator=drawn)
    hidden[::3] = 2 * matrix.weight.detach()[batch.target[::3]]
    return hidden.requires_grad_()


def means(batch: Batch, observed: Tensor, *, paired: bool) -> dict[str, float]:
    rows = batch.scored(observed.new_zeros(len(batch.target)))
    objective = replace(make_objective(resolve(["sigmoid"])) if paired else fine_tuning(), observes=EVERY)
    found = token_means(rows, objective, [observed])
    return {name: float(mean.total / mean.count) for name, mean in found.items() if mean.count}


def observed_of(batch: Batch, loss: RowLoss = ON_PAIRS, softcap: float | None = None) -> Tensor:
    matrix = linear()
    *_, observed = CompletionHead(matrix, softcap=softcap)(states(batch, matrix), batch, loss, observes=EVERY)
    return observed


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_metrics_of_pairs_are_those_of_trl_from_all_logits(softcap: float | None) -> None:
    batch = batch_of(2)
    matrix = linear()
    logits = matrix.double()(states(batch, linear()).detach().double()).detach()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    chosen = batch.owner % 2 == 0
    logps = logits.log_softmax(dim=1)
    hits = (logits.argmax(dim=1) == batch.target)[chosen]
    expected = {
        "entropy": float(-(logps.exp() * logps).sum(dim=1).mean()),
        "mean_token_accuracy": float(hits.double().mean()),
        "logits/chosen": float(logits[chosen].mean(dim=1).mean()),
        "logits/rejected": float(logits[~chosen].mean(dim=1).mean()),
    }
    assert 0 < expected["mean_token_accuracy"] < 1
    assert means(batch, observed_of(batch, softcap=softcap), paired=True) == pytest.approx(expected, rel=1e-5)


def test_the_entropy_of_few_possible_tokens_is_the_logarithm_of_their_number() -> None:
    logits = torch.full((2, 100), -torch.inf)
    logits[:, :4] = 1e4  # far from 0, as logits may be
    logits[1, 4] = 1e4
    target = torch.zeros(2, dtype=torch.int64)
    expected = torch.tensor([[4.0, 5.0]]).log()
    torch.testing.assert_close(observe(logits, target, ["entropy"]), expected)


@pytest.mark.parametrize(("positions", "logits"), [(1, 1), (20, 3 * VOCAB_SIZE), (10_000, 10_000_000)])
def test_chunks_and_tiles_change_no_figure(positions: int, logits: int) -> None:
    batch = batch_of(2)
    whole = observed_of(batch)
    with patch.multiple(head, CHUNK_POSITIONS=positions, TILE_LOGITS=logits):
        torch.testing.assert_close(observed_of(batch), whole, rtol=1e-5, atol=1e-6)


def test_asking_changes_neither_a_loss_nor_a_gradient() -> None:
    batch = batch_of(2)
    matrix = linear()
    found = []
    for asked in ((), EVERY):
        hidden = states(batch, matrix)
        total, losses, logps, *observed = CompletionHead(matrix)(hidden, batch, ON_PAIRS, observes=asked)
        assert len(observed) == bool(asked)
        found.append((losses, logps, *torch.autograd.grad(total, (hidden, *matrix.parameters()))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_completion_counts_as_often_as_it_is_chosen_in_a_pair() -> None:
    batch = batch_of(3)
    values = torch.rand(3, len(batch.target), generator=torch.Generator().manual_seed(2))
    place = batch.owner % 3  # the first is chosen in two pairs, the second in one
    weights = (2 - place).double()
    found = means(batch, values, paired=True)
    assert found["entropy"] == pytest.approx(float(values[0].mean()), rel=1e-5)
    assert found["mean_token_accuracy"] == pytest.approx(float((weights * values[1]).sum() / weights.sum()))
    assert found["logits/rejected"] == pytest.approx(float((place * values[2]).sum() / place.sum()), rel=1e-5)


def test_rows_of_one_completion_have_all_their_tokens_counted() -> None:
    batch = batch_of(1)
    observed = observed_of(batch, fine_tuning().loss)
    found = means(batch, observed, paired=False)
    assert found == pytest.approx(
        {
            "entropy": float(observed[0].mean()),
            "mean_token_accuracy": float(observed[1].mean()),
            "logits/completion": float(observed[2].mean()),
        },
        rel=1e-5,
    )


class _Engine:
    """As much of DeepSpeed's engine as a step asks for."""

    def __init__(self, model: ScoringModel) -> None:
        self.optimizer = SimpleNamespace(param_groups=[])
        self.module = model

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def test_a_step_reports_what_is_asked_for_however_it_is_cut(tmp_path: Path) -> None:
    policy: Any = SimpleNamespace(engine=_Engine(ScoringModel(tiny_llama())), world_size=1, step=lambda: 1.0)
    rows = random_rows(6, seed=0)
    objective = make_objective(resolve(["sigmoid"], beta=0.1))
    cuts = [[rows], [rows[:1], rows[1:]]]
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        whole, parts = (
            train_step(policy, _rank_batch(cut), replace(objective, observes=EVERY), lr=0.0) for cut in cuts
        )
        silent = train_step(policy, _rank_batch(cuts[0]), objective, lr=0.0)
    finally:
        torch.distributed.destroy_process_group()
    asked = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}
    assert whole.keys() - silent.keys() == asked
    assert {name: parts[name] for name in asked} == pytest.approx({name: whole[name] for name in asked}, rel=1e-4)


def _rank_batch(cut: list[list[TokenRow]]) -> RankBatch:
    batches = [make_batch(rows, torch.full((2 * len(rows),), -20.0)) for rows in cut]
    return RankBatch(0, batches, totals={"pairs": 6, "rows": 6, "completions": 12})


def test_of_rows_that_are_all_ties_there_is_nothing_chosen_to_tell_of() -> None:
    batch = batch_of(2)
    ties = replace(batch, columns={**batch.columns, "rank": torch.zeros_like(batch.completion_row)})
    assert means(ties, observed_of(batch), paired=True).keys() == {"entropy"}


def test_completions_of_other_prompts_are_left_out() -> None:
    batch = batch_of(2)
    observed = observed_of(batch)
    mismatched = torch.arange(len(batch.completion_row)) % 2 == 1
    found = means(replace(batch, columns={**batch.columns, "mismatched": mismatched}), observed, paired=False)
    own = ~mismatched[batch.owner]
    assert found["entropy"] == pytest.approx(float(observed[0][own].mean()), rel=1e-5)


def test_labels_say_which_completions_are_chosen() -> None:
    label = torch.tensor([True, False, True, False, False])
    batch = make_batch(random_rows(5, seed=0, completions=1), label=label)
    values = torch.rand(3, len(batch.target), generator=torch.Generator().manual_seed(2))
    objective = replace(make_objective(resolve(["kto"])), observes=EVERY)
    found = token_means(batch.scored(torch.zeros(len(batch.target))), objective, [values])
    chosen = label[batch.owner]
    expected = {
        "entropy": values[0].mean(),
        "mean_token_accuracy": values[1][chosen].mean(),
        "logits/chosen": values[2][chosen].mean(),
        "logits/rejected": values[2][~chosen].mean(),
    }
    means_found = {name: float(mean.total / mean.count) for name, mean in found.items()}
    assert means_found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def test_a_ranked_row_counts_as_its_pairs_do() -> None:
    batch = batch_of(3)
    values = torch.rand(3, len(batch.target), generator=torch.Generator().manual_seed(2))
    rows = batch.scored(torch.zeros(len(batch.target)))
    on_pairs = replace(make_objective(resolve(["sigmoid"])), observes=EVERY)
    on_rows = replace(make_objective(resolve(["plackett_luce"])), observes=EVERY)
    assert (on_pairs.mean_over, on_rows.mean_over) == ("pairs", "rows")
    assert token_means(rows, on_rows, [values]) == token_means(rows, on_pairs, [values])
