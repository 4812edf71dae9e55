"""The device that a process computes on: the one that Ray gave it, whatever run file or machine say."""

from __future__ import annotations

import ray
import torch


def granted_device() -> torch.device:
    """The device of a task or an actor. A share of a GPU is a GPU; Ray shows the process no others.

    A process that belongs to no cluster was given nothing, and has the CPU.
    """
    # Asked for GPUs in a process without a cluster, Ray would start one, which would outlive whoever asked.
    given = ray.get_gpu_ids() if ray.is_initialized() else []
    return torch.device("cuda" if given else "cpu")
