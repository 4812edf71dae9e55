"""The device that a process computes on: the one that Ray gave it, whatever run file or machine say."""

from __future__ import annotations

import ray
import torch


def granted_device() -> torch.device:
    """To be asked in a task or an actor. A share of a GPU is a GPU; Ray shows the process no others."""
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")
