"""The completion head: hidden states of completion positions to log-probs, loss and gradient in one pass.

With stored reference values a row's loss is known as soon as its log-probs are. So the head makes its own gradient in
the forward pass, chunk by chunk of whole rows, and the logits of a chunk are all that is ever held.

Legend: B rows, n completions per row, M completion positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.model.batch import Batch

Loss = Callable[[Tensor, Tensor | None], Tensor]
"""(logps [b, n], ref_logps [b, n] or None) -> losses [b]; differentiable in logps, one value per row."""

CHUNK_POSITIONS = 512  # logits held at once: 512 x V x 4 bytes, 100 MB for a vocabulary of 49k


Scored = tuple[Tensor, Tensor, Tensor]
"""total, losses [B], logps [B, n]: the sum of the losses, which alone has a gradient; the losses; log π(y|x) in nats.

A plain tuple, because DeepSpeed hangs its ZeRO-3 hooks on tensors in tuples, lists and dicts, and on nothing else.
"""


@dataclass(frozen=True)
class _Chunk:
    rows: slice
    positions: slice


def _chunks(token_counts: tuple[int, ...], limit: int) -> Iterator[_Chunk]:
    """Whole rows, as many as fit `limit` positions, at least one."""
    row = position = 0
    while row < len(token_counts):
        last, end = row + 1, position + token_counts[row]
        while last < len(token_counts) and end - position + token_counts[last] <= limit:
            end += token_counts[last]
            last += 1
        yield _Chunk(slice(row, last), slice(position, end))
        row, position = last, end


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[m, V] in float32 (float64 for float64 models), which every sum below is made in."""
    logits = nn.functional.linear(hidden, weight, bias)
    return logits if logits.dtype == torch.float64 else logits.float()


class _OnePass(torch.autograd.Function):
    """(hidden [M, D], weight [V, D], bias [V] or None) -> total, losses, logps."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: Batch, loss: Loss) -> Scored:
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        losses = hidden.new_zeros(batch.num_rows, dtype=wide)
        logps = hidden.new_zeros(batch.num_rows, batch.completions_per_row, dtype=wide)
        for chunk in _chunks(batch.token_counts, CHUNK_POSITIONS):
            h, target = hidden[chunk.positions], batch.target[chunk.positions, None]
            owner = batch.owner[chunk.positions] - chunk.rows.start * batch.completions_per_row
            logits = _logits(h, weight, bias)
            normaliser = logits.logsumexp(dim=1)
            token_logps = logits.gather(1, target).squeeze(1) - normaliser
            logps[chunk.rows] = logps[chunk.rows].flatten().index_add(0, owner, token_logps).view_as(logps[chunk.rows])
            losses[chunk.rows], slopes = _loss_and_slopes(loss, logps, batch.ref_logps, chunk.rows)
            # d loss / d logits = slope * (onehot(target) - softmax), written over the logits themselves.
            slope = slopes.flatten()[owner]
            logits.sub_(normaliser[:, None]).exp_().mul_(-slope[:, None]).scatter_add_(1, target, slope[:, None])
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
            grad_logits = logits.to(hidden.dtype)
            grad_hidden[chunk.positions] = grad_logits @ weight
            grad_weight += grad_logits.t() @ h
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype), grad_bias)
        ctx.mark_non_differentiable(losses, logps)
        return losses.sum(), losses, logps

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = grad_total.to(grad_hidden.dtype)
        bias = None if grad_bias is None else (grad_bias * grad_total).to(grad_weight.dtype)
        return grad_hidden * scale, grad_weight * scale, bias, None, None


def _loss_and_slopes(loss: Loss, logps: Tensor, ref_logps: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
    """Losses [b] of some rows and their derivatives with respect to the log-probs [b, n]."""
    with torch.enable_grad():
        leaf = logps[rows].detach().requires_grad_()
        values = loss(leaf, None if ref_logps is None else ref_logps[rows])
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slopes


class CompletionHead(nn.Module):
    """A module of its own, so that ZeRO-3's hooks gather the (possibly tied) weight around forward and backward."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        self.weight = lm_head.weight
        self.bias = lm_head.bias

    def forward(self, hidden: Tensor, batch: Batch, loss: Loss | None = None) -> Scored | Tensor:
        """With a loss: Scored. Without: per-token log-probs [M], no gradient."""
        if loss is None:
            return self._token_logps(hidden, batch)
        return _OnePass.apply(hidden, self.weight, self.bias, batch, loss)

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, D] -> [m, V] in float32."""
        return _logits(hidden, self.weight, self.bias)

    @torch.no_grad()
    def _token_logps(self, hidden: Tensor, batch: Batch) -> Tensor:
        pieces = []
        for chunk in _chunks(batch.token_counts, CHUNK_POSITIONS):
            logits = self.logits(hidden[chunk.positions])
            picked = logits.gather(1, batch.target[chunk.positions, None]).squeeze(1)
            pieces.append(picked - logits.logsumexp(dim=1))
        return torch.cat(pieces)
