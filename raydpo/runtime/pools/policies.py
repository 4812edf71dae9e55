"""Policies at work for evaluations: an elastic pool of actors that score rows, and measure how far a policy has moved.

torch is loaded with the models, in the actors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import ray
from numpy.typing import NDArray

from raydpo.config.schema import Model, Pool
from raydpo.data.tokens import TokenRow
from raydpo.runtime.pools.elastic import ElasticPool, Words, pool_actor

if TYPE_CHECKING:
    from raydpo.model.batch import Batch
    from raydpo.model.divergence import Predictions
    from raydpo.model.score import ScoringModel

ROWS_PER_UNIT = 64  # that are scored at once: what an actor's death costs
PATIENCE_S = 3600.0  # for a first actor: an evaluation that came before may have the room for as long as it takes

TokenLogps = list[list[NDArray[np.float32]]]  # by row and completion
Kls = NDArray[np.float64]  # [rows]

_WORDS = Words(
    stage="evaluate",
    actor="policy scorer",
    kept="What was sampled and rated is kept; start again once there is room.",
    lighter="a lower evaluate.tokens_per_batch",
)


@dataclass(frozen=True)
class Held:
    """A model as an actor holds it."""

    path: str
    dtype: str  # of its weights
    fp32_head: bool
    computes: str  # in which its forward pass is made; its weights are cast to it


@dataclass(frozen=True)
class LogpsOf:
    """Asks for the token log-probs of rows."""

    model: Held
    rows: Sequence[TokenRow]
    tokens_per_batch: int


@dataclass(frozen=True)
class KlOf:
    """Asks for the KL of a policy to the reference along each row, which has one completion."""

    policy: Held
    reference: Held
    rows: Sequence[TokenRow]
    tokens_per_batch: int


class PolicyScorer:
    """An actor of the pool. It holds one model at a time, works in one thread and answers pings in another."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._held: tuple[Held, ScoringModel] | None = None

    @ray.method(concurrency_group="health")
    def ping(self) -> None:
        """Answer, however long a unit takes."""

    def load(self) -> None:
        """Take the device. Which models are wanted the units say."""
        import torch

        from raydpo.runtime.cluster.device import granted_device

        torch.set_num_threads(max(1, int(self._pool.cpus)))
        self._device = granted_device()

    def score(self, unit: LogpsOf | KlOf) -> TokenLogps | Kls:
        """What a unit asks for."""
        return self._logps(unit) if isinstance(unit, LogpsOf) else self._kl(unit)

    def _logps(self, unit: LogpsOf) -> TokenLogps:
        from raydpo.reference.scoring import score_rows

        model = self._model(unit.model)
        found, _ = score_rows(model, unit.rows, tokens_per_microbatch=unit.tokens_per_batch, device=self._device)
        return found

    def _kl(self, unit: KlOf) -> Kls:
        from raydpo.model.divergence import kl_of_rows, predict

        def both(batches: Sequence[Batch]) -> tuple[Predictions, Predictions]:
            # The model that is there already comes first, so that a next unit has one to load and not two.
            order = [unit.policy, unit.reference]
            if self._held and self._held[0] == unit.reference:
                order.reverse()
            found = {each: predict(self._model(each), batches) for each in order}
            return found[unit.policy], found[unit.reference]

        return kl_of_rows(both, unit.rows, tokens_per_microbatch=unit.tokens_per_batch, device=self._device)

    def _model(self, asked: Held) -> ScoringModel:
        import torch

        from raydpo.model.load import load_model
        from raydpo.model.score import ScoringModel

        if self._held and self._held[0] == asked:
            return self._held[1]
        self._held = None  # two do not fit at once
        lm = load_model(asked.path, dtype=asked.dtype, device=self._device)
        model = ScoringModel(lm, fp32_head=asked.fp32_head)
        if asked.computes != asked.dtype:  # a cast to the same would round what the model keeps in float32
            model = model.to(getattr(torch, asked.computes))
        self._held = (asked, model)
        return model


class PolicyScorers:
    """The pool as evaluations ask it. Its actors start with the first rows and stay up until `close`."""

    def __init__(self, pool: Pool, form: Model, tokens_per_batch: int, kind: type[PolicyScorer] = PolicyScorer) -> None:
        """form: the number format of the run's models; kind: of the actors."""
        self._parts = pool.max_actors
        self._form = form
        self._bound = tokens_per_batch
        start = lambda: pool_actor(kind, pool, pool)  # noqa: E731
        self._pool: ElasticPool[LogpsOf | KlOf, TokenLogps | Kls] = ElasticPool(
            start, pool, _WORDS, stays=True, patience=PATIENCE_S
        )

    def logps(self, model: str, rows: Sequence[TokenRow]) -> TokenLogps:
        """Token log-probs of every completion in nats, by row, as training scores them."""
        held = self._held(model)
        pieces = [rows[first : first + ROWS_PER_UNIT] for first in range(0, len(rows), ROWS_PER_UNIT)]
        found = dict(self._pool.score([LogpsOf(held, piece, self._bound) for piece in pieces]))
        return [of_row for number in range(len(pieces)) for of_row in found[number]]

    def kl(self, policy: str, reference: str, rows: Sequence[TokenRow]) -> Kls:
        """The KL to the reference, summed over the tokens of each row's completion, in nats.

        Of the weights as the run's number format holds them, but computed in float32, see raydpo.model.divergence.
        """
        ours, theirs = (replace(self._held(path), computes="float32") for path in (policy, reference))
        # As many units as actors: each costs the loading of a model.
        pieces = [rows[part :: self._parts] for part in range(min(self._parts, len(rows)))]
        values = np.empty(len(rows))
        for number, found in self._pool.score([KlOf(ours, theirs, piece, self._bound) for piece in pieces]):
            values[number :: self._parts] = found
        return values

    def close(self) -> None:
        """Take the actors down."""
        self._pool.close()

    def _held(self, path: str) -> Held:
        return Held(path, self._form.dtype, self._form.fp32_head, computes=self._form.dtype)


@contextmanager
def policy_scorers(pool: Pool, form: Model, tokens_per_batch: int) -> Iterator[PolicyScorers]:
    """A pool for the length of the block."""
    scorers = PolicyScorers(pool, form, tokens_per_batch)
    try:
        yield scorers
    finally:
        scorers.close()
