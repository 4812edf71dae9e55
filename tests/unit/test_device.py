"""A process has the device that Ray gave it, and asking for it starts nothing."""

from __future__ import annotations

import pytest
import ray
import torch

from raydpo.runtime.cluster.device import granted_device

pytestmark = pytest.mark.unit


def test_a_process_without_a_cluster_has_the_cpu_and_stays_without_one() -> None:
    assert granted_device() == torch.device("cpu")
    assert not ray.is_initialized()
