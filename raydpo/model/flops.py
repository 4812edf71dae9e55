"""How much arithmetic a batch needs at least, and how much the machine can do: the two halves of MFU."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

Bounds = tuple[tuple[int, ...], ...]


def forward_flops(lm: PreTrainedModel, bounds: Bounds) -> float:
    """The least floating-point operations of one forward pass over packed rows.

    Each prompt is read once and the head sees completion positions only; attention counts the pairs of positions that
    the causal layout allows. A multiply-add is two operations. Training is three times this.
    """
    head = lm.get_output_embeddings().weight
    apart = {id(head), *(id(m.weight) for m in lm.modules() if isinstance(m, nn.Embedding))}
    matrices = sum(_numel(p) for p in lm.parameters() if p.dim() > 1 and id(p) not in apart)
    tokens = attended = completion = 0
    for prompt, first, *later in bounds:
        p, starts = first - prompt, (first, *later)
        tokens += later[-1] - prompt
        completion += later[-1] - first
        attended += p * (p + 1) // 2
        for length in (b - a for a, b in pairwise(starts)):
            attended += length * p + length * (length + 1) // 2
    attention = 2.0 * lm.config.num_hidden_layers * _attention_width(lm.config) * attended  # scores, and sums of values
    return 2.0 * (matrices * tokens + _numel(head) * completion + attention)


def _attention_width(config: PreTrainedConfig) -> int:
    """Query heads times head size, which some models choose apart from the hidden size."""
    heads = int(config.num_attention_heads)
    return heads * int(config.to_dict().get("head_dim") or config.hidden_size // heads)


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor in its place


def matmul_ceiling(dtype: torch.dtype, device: torch.device | str) -> float:
    """Floating-point operations per second of a square matrix product with this process's threads.

    On a CPU it counts the threads' own time, so that what else the machine is doing does not lower the ceiling.
    """
    on_cpu = torch.device(device).type == "cpu"
    clock = (lambda: time.process_time() / torch.get_num_threads()) if on_cpu else time.perf_counter
    size = 2048 if on_cpu else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        begin = clock()
        product = a @ a
        product[0, 0].item()  # waits for the device
        best = min(best, clock() - begin)
    return 2.0 * size**3 / best
