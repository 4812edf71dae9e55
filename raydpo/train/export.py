"""The export: safetensors, configuration and tokenizer, as transformers and vLLM load them."""

from __future__ import annotations

import shutil
from pathlib import Path

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raydpo.model.batch import Batch
from raydpo.model.load import load_model
from raydpo.model.reward_model import is_reward_model, own_rewards, save_reward_model
from raydpo.model.score import ScoringModel
from raydpo.storage.files import tree_to_disk
from raydpo.storage.space import room_for
from raydpo.train.checkpoint.untrained import untrained_tensors
from raydpo.train.diverged import diverged
from raydpo.train.engine import Policy
from raydpo.train.mark import mark_export, remove_export

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}  # nats per token; a wrong weight costs far more
# Of a reward, as a share of the largest one where that is above 1: transformers rounds rewards to the model's dtype.
REWARD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def export_policy(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    compare_on: Batch,
    identity: str,
    step: int,
) -> Path:
    """Write the model to `directory`, reload it and compare what it says of `compare_on`; all ranks call it.

    That is log-probs of a policy, and of a reward model the rewards, which transformers' own class has to give.

    identity and step, the run's and the steps done, go into the export's mark. The directory appears under its name
    only when the comparison has passed, and replaces an earlier export. Raises RuntimeError when it fails, and
    UserError, on rank 0 alone, for weights that are not finite, when there is no room, or where something stands that
    is no export.
    """
    weights = _gather(policy)
    expected = policy.engine.module.figures(compare_on)
    if policy.rank == 0:
        # Buffers are not looked at: they may be infinite, as bounds that nothing reaches.
        if broken := next((name for name, weight in weights.items() if not weight.isfinite().all()), None):
            raise diverged(step, broken)
        buffers = {name: tensor for name, tensor in untrained_tensors(policy.lm).items() if name not in weights}
        state = weights | {name: buffer.to("cpu", copy=True) for name, buffer in buffers.items()}
        temporary = directory.with_name(f".{directory.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with room_for(sum(tensor.nbytes for tensor in state.values()), temporary):
            if is_reward_model(policy.lm):
                save_reward_model(policy.lm, tokenizer, temporary, state, identity=identity, step=step)
            else:
                policy.lm.save_pretrained(temporary, state_dict=state)
                tokenizer.save_pretrained(temporary)
            mark_export(temporary, identity=identity, step=step)
            tree_to_disk(temporary)
        compare = _compare_rewards if is_reward_model(policy.lm) else _compare
        compare(temporary, expected, compare_on, policy)
        remove_export(directory)
        temporary.rename(directory)
    torch.distributed.barrier()
    return directory


def _gather(policy: Policy) -> dict[str, Tensor]:
    """The whole weights on rank 0's CPU, empty elsewhere; parameter by parameter, so no rank holds two models."""
    whole: dict[str, Tensor] = {}
    for name, parameter in policy.lm.named_parameters(remove_duplicate=True):
        with deepspeed.zero.GatheredParameters([parameter], enabled=policy.engine.zero_optimization_stage() == 3):
            if policy.rank == 0:
                whole[name] = parameter.detach().to("cpu", copy=True)
    return whole


def _compare(path: Path, expected: Tensor, compare_on: Batch, policy: Policy) -> None:
    dtype = policy.lm.dtype
    lm = load_model(str(path), dtype=_name(dtype), device=expected.device)
    reloaded = ScoringModel(lm, fp32_head=policy.engine.module.head.form.fp32)
    gap = float((reloaded.token_logps(compare_on) - expected).abs().max())
    if not gap <= TOLERANCE[dtype]:
        raise RuntimeError(f"the export at {path} differs from the policy by {gap:.4g} nats per token.")


def _compare_rewards(path: Path, expected: Tensor, compare_on: Batch, policy: Policy) -> None:
    dtype = policy.lm.dtype
    gap = float((own_rewards(path, compare_on, dtype=_name(dtype)) - expected).abs().max())
    if not gap <= REWARD_TOLERANCE[dtype] * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"rewards of transformers from the export at {path} differ from the model's by {gap:.4g}.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
