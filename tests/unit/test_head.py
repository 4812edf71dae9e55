"""Laws of the completion head: both differentiable paths are the float64 oracle, however the work is cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raydpo.model import head
from raydpo.model.batch import Batch
from raydpo.model.head import CompletionHead
from raydpo.objective.contract import RowLoss, ScoredRows
from tests.models import VOCAB_SIZE, make_batch, random_rows

pytestmark = pytest.mark.unit

HIDDEN_SIZE, ROWS = 16, 5
SCALE = 0.3
SOFTCAP = 2.0  # about the spread of the logits, so that it bends them


def bending(rows: ScoredRows) -> Tensor:
    """A loss, for any n, in which every completion of a row bends the slope of every other."""
    return (0.1 * _by_row(rows, rows.log_ratios())).logsumexp(dim=1).square()


def by_tokens(rows: ScoredRows) -> Tensor:
    """A loss that is no function of sums: every token has a slope of its own."""
    bent = replace(rows, token_logps=(0.1 * rows.token_logps).sin())
    return _by_row(bent, bent.average_logps() - 0.01 * bent.columns["ref_logps"]).logsumexp(dim=1).square()


def _by_row(rows: ScoredRows, values: Tensor) -> Tensor:
    """[C] -> [B, n], for rows that all have the same n."""
    return values.view(rows.num_rows, -1)


@dataclass(frozen=True)
class Variant:
    """One way to make logits, and how many completions a row has."""

    n: int = 2
    bias: bool = True
    scale: float = 1.0
    softcap: float | None = None
    fp32: bool = False

    def batch(self) -> Batch:
        """Reference values near the log-probs of the rows, so that no slope is all but zero."""
        rows = random_rows(ROWS, seed=self.n, completions=self.n)
        return make_batch(rows, -6.0 * torch.tensor([[len(ids) for ids in row.completions] for row in rows]))

    def linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """Always the same weights."""
        linear = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=self.bias)
        drawn = torch.Generator().manual_seed(0)
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=0.5, generator=drawn)
        return linear.to(dtype)

    def head(self, linear: nn.Linear) -> CompletionHead:
        return CompletionHead(linear, scale=self.scale, softcap=self.softcap, fp32=self.fp32)


variants = st.builds(
    Variant,
    n=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, SCALE]),
    softcap=st.sampled_from([None, SOFTCAP]),
    fp32=st.booleans(),
)
sizes = st.integers(1, 2 * ROWS * 4 * 20)  # from less than a row to more than all of them
widths = st.integers(1, 4 * VOCAB_SIZE)  # from one position to four


@contextmanager
def cut(positions: int, logits: int) -> Iterator[None]:
    with patch.multiple(head, CHUNK_POSITIONS=positions, TILE_LOGITS=logits):
        yield


def states(batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(len(batch.target), HIDDEN_SIZE, generator=drawn).to(dtype).requires_grad_()


def oracle(hidden: Tensor, linear: nn.Linear, batch: Batch, softcap: float | None = None, scale: float = 1.0) -> Tensor:
    """Per-token log-probs [M] from all logits at once."""
    logits: Tensor = linear(scale * hidden)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(dim=1).gather(1, batch.target[:, None]).squeeze(1)


def gradients(value: Tensor, hidden: Tensor, linear: nn.Linear) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, (hidden, *linear.parameters()))


def exact(
    variant: Variant, weights: Tensor | None = None, loss: RowLoss = bending
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Log-probs [M], the weighted sum of them (by default the losses' total) and its gradients, in float64."""
    batch, linear = variant.batch(), variant.linear(torch.float64)
    hidden = states(batch, torch.float64)
    logps = oracle(hidden, linear, batch, variant.softcap, variant.scale)
    losses = loss(batch.scored(logps)) if weights is None else weights * logps
    return logps, losses.sum(), gradients(losses.sum(), hidden, linear)


def distances(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """Relative, one for each of hidden, weight and bias."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@settings(deadline=None, max_examples=20)
@given(variants, sizes, widths, st.sampled_from([bending, by_tokens]))
def test_one_pass_is_the_oracle_however_it_is_cut(variant: Variant, positions: int, logits: int, loss: RowLoss) -> None:
    batch, linear = variant.batch(), variant.linear()
    hidden = states(batch)
    with cut(positions, logits):
        total, losses, logps = variant.head(linear)(hidden, batch, loss)
        found = gradients(total, hidden, linear)
    expected_logps, expected_total, expected = exact(variant, loss=loss)
    torch.testing.assert_close(logps.double(), expected_logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses.sum().double(), expected_total, rtol=1e-6, atol=1e-5)
    assert max(distances(found, expected)) <= 1e-5


@settings(deadline=None, max_examples=20)
@given(variants, sizes, widths)
def test_the_per_token_path_is_the_oracle_however_it_is_cut(variant: Variant, positions: int, logits: int) -> None:
    batch, linear = variant.batch(), variant.linear()
    hidden = states(batch)
    with cut(positions, logits):
        token_logps = variant.head(linear)(hidden, batch)
        losses = bending(batch.scored(token_logps))
        found = gradients(losses.sum(), hidden, linear)
    expected_logps, _, expected = exact(variant)
    torch.testing.assert_close(token_logps.double(), expected_logps, rtol=0, atol=1e-5)
    assert max(distances(found, expected)) <= 1e-5


@settings(deadline=None, max_examples=10)
@given(variants, st.integers(0, 2**32 - 1))
def test_every_token_may_have_a_weight_of_its_own(variant: Variant, seed: int) -> None:
    batch, linear = variant.batch(), variant.linear()
    hidden = states(batch)
    weights = torch.randn(len(batch.target), generator=torch.Generator().manual_seed(seed))
    with cut(20, 3 * VOCAB_SIZE):
        value = (weights * variant.head(linear)(hidden, batch)).sum()
        found = gradients(value, hidden, linear)
    _, expected_value, expected = exact(variant, weights.double())
    torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=1e-4)
    assert max(distances(found, expected)) <= 1e-5


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("softcap", [None, SOFTCAP])
def test_the_derivatives_of_a_log_prob_are_those_of_finite_differences(softcap: float | None, scale: float) -> None:
    batch = make_batch(random_rows(2, seed=0))
    batch.target.remainder_(11)
    linear = nn.Linear(3, 11).double()
    model = CompletionHead(linear, scale=scale, softcap=softcap)
    hidden = torch.randn(len(batch.target), 3, dtype=torch.float64, requires_grad=True)
    # gradcheck moves the parameters in place.
    torch.autograd.gradcheck(lambda *_: model(hidden, batch), (hidden, linear.weight, linear.bias))


def test_the_logits_of_a_scaled_head_are_those_that_are_scored() -> None:
    variant = Variant(scale=SCALE)
    batch, linear = variant.batch(), variant.linear()
    model, hidden = variant.head(linear), states(variant.batch())
    scored = model.logits(hidden).log_softmax(dim=1).gather(1, batch.target[:, None]).squeeze(1)
    torch.testing.assert_close(model(hidden, batch), scored, rtol=0, atol=1e-5)
    torch.testing.assert_close(scored, oracle(hidden, linear, batch, scale=SCALE), rtol=0, atol=1e-5)


def test_softcapped_logits_stay_below_the_cap_and_are_those_that_are_scored() -> None:
    variant = Variant(softcap=SOFTCAP)
    batch, model = variant.batch(), variant.head(variant.linear())
    logits = model.logits(10 * states(batch))
    assert SOFTCAP * 0.9 < logits.abs().max() <= SOFTCAP
    scored = model(10 * states(batch), batch)
    expected = logits.log_softmax(dim=1).gather(1, batch.target[:, None]).squeeze(1)
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softcap", [None, SOFTCAP])
def test_an_fp32_head_on_bfloat16_is_nearer_the_exact_answer(softcap: float | None, bias: bool) -> None:
    narrow, wide = (Variant(bias=bias, softcap=softcap, fp32=fp32) for fp32 in (False, True))
    batch, linear = narrow.batch(), narrow.linear(torch.bfloat16)
    hidden = states(batch, torch.bfloat16)
    twin, twin_hidden = narrow.linear(torch.bfloat16).double(), hidden.detach().double().requires_grad_()
    expected_logps = oracle(twin_hidden, twin, batch, softcap)
    expected = gradients(expected_logps.sum(), twin_hidden, twin)

    def errors(variant: Variant) -> tuple[float, float]:
        logps = variant.head(linear)(hidden, batch)
        found = gradients(logps.sum(), hidden, linear)
        assert logps.dtype == torch.float32
        assert {each.dtype for each in found} == {torch.bfloat16}
        return float((logps - expected_logps).detach().abs().max()), max(distances(found, expected))

    (narrow_logps, narrow_gradient), (wide_logps, wide_gradient) = errors(narrow), errors(wide)
    assert wide_logps <= 1e-5 < 1e-3 < narrow_logps
    assert wide_gradient < narrow_gradient <= 0.01


@pytest.mark.parametrize("fp32", [True, False], ids=["fp32", "bf16"])
def test_bfloat16_gradients_do_not_suffer_from_many_chunks(fp32: bool) -> None:
    variant = Variant(bias=False, fp32=fp32)
    batch, linear = variant.batch(), variant.linear(torch.bfloat16)
    hidden = states(batch, torch.bfloat16)
    model = variant.head(linear)
    whole = gradients(model(hidden, batch, bending)[0], hidden, linear)
    with cut(1, VOCAB_SIZE):
        chunked = gradients(model(hidden, batch, bending)[0], hidden, linear)
    assert max(distances(chunked, tuple(each.double() for each in whole))) <= 2**-8


def test_the_per_token_path_keeps_no_logits_for_its_backward_pass() -> None:
    variant = Variant()
    batch, linear = variant.batch(), variant.linear()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        variant.head(linear)(states(batch), batch)
    assert sorted(kept) == sorted([len(batch.target) * HIDDEN_SIZE, VOCAB_SIZE * HIDDEN_SIZE, VOCAB_SIZE])


def test_without_gradients_the_per_token_path_gives_the_same_log_probs() -> None:
    variant = Variant()
    batch, model = variant.batch(), variant.head(variant.linear())
    differentiable = model(states(batch), batch)
    with torch.no_grad():
        plain = model(states(batch), batch)
    assert (differentiable.requires_grad, plain.requires_grad) == (True, False)
    assert torch.equal(differentiable, plain)


def test_a_second_backward_through_one_pass_is_refused() -> None:
    variant = Variant()
    batch, linear = variant.batch(), variant.linear()
    total, _, _ = variant.head(linear)(states(batch), batch, bending)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
