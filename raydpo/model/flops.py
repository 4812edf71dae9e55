"""How much arithmetic a batch needs at least, and how much the machine can do: the two halves of MFU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydpo.model.layout import backbone

Bounds = tuple[tuple[int, ...], ...]

# What families call the number of experts of a layer, and of those that a token goes to.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")


def forward_flops(lm: PreTrainedModel, bounds: Bounds) -> float | None:
    """The least floating-point operations of one forward pass over packed rows; None where they are not known.

    Each prompt is read once and the head sees completion positions only; attention counts the pairs of positions that
    the causal layout allows; of experts only those count that a token goes to; a recurrence counts as its matrices. A
    multiply-add is two operations. Training is three times this. Not known: layers or experts that the configuration
    describes in words of its own (RWKV, xLSTM, DBRX).
    """
    config = lm.config.get_text_config()
    matrices = _active_weights(lm, config)
    attention = _attention_widths(config)
    if matrices is None or attention is None:
        return None
    tokens = attended = completion = 0
    for prompt, first, *later in bounds:
        p = first - prompt
        starts = (first, *later)
        tokens += later[-1] - prompt
        completion += later[-1] - first
        attended += p * (p + 1) // 2
        for length in (b - a for a, b in pairwise(starts)):
            attended += length * p + length * (length + 1) // 2
    output = lm.get_output_embeddings()  # a reward model has none, and its own head is next to nothing
    head = math.prod(_shape(output.weight)) if output is not None else 0
    return 2.0 * (matrices * tokens + head * completion + 2.0 * attention * attended)  # scores, and sums of values


def _active_weights(lm: PreTrainedModel, config: PreTrainedConfig) -> float | None:
    """Elements of the matrices that one token is multiplied by, without embeddings and head."""
    decoder = backbone(lm)
    output = lm.get_output_embeddings()
    apart = set() if output is None else {id(output.weight)}
    apart |= {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Embedding)}
    shapes = {name: _shape(p) for name, p in decoder.named_parameters() if id(p) not in apart}
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 1}
    routed = sum(size for name, size in sizes.items() if "experts" in name.split("."))
    if routed == 0:
        return sum(sizes.values())
    used = _number(config, EXPERTS_USED)
    experts = _number(config, EXPERTS)
    if used is None or experts is None:
        return None
    return sum(sizes.values()) - routed + routed * used / experts


def _attention_widths(config: PreTrainedConfig) -> float | None:
    """Query heads times head size, summed over the layers that compare positions with each other."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    layers = _number(config, ["num_hidden_layers"]) if kinds is None else sum(map(_compares_positions, kinds))
    if layers == 0:
        return 0.0
    width = _attention_width(config)
    return None if layers is None or width is None else layers * width


def _compares_positions(kind: str) -> bool:
    return kind.startswith("hybrid") or ("attention" in kind and kind != "linear_attention")


def _attention_width(config: PreTrainedConfig) -> float | None:
    """Query heads times head size, which some models choose apart from the hidden size."""
    heads = _number(config, ["num_attention_heads"])
    hidden = _number(config, ["hidden_size"])
    if heads is None or hidden is None:
        return None
    keys = _number(config, ["qk_head_dim"])
    values = _number(config, ["v_head_dim"])
    if keys and values:  # DeepSeek's latent attention has heads of two sizes
        return heads * (keys + values) / 2
    return float(heads * (_number(config, ["head_dim"]) or hidden // heads))


def _number(config: PreTrainedConfig, names: Sequence[str]) -> int | None:
    """The first of these settings that is there and is one number for all layers."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty tensor in its place


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
