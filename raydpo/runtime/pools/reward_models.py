"""Rewards that are models, served by an elastic pool of actors. torch is loaded with the models, in the actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import ray
from numpy.typing import NDArray

from raydpo.config.schema import Model, Rating
from raydpo.data.tokens import TokenRow
from raydpo.errors import UserError
from raydpo.reward.contract import Group, RatedGroup
from raydpo.reward.names import ImplicitReward, ModelReward
from raydpo.runtime.pools.elastic import ElasticPool, Words, pool_actor

if TYPE_CHECKING:
    import torch

UNIT_GROUPS = 64  # prompts that an actor rates at once: what its death costs

Kind = ModelReward | ImplicitReward
Members = NDArray[np.float64]  # [C, K]: of C completions, by each of K members of an ensemble
RateRows = Callable[[Sequence[TokenRow]], Members]

_WORDS = Words(
    stage="rating",
    actor="reward actor",
    kept="What was rated is kept; start again once there is room.",
    lighter="a lower rating.tokens_per_batch",
)


class RewardActor:
    """An actor of the pool. It rates in one thread and answers pings in another."""

    def __init__(self, kind: Kind, form: Model, rating: Rating) -> None:
        self._kind = kind
        self._form = form
        self._rating = rating

    @ray.method(concurrency_group="health")
    def ping(self) -> None:
        """Answer, however long a unit takes."""

    def load(self) -> None:
        """Load the models. Not done by __init__, whose errors Ray takes for a crash."""
        import torch

        from raydpo.runtime.cluster.device import granted_device

        torch.set_num_threads(max(1, int(self._rating.pool.cpus)))
        kind = self._kind
        bound = self._rating.tokens_per_batch
        device = granted_device()
        if isinstance(kind, ModelReward):
            self._rate = _load_models(kind, self._form, bound, device)
        else:
            self._rate = _load_implicit(kind, self._form, bound, device)

    def score(self, rows: Sequence[TokenRow]) -> Members:
        """The rewards of the rows' completions, each prompt read once."""
        return self._rate(rows)


class PooledReward:
    """A reward model, an ensemble of them or an implicit reward, as a reward of groups.

    Its actors start with the first groups and stay up until `close`.
    """

    def __init__(self, name: str, kind: Kind, form: Model, rating: Rating) -> None:
        self._name = name
        pool = rating.pool
        start = lambda: pool_actor(RewardActor, pool, kind, form, rating)  # noqa: E731
        self._pool: ElasticPool[list[TokenRow], Members] = ElasticPool(start, pool, _WORDS, stays=True)

    def __call__(self, groups: Sequence[Group]) -> Iterator[list[RatedGroup]]:
        """Rate groups, unit by unit as they are done. Raises UserError for a reward that is not finite."""
        units = [groups[i : i + UNIT_GROUPS] for i in range(0, len(groups), UNIT_GROUPS)]
        rows = [[self._row(group) for group in unit] for unit in units]
        for number, members in self._pool.score(rows):
            yield list(self._rated(units[number], members))

    def close(self) -> None:
        """Take the actors down."""
        self._pool.close()

    def _row(self, group: Group) -> TokenRow:
        if len(group.completion_ids) != len(group.completions):
            raise UserError(
                f"reward {self._name!r} reads token ids, and there is only text here; name a function: vader, length "
                "or package.module:function."
            )
        return TokenRow(b"", list(group.prompt_ids), tuple(list(ids) for ids in group.completion_ids))

    def _rated(self, unit: Sequence[Group], members: Members) -> Iterator[RatedGroup]:
        first = 0
        for group in unit:
            own = members[first : first + len(group.completions)]
            first += len(own)
            if not np.isfinite(own).all():
                raise UserError(
                    f"reward {self._name!r} gave {own[~np.isfinite(own)][0]} for prompt {group.row}, {group.prompt!r}; "
                    "a reward is a finite number. The model's weights are finite, so try model.dtype=float32."
                )
            several = own.tolist() if own.shape[1] > 1 else None
            yield RatedGroup(group, own.mean(axis=1).tolist(), several)


def _load_models(kind: ModelReward, form: Model, bound: int, device: torch.device) -> RateRows:
    """One model: its heads are the members. Several: each of them is one, by the mean of its heads."""
    from raydpo.model.rate import rate_rows
    from raydpo.model.reward_model import load_reward_model

    models = [load_reward_model(path, dtype=form.dtype, device=device) for path in kind.paths]

    def rate(rows: Sequence[TokenRow]) -> Members:
        found = [rate_rows(model, rows, tokens_per_microbatch=bound, device=device).double() for model in models]
        if len(found) == 1:
            return found[0].numpy()
        return np.stack([heads.mean(dim=1).numpy() for heads in found], axis=1)

    return rate


def _load_implicit(kind: ImplicitReward, form: Model, bound: int, device: torch.device) -> RateRows:
    """beta * (log policy - log reference), both models scored as training scores them."""
    from raydpo.model.load import load_model
    from raydpo.model.score import ScoringModel
    from raydpo.reference.scoring import score_rows

    assert kind.reference and kind.beta
    beta = kind.beta
    models = [
        ScoringModel(load_model(path, dtype=form.dtype, device=device), fp32_head=form.fp32_head)
        for path in (kind.policy, kind.reference)
    ]

    def rate(rows: Sequence[TokenRow]) -> Members:
        sums = []
        for model in models:
            values, _ = score_rows(model, rows, tokens_per_microbatch=bound, device=device)
            sums.append([each.sum(dtype=np.float64) for of_row in values for each in of_row])
        policy, reference = np.asarray(sums)
        return beta * (policy - reference)[:, None]

    return rate
