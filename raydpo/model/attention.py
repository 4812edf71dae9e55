"""Packed attention: every completion sees its own prompt and itself, and nothing else of the pack.

No mask over the whole pack is ever made: memory and work grow with the rows, not with the square of the pack. Two
backends of transformers' attention interface do the same sums: one call of scaled_dot_product_attention a segment
(here, on the CPU) and FlexAttention with a block mask (raydpo.model.flex, on a GPU).

Legend: H query heads, K key-value heads, T packed tokens, d head size, q and k queries and keys of one segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from raydpo.model import version

NAME = version.SEGMENTS

Bounds = tuple[tuple[int, ...], ...]
"""Per row (prompt start, completion starts ..., end): positions in the pack."""


class Segment(NamedTuple):
    """Queries that see all of `prompt`, and causally themselves. `prompt` stands before them and may be empty."""

    prompt: slice
    own: slice


def segments(bounds: Bounds) -> Iterator[Segment]:
    """The segments of a pack, in its order. A row's prompt and first completion are one: plainly causal."""
    for start, first, *later in bounds:
        yield Segment(slice(start, start), slice(start, later[0]))
        for begin, end in pairwise(later):
            yield Segment(slice(start, first), slice(begin, end))


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    bounds: Bounds,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, d], key and value [1, K, T, d] -> [1, T, H, d].

    sliding_window: a query sees that many positions, its own among them (Mistral, Gemma). softcap: scores s become
    softcap * tanh(s / softcap) (Gemma 2).
    """
    refuse_mask_and_dropout(attention_mask, dropout)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    pieces = []
    for prompt, own in segments(bounds):
        k = key[:, :, own]
        v = value[:, :, own]
        if prompt.stop > prompt.start:
            # Every further completion has a copy of its prompt's keys: that grows with the rows, a mask with the pack's
            # square.
            k = torch.cat((key[:, :, prompt], k), dim=2)
            v = torch.cat((value[:, :, prompt], v), dim=2)
        pieces.append(_attend(query[:, :, own], k, v, scale, sliding_window, softcap))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def refuse_mask_and_dropout(attention_mask: Tensor | None, dropout: float) -> None:
    """Both must be off for packed rows: the bounds say all there is to say, and policy and reference must agree."""
    if attention_mask is not None or dropout:
        raise ValueError("packed attention takes no mask and no dropout.")


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Attention of one segment. It is causal, and the last query stands at the last key."""
    shape = q.shape[2], k.shape[2]
    # A window as wide as the keys hides nothing, and without a mask PyTorch chooses among faster kernels.
    window = window if window is not None and window < shape[1] else None
    if softcap is not None:
        return _attend_capped(q, k, v, scale, _mask(*shape, window, q.device), softcap)
    plain = window is None and shape[0] == shape[1]
    mask = None if plain else _mask(*shape, window, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=plain, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attend_capped(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, softcap: float) -> Tensor:
    """PyTorch's fused attention cannot cap scores, so they are written out for this one segment."""
    groups = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(groups, dim=1)
    v = v.repeat_interleave(groups, dim=1)
    scores = softcap * torch.tanh((q @ k.transpose(2, 3)) * (scale / softcap))
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=3, dtype=torch.float32).to(q.dtype) @ v


@lru_cache(maxsize=256)  # every layer asks for the same ones
def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[q, k], true where a query sees a key."""
    last = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(last)
    return mask if window is None else mask.triu_(last - window + 1)


AttentionInterface.register(NAME, segment_attention)
