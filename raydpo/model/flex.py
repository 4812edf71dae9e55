"""Packed attention on a GPU: FlexAttention with a block mask made from the rows' bounds.

One fused kernel for the whole pack, which honours sliding windows and capped scores; the alternative, variable-length
flash attention, needs two calls a layer and copies of the keys, and can do neither. FlexAttention has no backward on
the CPU, so training there uses raydpo.model.attention; the tests compare the two forward passes.

Legend: H query heads, K key-value heads, T packed tokens, d head size, N blocks of BLOCK tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from raydpo.model import version
from raydpo.model.attention import Bounds, refuse_mask_and_dropout, segments

NAME = version.FLEX
BLOCK = 128

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_segment_attention(
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
    """What raydpo.model.attention.segment_attention computes: [1, H, T, d] and twice [1, K, T, d] -> [1, T, H, d]."""
    refuse_mask_and_dropout(attention_mask, dropout)
    out = _kernel(compiled=query.is_cuda)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=block_mask(bounds, sliding_window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=2)
def _kernel(*, compiled: bool) -> Callable[..., Any]:
    # dynamic: packs differ in length, and each length would be compiled anew.
    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain, dynamic=True) if compiled else plain


@lru_cache(maxsize=4)  # the kernel is compiled anew for every other function object
def _capped(softcap: float) -> ScoreMod:
    return lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)


@lru_cache(maxsize=4)  # every layer of a pass asks for the same one, or for one of two
def block_mask(bounds: Bounds, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries must look at, and the rule inside those that are seen in part."""
    some, whole = _blocks(bounds)
    if window is not None:
        whole[:] = False  # a window may hide a part of any block
    part, prompt, positions = _coordinates(bounds, device)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        visible = ((part[k] == part[q]) | (part[k] == prompt[q])) & (k <= q)
        return visible if window is None else visible & (positions[q] - positions[k] < window)

    tokens = bounds[-1][-1]
    return BlockMask.from_kv_blocks(
        *_indices(some & ~whole, device),
        *_indices(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(tokens, tokens),
    )


def _blocks(bounds: Bounds) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[N, N] (query block, key block): those with a visible pair of positions, and those with no invisible one."""
    n = -(-bounds[-1][-1] // BLOCK)
    some = np.zeros((n, n), dtype=bool)
    whole = np.zeros((n, n), dtype=bool)
    for prompt, own in segments(bounds):
        for keys in (prompt, own):
            if keys.stop > keys.start:
                some[_touched(own), _touched(keys)] = True
                whole[_inside(own), _inside(keys)] = True
    # Causal: of the blocks on the diagonal a part is hidden, of those above it everything.
    return np.tril(some), np.tril(whole, -1)


def _touched(tokens: slice) -> slice:
    """The blocks that hold any of the tokens."""
    return slice(tokens.start // BLOCK, -(-tokens.stop // BLOCK))


def _inside(tokens: slice) -> slice:
    """The blocks that hold nothing but these tokens."""
    return slice(-(-tokens.start // BLOCK), tokens.stop // BLOCK)


def _indices(blocks: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """The form that FlexAttention takes: how many key blocks each query block has, and which, those first."""
    counts = blocks.sum(axis=1)
    which = np.argsort(~blocks, axis=1, kind="stable")

    def move(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array.astype(np.int32)).to(device)[None, None]

    return move(counts), move(which)


def _coordinates(bounds: Bounds, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: the number of its prompt or completion, that of its row's prompt, and its position. [T] each."""
    lengths = [np.diff(row) for row in bounds]
    parts = np.asarray([len(each) for each in lengths])
    numbers = np.repeat(np.arange(parts.sum()), np.concatenate(lengths))
    prompts = np.repeat(np.cumsum(parts) - parts, [each.sum() for each in lengths])
    positions = [np.arange(n) + (0 if i == 0 else each[0]) for each in lengths for i, n in enumerate(each)]

    def move(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return move(numbers), move(prompts), move(np.concatenate(positions))


AttentionInterface.register(NAME, flex_segment_attention)
