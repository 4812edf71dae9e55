"""Where the float32 masters and the optimizer's state of each parameter are on this rank, under every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from raydpo.train.engine import Policy


@dataclass(frozen=True)
class ParameterSlice:
    """A range of a flattened parameter whose master weights and optimizer state this rank holds."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int  # of the range, in the flattened parameter
    numel: int
    master: Tensor  # what the optimizer steps, and its key to the state; it may hold many parameters
    offset: int  # of the range, in `master`

    def of(self, values: Tensor) -> Tensor:
        """The view of the range in `master`, or in a tensor of the optimizer's state that lies as `master` does."""
        return values.detach().view(-1)[self.offset : self.offset + self.numel]


def held(policy: Policy) -> list[ParameterSlice]:
    """The slices that this rank holds: whole parameters under stage 0, its part of them under the others."""
    find = {0: _replicated, 1: _partitioned, 2: _partitioned, 3: _sharded}[policy.engine.zero_optimization_stage()]
    return list(find(policy))


def owned(policy: Policy) -> list[ParameterSlice]:
    """The slices that this rank writes. Over all ranks they hold every element once."""
    slices = held(policy)
    if policy.engine.zero_optimization_stage():
        return slices
    # Under stage 0 every rank holds everything, so each writes a part, and all write at once.
    return [cut for each in slices if (cut := _cut(each, policy.rank, policy.world_size)).numel]


def torch_optimizer(policy: Policy) -> torch.optim.Optimizer:
    """The optimizer that holds the state, below DeepSpeed's wrapper where there is one."""
    optimizer = policy.engine.optimizer
    return optimizer.optimizer if policy.engine.zero_optimization_stage() else optimizer


def spread_masters(policy: Policy) -> None:
    """Make the weights of the forward pass those of the masters; all ranks call it."""
    stage = policy.engine.zero_optimization_stage()
    if stage in (1, 2):
        policy.engine.optimizer.update_lp_params()
    if stage == 3:
        parameters = dict(policy.lm.named_parameters())
        for each in held(policy):
            parameters[each.name].ds_tensor.data[: each.numel].copy_(each.of(each.master))
        policy.engine.optimizer.checkpoint_event_epilogue()  # small parameters that every rank keeps whole


def _trained(policy: Policy) -> Iterator[tuple[str, Any]]:
    """The parameters, with the attributes that DeepSpeed has hung on them; tied weights come once."""
    return ((name, parameter) for name, parameter in policy.lm.named_parameters() if parameter.requires_grad)


def _replicated(policy: Policy) -> Iterator[ParameterSlice]:
    """Without sharding the parameter itself is what the optimizer steps."""
    for name, parameter in _trained(policy):
        yield ParameterSlice(name, tuple(parameter.shape), 0, parameter.numel(), parameter, 0)


def _partitioned(policy: Policy) -> Iterator[ParameterSlice]:
    """DeepSpeed flattens all parameters into one tensor and gives each rank an equal piece, cut anywhere."""
    groups = torch_optimizer(policy).param_groups
    for name, parameter in _trained(policy):
        if (piece := parameter._hp_mapping) is None:
            continue  # all of it lies with other ranks
        inside = piece.lp_fragment_address
        place = piece.hp_fragment_address
        [master] = groups[piece.param_group_index]["params"]
        yield ParameterSlice(name, tuple(parameter.shape), inside.start, inside.numel, master, place.start)


def _sharded(policy: Policy) -> Iterator[ParameterSlice]:
    """DeepSpeed cuts each parameter into equal pieces, the last ones padded."""
    optimizer = policy.engine.optimizer
    for name, parameter in _trained(policy):
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = policy.rank * padded
        numel = min(padded, parameter.ds_numel - start)
        if numel > 0:
            master = optimizer.fp32_partitioned_groups_flat[group]
            yield ParameterSlice(name, tuple(parameter.ds_shape), start, numel, master, offset)


def _cut(whole: ParameterSlice, part: int, parts: int) -> ParameterSlice:
    """Part `part`, counted from 0, of a slice in `parts` parts that differ by one element at most."""
    first, last = (whole.numel * p // parts for p in (part, part + 1))
    return replace(whole, start=whole.start + first, numel=last - first, offset=whole.offset + first)
