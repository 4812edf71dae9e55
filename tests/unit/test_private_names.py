"""Other people's private names: each library's in one file, and all of them there on the version that is locked."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import deepspeed
import pytest
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch.distributed import distributed_c10d

from raydpo.runtime.cluster.ray_private import LOGGERS_OF_ERRORS
from raydpo.runtime.trainer.train_private import LOGGER_OF_CALLBACKS, LOGGER_OF_WORKERS

pytestmark = pytest.mark.unit

PRODUCT = Path(__file__).parents[2] / "raydpo"


@pytest.mark.parametrize(
    ("private", "files"),
    [
        (r"ray\._private|ray\.data\._internal", {"runtime/cluster/ray_private.py"}),
        (r"ray\.train\S*\._internal", {"runtime/trainer/train_private.py"}),
        (r"\._attn_implementation\b", {"model/layout.py"}),
        (r"_hp_mapping|\bds_tensor|\bds_numel|\bgrad_position|fp32_partitioned", {"train/checkpoint/slices.py"}),
        (r"__compatible_ops__|distributed_c10d\._", {"train/engine.py"}),
        (r"cpu_linear", {"rollout/weights.py"}),
    ],
)
def test_the_private_names_of_a_library_stand_in_one_file(private: str, files: set[str]) -> None:
    found = {path for path in PRODUCT.rglob("*.py") if re.search(private, path.read_text(encoding="utf-8"))}
    assert {str(path.relative_to(PRODUCT)) for path in found} == files


@pytest.mark.parametrize("logger", [*LOGGERS_OF_ERRORS, LOGGER_OF_CALLBACKS, LOGGER_OF_WORKERS])
def test_a_logger_that_is_silenced_is_that_of_a_module(logger: str) -> None:
    assert import_module(logger)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (deepspeed.ops, "__compatible_ops__"),
        (DeepSpeedZeroOptimizer, "update_lp_params"),
        (DeepSpeedZeroOptimizer_Stage3, "get_param_id"),
        (DeepSpeedZeroOptimizer_Stage3, "checkpoint_event_epilogue"),
        (distributed_c10d, "_set_pg_timeout"),
        (distributed_c10d._world, "pg_map"),
    ],
)
def test_a_private_name_is_there(owner: object, name: str) -> None:
    assert hasattr(owner, name)
