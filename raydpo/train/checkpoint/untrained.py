"""Tensors of a model that its checkpoint holds although no optimizer steps them: buffers and frozen parameters.

Such as the bias that balances the experts of DeepSeek-V3 and ERNIE, or a scale for each layer of Gemma 4. They are the
same on every rank, so rank 0 saves them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydpo.train.checkpoint.state import SavedState, Untrained


def untrained_tensors(lm: PreTrainedModel) -> dict[str, Tensor]:
    """Buffers and frozen parameters by name, without the buffers that a model makes anew from its configuration.

    Under ZeRO-3 the caller gathers the frozen parameters first.
    """
    trained = {name for name, each in lm.named_parameters(remove_duplicate=False) if each.requires_grad}
    return {name: tensor for name, tensor in lm.state_dict().items() if name not in trained}


def copy_untrained(lm: PreTrainedModel) -> list[Untrained]:
    """Copy a model's untrained tensors to host memory."""
    return [
        Untrained(name, str(tensor.dtype).removeprefix("torch."), _exact(tensor).to("cpu", copy=True).numpy())
        for name, tensor in untrained_tensors(lm).items()
    ]


@torch.no_grad()
def load_buffers(lm: PreTrainedModel, saved: SavedState) -> None:
    """Fill a model's buffers from a commit, as a forward pass may change them; frozen parameters stay as they are.

    What the commit lacks stays as it was loaded. Commits of older versions lack all of it.
    """
    parameters = {name for name, _ in lm.named_parameters(remove_duplicate=False)}
    for name, tensor in untrained_tensors(lm).items():
        if name in saved.untrained and name not in parameters:
            tensor.copy_(as_tensor(saved.untrained[name]))


def as_tensor(untrained: Untrained) -> Tensor:
    """The tensor in the dtype that it has in the model."""
    return torch.from_numpy(untrained.values).to(getattr(torch, untrained.dtype))


def _exact(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that numpy has too; float32 holds every bfloat16 exactly."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
