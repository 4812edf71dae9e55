"""How rewards are named in the run file.

vader, length                       functions that come with raydpo: raydpo.reward.functions
package.module:function             a function of one's own: (prompts, completions) -> one number a completion
reward_model:PATH                   a sequence classifier with one label, such as the export of `raydpo reward`
ensemble:PATH,PATH,...              the mean of several of them
implicit:PATH                       beta * log(policy / reference) of a policy that preference training has exported
implicit:PATH?beta=0.1&reference=PATH   the same, where its run cannot be asked for them any more
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from raydpo.errors import UserError


@dataclass(frozen=True)
class FunctionReward:
    """A function of text."""

    name: str


@dataclass(frozen=True)
class ModelReward:
    """One reward model, or the mean of several."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class ImplicitReward:
    """beta * log(policy(y|x) / reference(y|x)), the reward that DPO's optimum stands for (Rafailov et al. 2023, eq. 5).

    None: to be found in what the policy's run has left.
    """

    policy: str
    reference: str | None = None
    beta: float | None = None


RewardKind = FunctionReward | ModelReward | ImplicitReward


def parse_reward(name: str) -> RewardKind:
    """What a name in the run file stands for. Raises UserError for one that is not formed as this file says."""
    kind, _, rest = name.partition(":")
    if kind == "reward_model":
        return ModelReward(_paths(name, rest, least=1, most=1))
    if kind == "ensemble":
        return ModelReward(_paths(name, rest, least=2))
    if kind == "implicit":
        return _implicit(name, rest)
    return FunctionReward(name)


def is_model(name: str) -> bool:
    """Whether models rate, for which a pool is needed, and not a function."""
    return name.partition(":")[0] in ("reward_model", "ensemble", "implicit")


def _paths(name: str, rest: str, *, least: int, most: int | None = None) -> tuple[str, ...]:
    paths = tuple(path for path in rest.split(",") if path)
    if len(paths) < least or (most is not None and len(paths) > most):
        raise UserError(
            f"reward {name!r} names {len(paths)} models; write reward_model:PATH for one, and ensemble:PATH,PATH for "
            "the mean of several."
        )
    if len(set(paths)) < len(paths):
        raise UserError(f"reward {name!r} names a model twice; an ensemble is of different ones.")
    return paths


def _implicit(name: str, rest: str) -> ImplicitReward:
    path, _, settings = rest.partition("?")
    if not path:
        raise UserError(f"reward {name!r} names no export; write implicit:PATH.")
    found = ImplicitReward(path)
    for setting in filter(None, settings.split("&")):
        key, _, value = setting.partition("=")
        if key == "beta":
            found = replace(found, beta=_beta(name, value))
        elif key == "reference" and value:
            found = replace(found, reference=value)
        else:
            raise UserError(
                f"reward {name!r} has the setting {setting!r}; known are beta=NUMBER and reference=PATH, with & "
                "between them."
            )
    return found


def _beta(name: str, value: str) -> float:
    try:
        beta = float(value)
    except ValueError:
        beta = math.nan
    if not (math.isfinite(beta) and beta > 0):
        raise UserError(f"reward {name!r} has beta={value}; it is a number above 0.")
    return beta
