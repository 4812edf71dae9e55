"""The completion head: hidden states of completion positions to log-probs, loss and gradient, chunk by chunk.

Two differentiable paths, and the logits of one chunk of whole rows are all that either ever holds:

- With a loss: one pass. A row's loss is known as soon as its log-probs are, so the gradient is made in the forward
  pass, from the loss's derivatives with respect to every token's log-prob, and nothing is computed twice.
- Without: per-token log-probs for any use. The backward pass computes each chunk's logits again.

Legend: B rows, b of them in a chunk, M completion positions, m of them in a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raydpo.model.batch import Batch
from raydpo.objective.contract import LOG_SUM_SQ_PROBS, RowLoss, ScoredRows, TokenMetric
from raydpo.objective.token_metrics import observe

CHUNK_POSITIONS = 1024  # logits held at once in bfloat16, half as many in float32: 100 MB for a vocabulary of 49k
TILE_LOGITS = 2**20  # of them normalised at once on a CPU: 4 MB in float32, which its cache holds from pass to pass

Asked = frozenset[str]
"""What is to be found of every token beside its log-prob, from the same logits: LOG_SUM_SQ_PROBS or nothing."""

NOTHING: Asked = frozenset()

Scored = tuple[Tensor, ...]
"""total, losses [B], token_logps [M]: the sum of the losses, which alone has a gradient; the losses; nats a token.

Where something is observed, a fourth tensor [K, M] has the K figures of every token. A plain tuple, because DeepSpeed
hangs its ZeRO-3 hooks on tensors in tuples, lists and dicts, and on nothing else.
"""


@dataclass(frozen=True)
class _Form:
    """How logits are made of hidden states."""

    scale: float
    softcap: float | None
    fp32: bool

    def dtype(self, weight: Tensor) -> torch.dtype:
        """The dtype of the product with the vocabulary matrix."""
        return _summing(weight.dtype) if self.fp32 else weight.dtype

    def scaled(self, hidden: Tensor) -> Tensor:
        """The states that the vocabulary matrix is multiplied by. Scaling them is cheaper than scaling their logits."""
        return hidden if self.scale == 1 else hidden * self.scale


@dataclass(frozen=True)
class _Chunk:
    """Whole rows of a batch that stand together, and their completion positions."""

    rows: slice
    positions: slice  # among the M of the batch

    @property
    def size(self) -> int:
        """The number of completion positions, m."""
        return int(self.positions.stop - self.positions.start)


def _chunks(token_counts: tuple[int, ...], limit: int) -> Iterator[_Chunk]:
    """Cut a batch into chunks of whole rows, as many as fit into `limit` positions and at least one."""
    row = position = 0
    while row < len(token_counts):
        last = row + 1
        end = position + token_counts[row]
        while last < len(token_counts) and end - position + token_counts[last] <= limit:
            end += token_counts[last]
            last += 1
        yield _Chunk(slice(row, last), slice(position, end))
        row = last
        position = end


def _summing(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over the vocabulary, the tokens and the chunks: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def _cap(logits: Tensor, softcap: float | None) -> Tensor | None:
    """Softcap in place (Gemma 2: c tanh(z / c)); returns the derivative, None where it is 1."""
    if softcap is None:
        return None
    bend = 1 - logits.div_(softcap).tanh_().square()
    logits.mul_(softcap)
    return bend


def _normalise(logits: Tensor, target: Tensor, softcap: float | None, *, squares: bool) -> tuple[Tensor, ...]:
    """Log-probs [m] of the targets [m], and the sums [m] of e = exp(logit - largest logit); log Σ p² [m] if asked.

    Over the logits [m, V] is written e, less its sum at the target: -sum times the derivative of the log-prob. That
    factor is left to rows of D numbers, which are fewer than V. The sum may reach V: too much for float16.
    """
    e = logits.to(_summing(logits.dtype))  # the same memory, unless it is bfloat16
    target = target[:, None]
    bend = _cap(e, softcap)
    largest = e.amax(dim=1, keepdim=True)
    logps = e.gather(1, target) - largest
    sums = e.sub_(largest).exp_().sum(dim=1, keepdim=True)
    found = [(logps - sums.log()).squeeze(1), sums.squeeze(1)]
    if squares:
        norms = torch.linalg.vector_norm(e, dim=1)  # a square root of Σ e² needs no second matrix for the squares
        found.append(2 * (norms / sums.squeeze(1)).log())
    e.scatter_add_(1, target, -sums)
    logits.copy_(e if bend is None else e.mul_(bend))
    return tuple(found)


class _Observed:
    """What the metrics asked for are made of, [K, M]; see raydpo.objective.token_metrics."""

    def __init__(self, names: Sequence[TokenMetric], positions: int, device: torch.device) -> None:
        self.names = names
        self.values = torch.empty(len(names), positions, device=device)

    def look(self, logits: Tensor, target: Tensor, positions: slice, softcap: float | None, tile: int) -> None:
        """Read the logits [m, V] of some positions. To be called before they are normalised in place."""
        # A quarter of the tile that normalising takes: here up to three copies of it stand beside it in the cache.
        tile = max(1, tile // 4)
        ends = range(positions.start, positions.stop, tile)
        for first, some in zip(ends, logits.split(tile), strict=True):
            seen = some.to(_summing(some.dtype))
            if softcap is not None:
                seen = softcap * torch.tanh(seen / softcap)
            here = slice(first, first + len(some))
            self.values[:, here] = observe(seen, target[here], self.names)


class _Sweep:
    """Goes over the chunks of a batch; score() of a chunk comes before add_gradients() of it.

    Fresh memory costs more here than arithmetic on it (the system hands it out page by page), so there is one buffer
    for the logits of all chunks, and what is done to them is done in place.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: Batch, form: _Form, asked: Asked = NOTHING
    ) -> None:
        self.squares = LOG_SUM_SQ_PROBS in asked
        dtype = form.dtype(weight)
        self.hidden = form.scaled(hidden.to(dtype))
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.target = batch.target
        self.form = form
        self.chunks = list(_chunks(batch.token_counts, 2 * CHUNK_POSITIONS // dtype.itemsize))
        self.buffer = self.weight.new_empty(max(chunk.size for chunk in self.chunks), len(weight))
        self.grad_hidden = torch.empty_like(hidden)
        self.grad_weight: Tensor | None = None
        self.grad_bias: Tensor | None = None

    def score(self, chunk: _Chunk, observed: _Observed | None = None) -> Tensor:
        """Log-probs [m] of the targets of a chunk; what is observed of its logits is written down."""
        h = self.hidden[chunk.positions]
        self.residual = self.buffer[: chunk.size]
        if self.bias is None:
            torch.mm(h, self.weight.t(), out=self.residual)
        else:
            torch.addmm(self.bias, h, self.weight.t(), out=self.residual)
        tile = max(1, TILE_LOGITS // len(self.weight)) if h.device.type == "cpu" else chunk.size
        if observed is not None:
            observed.look(self.residual, self.target, chunk.positions, self.form.softcap, tile)
        tiles = zip(self.residual.split(tile), self.target[chunk.positions].split(tile), strict=True)
        found = [_normalise(logits, at, self.form.softcap, squares=self.squares) for logits, at in tiles]
        logps, self.sums, *squares = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.statistics = {LOG_SUM_SQ_PROBS: squares[0]} if squares else {}
        return logps

    def add_gradients(self, chunk: _Chunk, slopes: Tensor) -> None:
        """Chain rule through the chunk scored last, from the derivatives [m] with respect to its log-probs."""
        scale = (-slopes / self.sums)[:, None]
        self.grad_hidden[chunk.positions] = (self.residual @ self.weight) * self.form.scaled(scale)
        h = self.hidden[chunk.positions] * scale
        dtype = self.residual.dtype
        self.grad_weight = _add_product(self.grad_weight, self.residual.t(), h.to(dtype))
        if self.bias is not None:
            self.grad_bias = _add_product(self.grad_bias, self.residual.t(), scale.to(dtype))

    def gradients(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients with respect to hidden, weight and bias; the last two in `dtype`."""
        assert self.grad_weight is not None
        bias = None if self.grad_bias is None else self.grad_bias.squeeze(1).to(dtype)
        return self.grad_hidden, self.grad_weight.to(dtype), bias


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, summed over chunks in float32; a single chunk needs no such copy."""
    if total is None:
        return a @ b
    if a.dtype == _summing(a.dtype):
        return total.addmm_(a, b)
    return total.float().add_(a @ b)


class _OnePass(torch.autograd.Function):
    """(hidden [M, D], weight [V, D], bias [V] or None) -> total, losses, token_logps, and what is observed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        batch: Batch,
        loss: RowLoss,
        form: _Form,
        asked: Asked,
        observes: Sequence[TokenMetric],
    ) -> Scored:
        sweep = _Sweep(hidden, weight, bias, batch, form, asked)
        losses = hidden.new_zeros(batch.num_rows, dtype=_summing(weight.dtype))
        token_logps = losses.new_zeros(len(batch.target))
        observed = _Observed(observes, len(batch.target), hidden.device) if observes else None
        for chunk in sweep.chunks:
            token_logps[chunk.positions] = sweep.score(chunk, observed)
            scored = batch.scored(token_logps[chunk.positions], chunk.rows, chunk.positions)
            scored = replace(scored, token_columns={**scored.token_columns, **sweep.statistics})
            losses[chunk.rows], slopes = _loss_and_slopes(loss, scored)
            sweep.add_gradients(chunk, slopes)
        ctx.save_for_backward(*sweep.gradients(weight.dtype))
        figures = () if observed is None else (observed.values,)
        ctx.mark_non_differentiable(losses, token_logps, *figures)
        return losses.sum(), losses, token_logps, *figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for want of memory: autograd itself refuses a second backward over saved tensors that have changed.
        gradients = (None if each is None else each.mul_(grad_total) for each in ctx.saved_tensors)
        return *gradients, None, None, None, None, None


def _loss_and_slopes(loss: RowLoss, scored: ScoredRows) -> tuple[Tensor, Tensor]:
    """Losses [b] of the rows of a chunk and their derivatives [m] with respect to its tokens' log-probs."""
    with torch.enable_grad():
        leaf = scored.token_logps.detach().requires_grad_()
        values = loss(replace(scored, token_logps=leaf))
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slopes


class _TokenLogps(torch.autograd.Function):
    """(hidden [M, D], weight [V, D], bias [V] or None) -> per-token log-probs [M]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: Batch, form: _Form) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.batch = batch
        ctx.form = form
        sweep = _Sweep(hidden, weight, bias, batch, form)
        return torch.cat([sweep.score(chunk) for chunk in sweep.chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        sweep = _Sweep(hidden, weight, bias, ctx.batch, ctx.form)
        for chunk in sweep.chunks:
            sweep.score(chunk)
            sweep.add_gradients(chunk, slopes[chunk.positions])
        return *sweep.gradients(weight.dtype), None, None


class CompletionHead(nn.Module):
    """A module of its own, so that ZeRO-3's hooks gather the (possibly tied) weight around forward and backward.

    scale: a factor of the logits before a bias is added (Granite, Cohere). softcap: c of c tanh(logits / c), Gemma 2's
    final_logit_softcapping. fp32: multiply by the vocabulary matrix in float32 although the model is bfloat16, for
    log-probs that are nearer the exact ones at about twice the cost.
    """

    def __init__(
        self, lm_head: nn.Linear, *, scale: float = 1.0, softcap: float | None = None, fp32: bool = False
    ) -> None:
        super().__init__()
        self.weight = lm_head.weight
        self.bias = lm_head.bias
        self.form = _Form(scale, softcap, fp32)

    def forward(
        self,
        hidden: Tensor,
        batch: Batch,
        loss: RowLoss | None = None,
        asked: Asked = NOTHING,
        observes: Sequence[TokenMetric] = (),
    ) -> Scored | Tensor:
        """With a loss: Scored. Without: per-token log-probs [M] in nats, differentiable. Both in float32.

        asked: columns of tokens that the loss reads and the head finds, which have no gradient. observes: what metrics
        are made of, and no loss reads.
        """
        if loss is None:
            return _TokenLogps.apply(hidden, self.weight, self.bias, batch, self.form)
        return _OnePass.apply(hidden, self.weight, self.bias, batch, loss, self.form, asked, observes)

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, D] -> [m, V] in float32."""
        dtype = self.form.dtype(self.weight)
        bias = None if self.bias is None else self.bias.to(dtype)
        logits = nn.functional.linear(self.form.scaled(hidden.to(dtype)), self.weight.to(dtype), bias)
        logits = logits.to(_summing(dtype))
        cap = self.form.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
