"""Laws of the sequence KL."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from raydpo.data.tokens import TokenRow
from raydpo.model import divergence
from raydpo.model.divergence import sequence_kl
from raydpo.model.score import ScoringModel
from tests.models import exact, exact_logps, make_batch, make_row, random_rows, tiny_llama

pytestmark = pytest.mark.unit

SHORT = [make_row([5], [7], [8]), make_row([5, 6], [9, 10, 11], [12])]


def _moved(by: float) -> LlamaForCausalLM:
    """The tiny model with every weight moved by a normal draw of this standard deviation."""
    lm = tiny_llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in lm.parameters():
            p += by * torch.randn(p.shape, generator=generator)
    return lm


def _kl(policy: LlamaForCausalLM, ref: LlamaForCausalLM, n: int = 2) -> Tensor:
    return sequence_kl(ScoringModel(policy), ScoringModel(ref), make_batch(random_rows(6, seed=3, completions=n)))


def test_a_model_does_not_diverge_from_itself() -> None:
    assert not _kl(tiny_llama(), tiny_llama()).any()


@pytest.mark.parametrize("rows", [SHORT, random_rows(6, 3, 1), random_rows(4, 3, 4)], ids=["short", "1", "4"])
def test_the_kl_is_the_sum_over_steps_of_the_kl_over_the_vocabulary(rows: list[TokenRow]) -> None:
    policy, ref = _moved(0.05), tiny_llama()
    actual = sequence_kl(ScoringModel(policy), ScoringModel(ref), make_batch(rows))
    expected = torch.zeros(len(rows), len(rows[0].completions), dtype=torch.float64)
    with torch.no_grad():
        for i, row in enumerate(rows):
            both = zip(exact_logps(exact(policy), row), exact_logps(exact(ref), row), strict=True)
            expected[i] = torch.stack([(p.exp() * (p - q)).sum() for p, q in both])
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


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
