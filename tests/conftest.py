"""What every test relies on: no hub, no cluster of the user's, and the same hypothesis examples on every machine."""

import os
import shutil

import pytest
from hypothesis import settings

# Set before any test imports a library that reads them; workers inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else many a call of Ray's starts a cluster, which outlives its test

# Wall-clock deadlines fail on a busy machine, random examples on an unlucky day.
settings.register_profile("raydpo", deadline=None, derandomize=True)
settings.load_profile("raydpo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device: nvidia-smi is not there"))
