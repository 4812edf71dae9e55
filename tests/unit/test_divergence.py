"""Laws of the KL along completions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from raydpo.data.tokens import TokenRow
from raydpo.model import divergence
from raydpo.model.divergence import predict, summed_kl
from raydpo.model.score import ScoringModel
from tests.models import exact, exact_logps, make_batch, make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

SHORT = [make_row([5], [7], [8]), make_row([5, 6], [9, 10, 11], [12])]


def _moved(by: float, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The tiny model with every weight moved by a normal draw of this standard deviation."""
    lm = tiny_llama(dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in lm.parameters():
            p += (by * torch.randn(p.shape, generator=generator)).to(dtype)
    return lm


def _of_rows(policy: LlamaForCausalLM, ref: LlamaForCausalLM, rows: list[TokenRow]) -> Tensor:
    batches = [make_batch(rows)]
    [kl] = summed_kl(predict(ScoringModel(policy), batches), predict(ScoringModel(ref), batches), batches)
    return kl


def _kl(policy: LlamaForCausalLM, ref: LlamaForCausalLM) -> Tensor:
    return _of_rows(policy, ref, random_rows(6, seed=3))


def _exact_kl(policy: LlamaForCausalLM, ref: LlamaForCausalLM, rows: list[TokenRow]) -> Tensor:
    """The same in float64, a completion at a time, by transformers' own forward pass."""
    expected: list[Tensor] = []
    with torch.no_grad():
        for row in rows:
            both = zip(exact_logps(exact(policy), row), exact_logps(exact(ref), row), strict=True)
            expected += [(p.exp() * (p - q)).sum() for p, q in both]
    return torch.stack(expected)


def test_a_model_does_not_diverge_from_itself() -> None:
    assert not _kl(tiny_llama(), tiny_llama()).any()


@pytest.mark.parametrize("rows", [SHORT, random_rows(6, 3, 1), random_rows(4, 3, 4)], ids=["short", "1", "4"])
def test_the_kl_is_the_sum_over_steps_of_the_kl_over_the_vocabulary(rows: list[TokenRow]) -> None:
    policy, ref = _moved(0.05), tiny_llama()
    torch.testing.assert_close(_of_rows(policy, ref, rows).double(), _exact_kl(policy, ref, rows), rtol=1e-4, atol=1e-5)


def test_float32_gives_the_kl_of_bfloat16_weights_where_bfloat16_gives_its_own_rounding() -> None:
    """As small as after a few steps of training."""
    rows = random_rows(6, seed=3)
    ref = tiny_llama(dtype=torch.bfloat16)
    policy = _moved(1e-4, torch.bfloat16)
    expected = _exact_kl(policy, ref, rows).mean()
    assert 0 < expected < 1e-3, "no test of a small KL"
    assert _of_rows(policy, ref, rows).mean() > 3 * expected, "which is why it is not made in bfloat16"
    in_float32 = _of_rows(policy.float(), ref.float(), rows).double().mean()
    torch.testing.assert_close(in_float32, expected, rtol=0.01, atol=0)


def test_batches_are_taken_one_by_one() -> None:
    policy, ref, rows = ScoringModel(_moved(0.05)), ScoringModel(tiny_llama()), random_rows(6, seed=3)
    batches = [make_batch(rows[:2]), make_batch(rows[2:])]
    parts = summed_kl(predict(policy, batches), predict(ref, batches), batches)
    torch.testing.assert_close(torch.cat(parts), _of_rows(_moved(0.05), tiny_llama(), rows), rtol=1e-5, atol=1e-6)


def test_the_kl_is_not_symmetric() -> None:
    policy, ref = _moved(0.05), tiny_llama()
    assert not torch.allclose(_kl(policy, ref), _kl(ref, policy), rtol=1e-2)


@pytest.mark.parametrize("by", [1e-7, 1e-4, 0.3])
def test_the_kl_is_never_negative(by: float) -> None:
    assert (_kl(_moved(by), tiny_llama()) >= 0).all()


def test_the_kl_grows_with_the_distance() -> None:
    near, far = _kl(_moved(0.01), tiny_llama()), _kl(_moved(0.1), tiny_llama())
    assert 0 < near.mean() < far.mean()


@pytest.mark.parametrize("positions", [1, 7])
def test_the_chunks_change_nothing(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, ref = _moved(0.05), tiny_llama()
    whole = _kl(policy, ref)
    monkeypatch.setattr(divergence, "CHUNK_POSITIONS", positions)
    torch.testing.assert_close(_kl(policy, ref), whole, rtol=1e-5, atol=1e-6)
