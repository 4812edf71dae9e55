"""Segment attention: every completion sees its own prompt and itself, and nothing else of the pack.

No mask over the whole pack is ever made: memory and work grow with the rows, not with the square of the pack.

Legend: H query heads, K key-value heads, T packed tokens, d head size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

NAME = "raydpo_segments"


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    bounds: tuple[tuple[int, ...], ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, d], key and value [1, K, T, d] -> [1, T, H, d].

    bounds: per row (prompt start, completion starts ..., end). Prompt and first completion are one causal call; each
    further completion is a call of its queries over prompt and itself.
    """
    if attention_mask is not None or dropout:
        raise ValueError("segment attention takes no mask and no dropout; both must stay off for packed rows.")
    pieces = []
    for prompt, first, *later in bounds:
        end = later[0]
        pieces.append(_attend(query, key, value, slice(prompt, end), scaling))
        for start, stop in pairwise(later):
            pieces.append(_attend_behind_prompt(query, key, value, slice(prompt, first), slice(start, stop), scaling))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor, where: slice, scaling: float | None) -> Tensor:
    q, k, v = query[:, :, where], key[:, :, where], value[:, :, where]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


def _attend_behind_prompt(
    query: Tensor, key: Tensor, value: Tensor, prompt: slice, own: slice, scaling: float | None
) -> Tensor:
    q = query[:, :, own]
    k = torch.cat((key[:, :, prompt], key[:, :, own]), dim=2)
    v = torch.cat((value[:, :, prompt], value[:, :, own]), dim=2)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril_(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


AttentionInterface.register(NAME, segment_attention)
