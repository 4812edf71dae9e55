"""What a run file says of how completions are rated, and what a reward's name stands for in the run.

The beta and the reference of an implicit reward are looked for in what the policy's own run has left: its identity
says both, the reference by the digest of its weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raydpo.config.schema import Model, Rating
from raydpo.errors import UserError
from raydpo.model import version
from raydpo.model.directory import model_directory, weights_digest
from raydpo.reward.functions import check_function, function_source
from raydpo.reward.models import check_policies, check_reward_model
from raydpo.reward.names import FunctionReward, ImplicitReward, ModelReward, RewardKind, parse_reward
from raydpo.reward.scores import Scores
from raydpo.train.mark import read_mark
from raydpo.workspace.identity import Identity, read_identity
from raydpo.workspace.layout import Layout

UNKNOWN = "unknown"  # the source of a function that no file defines


@dataclass(frozen=True)
class RewardSettings:
    """What a run file says of how completions are rated, whichever reward it is. May be sent to other processes."""

    layout: Layout
    model: Model  # whose number format the models of rewards are read in
    rating: Rating


def check_reward(settings: RewardSettings, name: str, tokenizer: str) -> None:
    """Raise UserError for a reward that cannot rate what a model with this tokenizer writes. Loads no model."""
    kind = resolve_reward(settings, name)
    if isinstance(kind, FunctionReward):
        check_function(name)
    elif isinstance(kind, ModelReward):
        for path in kind.paths:
            check_reward_model(name, path, tokenizer)
            weights_digest(path)  # reads every number, and is asked for again when the scores are named
    else:
        check_policies(name, _models_of(kind), tokenizer)


def resolve_reward(settings: RewardSettings, name: str) -> RewardKind:
    """What a name stands for; of an implicit reward, beta and reference are known then. Raises UserError where not."""
    kind = parse_reward(name)
    if not isinstance(kind, ImplicitReward):
        return kind
    model_directory(kind.policy)  # a path that is not there is said first
    if kind.beta is None:
        kind = replace(kind, beta=_beta_of(name, kind, _identity_of(name, kind)))
    if kind.reference is None:
        kind = replace(kind, reference=_reference_of(settings, name, kind, _identity_of(name, kind)))
    return kind


def reward_source(settings: RewardSettings, name: str) -> str:
    """A name for what is behind a reward: a digest of the file that defines it, or of its models' weights.

    Raises UserError for a reward that is not there.
    """
    kind = resolve_reward(settings, name)
    if isinstance(kind, FunctionReward):
        return function_source(name) or UNKNOWN
    beta = kind.beta if isinstance(kind, ImplicitReward) else None
    parts = {"beta": beta, "models": [weights_digest(path) for path in _models_of(kind)]}
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def scores_of(settings: RewardSettings, name: str) -> Scores | None:
    """Where rewards of this name are kept; None for a function that nobody can tell from what it was before."""
    kind = resolve_reward(settings, name)
    source = reward_source(settings, name)
    if source == UNKNOWN:
        return None
    identity: dict[str, Any] = {"reward": name if isinstance(kind, FunctionReward) else type(kind).__name__}
    identity["source"] = source
    if not isinstance(kind, FunctionReward):
        identity |= {
            "dtype": settings.model.dtype,
            "fp32_head": settings.model.fp32_head,
            "device": "cuda" if settings.rating.pool.gpus else "cpu",
            "scoring_version": version.VERSION,
        }
    return Scores(Path(settings.rating.store or settings.layout.scores), identity)


def _models_of(kind: ModelReward | ImplicitReward) -> list[str]:
    if isinstance(kind, ModelReward):
        return list(kind.paths)
    assert kind.reference, "resolve has found it"
    return [kind.policy, kind.reference]


def _identity_of(name: str, kind: ImplicitReward) -> Identity:
    """The identity of the training that the policy's mark names, from the directory where its run keeps it."""
    export = model_directory(kind.policy).absolute()
    mark = read_mark(export)
    directory = export.parent.parent / "train"  # beside exports/, see Layout
    identity = read_identity(directory) if mark else None
    if mark is None or identity is None or identity.digest != mark.identity:
        raise UserError(
            f"reward {name!r}: {kind.policy} does not say how it was trained (it has no raydpo.json that {directory} "
            f"answers to); say it: implicit:{kind.policy}?beta=NUMBER&reference=PATH."
        )
    return identity


def _beta_of(name: str, kind: ImplicitReward, identity: Identity) -> float:
    beta = (identity.objective or {}).get("beta")
    if not isinstance(beta, float | int) or beta <= 0:
        raise UserError(
            f"reward {name!r}: the training of {kind.policy} had no single beta; say it: "
            f"implicit:{kind.policy}?beta=NUMBER."
        )
    return float(beta)


def _reference_of(settings: RewardSettings, name: str, kind: ImplicitReward, identity: Identity) -> str:
    """The model with the weights of the policy's reference: this run's own, or the sft export of the policy's run."""
    layout = settings.layout
    run = model_directory(kind.policy).absolute().parent.parent
    candidates = dict.fromkeys((layout.reference_model, layout.start_model, str(run / "sft" / "export")))
    for path in candidates:
        if (Path(path) / "config.json").exists() and weights_digest(path) == identity.reference_weights:
            return path
    raise UserError(
        f"reward {name!r}: the reference of {kind.policy} is none of {', '.join(candidates)}; say where it is: "
        f"implicit:{kind.policy}?reference=PATH."
    )
