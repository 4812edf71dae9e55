"""One DeepSpeed engine around a scoring model: the only place that knows DeepSpeed's configuration."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import distributed_c10d
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from raydpo.config.schema import Optimizer, Zero
from raydpo.model.layout import is_packed
from raydpo.model.reward_head import RewardModel
from raydpo.model.reward_model import is_reward_model
from raydpo.model.score import ScoringModel

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # or it warns that it guessed
import deepspeed

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # the longest that one rank may lag behind the others


@dataclass(frozen=True)
class Policy:
    """The model under training, a language model or a reward model.

    `engine` steps it. `lm` is transformers' model of it, heads and all, whose names of the parameters (the same
    tensors) checkpoints and exports go by.
    """

    engine: Any  # deepspeed.DeepSpeedEngine
    lm: PreTrainedModel
    rank: int
    world_size: int

    @property
    def device(self) -> torch.device:
        """The device that batches are moved to."""
        return torch.device(self.engine.device)

    def step(self) -> float:
        """Clip and apply the accumulated gradient; returns its norm before clipping, which may not be finite.

        Under ZeRO 1 to 3 a gradient that is not finite is not applied.
        """
        replicated = self.engine.zero_optimization_stage() == 0
        if replicated:  # DeepSpeed reports a norm only for sharded gradients; here the backward has reduced them all
            norms = [p.grad.norm() for p in self.engine.module.parameters() if p.grad is not None]
            norm = torch.stack(norms).norm()
        self.engine.step()
        found = float(norm if replicated else self.engine.get_global_grad_norm())
        return found if found >= 0 else math.inf  # DeepSpeed says -1 for a norm that is not finite


def init_distributed(world_size: int) -> None:
    """Join the process group that the launcher made (or make it from the environment) and check its size.

    DeepSpeed would compile a C++ op here (minutes, a compiler, a lock that a kill leaves behind) for an all-reduce that
    only its inference engine calls. Marking the op incompatible skips that; training uses the process group itself.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    actual = torch.distributed.get_world_size()
    if actual != world_size:
        raise RuntimeError(f"torch.distributed sees {actual} ranks, the launcher started {world_size}.")


def limit_collectives(seconds: float) -> None:
    """Let a collective of any group wait for so long. DeepSpeed makes groups of its own, with torch's default."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def make_policy(
    lm: PreTrainedModel,
    *,
    optimizer: Optimizer,
    zero: Zero,
    activation_checkpointing: bool = False,
    fp32_head: bool = False,
) -> Policy:
    """Wrap a loaded model in a DeepSpeed engine; torch.distributed must be up (init_distributed).

    Micro-batches of a step are announced by engine.set_gradient_accumulation_boundary (see raydpo.train.step).
    """
    if activation_checkpointing:
        # Reentrant checkpointing runs hooks twice, which breaks ZeRO-2 and 3.
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Dropout is off, so training mode changes no number; gradient checkpointing works in no other.
    lm.train()
    if zero.stage == 3 and not is_packed(lm):
        _gather_whole_layers(lm)
    model = RewardModel(lm) if is_reward_model(lm) else ScoringModel(lm, fp32_head=fp32_head)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(model, optimizer),
        config=_config(zero, max_grad_norm=optimizer.max_grad_norm, bf16=lm.dtype == torch.bfloat16),
    )
    return Policy(engine, lm, torch.distributed.get_rank(), torch.distributed.get_world_size())


def _gather_whole_layers(lm: PreTrainedModel) -> None:
    """Have ZeRO-3 gather a layer at a time: a Mamba mixer reads its children's weights without calling the children."""
    layers = {type(module) for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)}
    if layers:
        deepspeed.utils.set_z3_leaf_modules(lm, list(layers))


def _optimizer(model: torch.nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    kind = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}[optimizer.name]
    return kind(model.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay)


def _config(zero: Zero, *, max_grad_norm: float, bf16: bool) -> dict[str, Any]:
    """Every key that changes a result is written out: DeepSpeed's defaults move between versions."""
    sharding: dict[str, Any] = {
        "stage": zero.stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "round_robin_gradients": False,
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
        "stage3_param_persistence_threshold": 0,
    }
    if zero.offload_optimizer:
        sharding["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Batches are cut by tokens, not rows: these two only satisfy DeepSpeed's arithmetic.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        # The default checks, but has changed before: a gradient that is not finite must not reach the weights.
        "bf16": {"enabled": bf16, "check_grad_overflow": True, "bf16_master_weights_and_grads": False},
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        # The default is the model's dtype: every reduction would round gradients to bfloat16, the more ranks the more.
        "communication_data_type": "fp32",
        # Sums are divided once, by the number of ranks, after they are added up.
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's optimizers also step on the CPU; no op to compile
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }
