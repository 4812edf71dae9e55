"""Laws of score: packed log-probs, losses and gradients are those of one completion at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydpo.data.tokens import TokenRow
from raydpo.model.score import ScoringModel, sequence_logps
from raydpo.objective import registry
from raydpo.objective.contract import RowLoss, ScoredRows
from raydpo.objective.likelihood import fine_tuning
from raydpo.objective.registry import make_objective, resolve
from tests.models import VOCAB_SIZE, exact, exact_logps, make_batch, make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
ONE_TOKEN = [make_row([5], [7], [8]), make_row([5], [9, 10, 11], [12]), make_row([5, 6, 7], [13], [14, 15])]


def _best_of_n(rows: ScoredRows) -> Tensor:
    """A loss in which every completion of a row bends the slope of every other."""
    return -(0.1 * rows.log_ratios()).view(rows.num_rows, -1).log_softmax(dim=1)[:, 0]


SMOOTHED = make_objective(resolve(["sigmoid"], beta=0.1, label_smoothing=0.1))
LOSSES: dict[int, RowLoss] = {1: fine_tuning().loss, 2: SMOOTHED.loss, 4: _best_of_n}


def _ref_logps(rows: list[TokenRow]) -> Tensor:
    """Near the logps of the rows, so that no slope is all but zero."""
    return -6.0 * torch.tensor([[len(completion) for completion in row.completions] for row in rows])


def _oracle_logps(twin: PreTrainedModel, rows: list[TokenRow]) -> list[Tensor]:
    """Per-token log-probs of every completion of every row, in float64."""
    return [
        logps.gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        for row in rows
        for logps, completion in zip(exact_logps(twin, row), row.completions, strict=True)
    ]


def _oracle_losses(twin: PreTrainedModel, rows: list[TokenRow], loss: RowLoss) -> Tensor:
    return loss(make_batch(rows, _ref_logps(rows)).scored(torch.cat(_oracle_logps(twin, rows))))


def _token_logps(lm: PreTrainedModel, rows: list[TokenRow]) -> list[Tensor]:
    """One tensor per row, all its completions together."""
    batch = make_batch(rows)
    return list(ScoringModel(lm).token_logps(batch).split(batch.token_counts))


def _mean_loss_gradients(lm: PreTrainedModel, rows: list[TokenRow]) -> dict[str, Tensor]:
    total, _, _ = ScoringModel(lm)(make_batch(rows, _ref_logps(rows)), LOSSES[len(rows[0].completions)])
    lm.zero_grad()
    (total / len(rows)).backward()
    return _gradients(lm)


def _gradients(lm: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


def _assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (actual[name] - gradient).norm() <= tolerance * gradient.norm(), name


@TIED
@pytest.mark.parametrize("rows", [ONE_TOKEN, *(random_rows(6, n, n) for n in (1, 2, 4))], ids=["short", "1", "2", "4"])
def test_token_logps_are_those_of_one_completion_at_a_time(rows: list[TokenRow], tied: bool) -> None:
    lm = tiny_llama(tied)
    with torch.no_grad():
        expected = torch.cat(_oracle_logps(exact(lm), rows))
    actual = torch.cat(_token_logps(lm, rows))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_a_model_with_an_attention_scale_of_its_own_keeps_it() -> None:
    lm, rows = tiny_llama(), random_rows(4, seed=0)
    for layer in lm.model.layers:
        layer.self_attn.scaling = 0.7  # 16 ** -0.5 is the usual
    with torch.no_grad():
        expected = torch.cat(_oracle_logps(exact(lm), rows))
    torch.testing.assert_close(torch.cat(_token_logps(lm, rows)).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_scored_logps_are_the_sums_of_the_token_logps(n: int) -> None:
    rows = random_rows(6, seed=n, completions=n)
    model, batch = ScoringModel(tiny_llama()), make_batch(rows, _ref_logps(rows))
    summed = sequence_logps(model.token_logps(batch), batch)
    by_hand = [each.sum() for each in model.token_logps(batch).split(list(map(len, _completions(rows))))]
    torch.testing.assert_close(summed, torch.stack(by_hand), rtol=1e-6, atol=0)
    _, _, token_logps = model(batch, LOSSES[n])
    torch.testing.assert_close(batch.scored(token_logps).logps(), summed, rtol=1e-6, atol=0)


@TIED
@pytest.mark.parametrize("n", [1, 2, 4])
def test_losses_are_the_objective_of_the_oracles_logps(n: int, tied: bool) -> None:
    lm, rows = tiny_llama(tied), random_rows(6, seed=n, completions=n)
    total, losses, _ = ScoringModel(lm)(make_batch(rows, _ref_logps(rows)), LOSSES[n])
    expected = _oracle_losses(exact(lm), rows, LOSSES[n])
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, losses.sum())


@TIED
@pytest.mark.parametrize("n", [1, 2, 4])
def test_gradients_are_the_oracles(n: int, tied: bool) -> None:
    lm, rows = tiny_llama(tied), random_rows(6, seed=n, completions=n)
    twin = exact(lm)
    _oracle_losses(twin, rows, LOSSES[n]).mean().backward()
    _assert_same_gradients(_mean_loss_gradients(lm, rows), _gradients(twin), tolerance=1e-4)


@pytest.mark.parametrize("name", registry.LOSSES)
def test_every_loss_on_pairs_has_the_oracles_value_and_gradient(name: str) -> None:
    lm, rows = tiny_llama(), random_rows(6, seed=2)
    twin, loss = exact(lm), make_objective(resolve([name])).loss
    expected = _oracle_losses(twin, rows, loss)
    expected.sum().backward()
    total, losses, _ = ScoringModel(lm)(make_batch(rows, _ref_logps(rows)), loss)
    total.backward()
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    _assert_same_gradients(_gradients(lm), _gradients(twin), tolerance=1e-5)


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]])
def test_the_order_of_rows_in_a_pack_changes_no_logprob(order: list[int]) -> None:
    lm, rows = tiny_llama(), random_rows(6, seed=0)
    in_order, reordered = _token_logps(lm, rows), _token_logps(lm, [rows[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(reordered[place], in_order[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_grouping_of_rows_into_packs_changes_no_logprob(size: int) -> None:
    lm, rows = tiny_llama(), random_rows(6, seed=0)
    grouped = [logps for i in range(0, 6, size) for logps in _token_logps(lm, rows[i : i + size])]
    torch.testing.assert_close(torch.cat(grouped), torch.cat(_token_logps(lm, rows)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_rows_of_a_pack_do_not_see_each_other(changed: int) -> None:
    lm, rows = tiny_llama(), random_rows(5, seed=0)
    other = [_shift(row) if i == changed else row for i, row in enumerate(rows)]
    before, after = _token_logps(lm, rows), _token_logps(lm, other)
    moved = [not torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(before, after, strict=True)]
    assert moved == [i == changed for i in range(5)]


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_completions_of_a_row_do_not_see_each_other(changed: int) -> None:
    lm, [row] = tiny_llama(), random_rows(1, seed=0, completions=3)
    others = [[(t + 1) % VOCAB_SIZE for t in c] if i == changed else c for i, c in enumerate(row.completions)]
    sizes = list(map(len, row.completions))
    [before], [after] = _token_logps(lm, [row]), _token_logps(lm, [make_row(row.prompt_ids, *others)])
    pairs = zip(before.split(sizes), after.split(sizes), strict=True)
    moved = [not torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in pairs]
    assert moved == [i == changed for i in range(3)]


def test_activation_checkpointing_changes_no_gradient() -> None:
    lm, rows = tiny_llama(), random_rows(6, seed=0)
    expected = _mean_loss_gradients(lm, rows)
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.train()
    calls: list[object] = []
    lm.model.layers[0].mlp.register_forward_pre_hook(lambda *call: calls.append(call))
    recomputed = _mean_loss_gradients(lm, rows)
    assert len(calls) == 2
    _assert_same_gradients(recomputed, expected, tolerance=1e-6)


def test_only_the_total_carries_a_gradient() -> None:
    rows = random_rows(2, seed=0)
    scored = ScoringModel(tiny_llama())(make_batch(rows, _ref_logps(rows)), LOSSES[2])
    assert [value.requires_grad for value in scored] == [True, False, False]


def test_bfloat16_stays_near_float32() -> None:
    """Within 0.06 nats a token and 5 % of a gradient: bfloat16 keeps 8 bits. The sums are made in float32."""
    rows = random_rows(6, seed=0)
    low, high = tiny_llama(dtype=torch.bfloat16), tiny_llama()
    coarse, fine = torch.cat(_token_logps(low, rows)), torch.cat(_token_logps(high, rows))
    torch.testing.assert_close(coarse, fine, rtol=0, atol=0.06)
    scored = ScoringModel(low)(make_batch(rows, _ref_logps(rows)), LOSSES[2])
    assert {value.dtype for value in scored} == {torch.float32}
    _assert_same_gradients(_mean_loss_gradients(low, rows), _mean_loss_gradients(high, rows), tolerance=0.05)


def _completions(rows: list[TokenRow]) -> list[list[int]]:
    return [completion for row in rows for completion in row.completions]


def _shift(row: TokenRow) -> TokenRow:
    """The same lengths, other tokens everywhere."""
    return make_row(*([(token + 1) % VOCAB_SIZE for token in part] for part in (row.prompt_ids, *row.completions)))
