"""Tensors of a model that its checkpoint holds although no optimizer steps them.

Such as the bias that balances DeepSeek-V3's experts, or a scale for each layer of Gemma 4. They are the same on every
rank, so rank 0's are the ones that are saved.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.train.state import Buffer, SavedState


def kept_buffers(lm: PreTrainedModel) -> dict[str, Tensor]:
    """By name, the buffers that are part of a model's checkpoint; others are made anew from its configuration."""
    parameters = {name for name, _ in lm.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in lm.state_dict().items() if name not in parameters}


def copy_buffers(lm: PreTrainedModel) -> list[Buffer]:
    """Their values in host memory."""
    return [
        Buffer(name, str(tensor.dtype).removeprefix("torch."), _exact(tensor).to("cpu", copy=True).numpy())
        for name, tensor in kept_buffers(lm).items()
    ]


@torch.no_grad()
def load_buffers(lm: PreTrainedModel, saved: SavedState) -> None:
    """Fill them from a commit; what it lacks stays as it was loaded. Commits of older versions lack them all."""
    for name, tensor in kept_buffers(lm).items():
        if name in saved.buffers:
            tensor.copy_(as_tensor(saved.buffers[name]))


def as_tensor(buffer: Buffer) -> Tensor:
    """In the dtype that the model has it in."""
    return torch.from_numpy(buffer.values).to(getattr(torch, buffer.dtype))


def _exact(tensor: Tensor) -> Tensor:
    """In a dtype that numpy has too: it knows no bfloat16."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
