"""What Best-of-N is worth, as a table, in words and as a JSON file; and how far the attainable optimum is from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from raydpo.errors import UserError
from raydpo.evaluate.records import Evaluation
from raydpo.evaluate.stats import Interval, mean_interval
from raydpo.rollout.best_of_n import (
    Optimum,
    attainable_reward,
    expected_best,
    kl_bound,
    measured_kl,
    optimum_line,
    strict_kl,
)
from raydpo.storage.files import whole_file

VERSION = 1  # of the file, and of how its numbers come about

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """What the best of n by one reward is worth. KLs are to the reference, in nats a completion."""

    selected_by: str
    n: int
    kl_bound: float  # log n - (n - 1)/n: it is never more
    kl: Interval  # as the samples show it, see raydpo.rollout.best_of_n.measured_kl
    kl_shown_at_most: float  # by so many samples, were no two rewards of a prompt equal
    reward: Interval  # the true one, of what is kept
    attainable: float | None  # the true reward that π* has at this KL; None beyond the line's end


@dataclass(frozen=True)
class OptimumPoint:
    """π* ∝ π_ref · exp(r / beta) for the true reward r."""

    beta: float
    reward: Interval
    kl: Interval  # nats
    effective: float  # samples of a prompt that its figures rest on, on average


@dataclass(frozen=True)
class BestOfNRecord:
    """Everything that the bestofn stage found. Intervals are of 95 %, over prompts."""

    made_from: dict[str, Any]
    true_reward: str
    prompts: int
    samples: int  # of each prompt
    reference: Interval  # true reward of the samples as they come
    selections: list[Selection]  # by reward, then by rising n
    optimum: list[OptimumPoint]  # by falling beta


def tabulate(
    rewards: Mapping[str, Floats],
    prompts: Sequence[str],
    *,
    true_reward: str,
    selecting: Sequence[str],
    ns: Sequence[int],
    made_from: Mapping[str, Any],
) -> BestOfNRecord:
    """The record out of [P, M] rewards by their name, the true one and those that select among them.

    A prompt that comes twice is one group of two. Raises ValueError for fewer than two different prompts.
    """
    true = rewards[true_reward]
    line = optimum_line(true)

    def interval(values: Floats) -> Interval:
        return mean_interval(values.tolist(), prompts)

    return BestOfNRecord(
        made_from=dict(made_from),
        true_reward=true_reward,
        prompts=true.shape[0],
        samples=true.shape[1],
        reference=interval(true.mean(axis=1)),
        selections=[
            _selection(name, n, rewards[name], true, line, prompts) for name in selecting for n in sorted(set(ns))
        ],
        optimum=[
            OptimumPoint(point.beta, interval(point.reward), interval(point.kl), float(point.effective.mean()))
            for point in line
        ],
    )


def write_best_of_n(record: BestOfNRecord, path: Path) -> None:
    """Write the record as JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(_JSON.dump_json(record, indent=1))


def read_best_of_n(path: Path) -> BestOfNRecord | None:
    """The record; None where there is none or one of another version. Raises UserError for a file that is no record."""
    if not path.exists():
        return None
    try:
        head = _HEAD.validate_json(path.read_bytes())
        if head.made_from.get("record_version") != VERSION:
            return None
        return _JSON.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is not what bestofn writes ({where}: {first['msg']}); delete it.") from error


def best_of_n_rows(record: BestOfNRecord) -> list[tuple[str, str, str, str, str, str]]:
    """Lines of a table, ready to print: the reward that selects, N, bound, KL, true reward, reward of the optimum."""
    return [
        (
            row.selected_by,
            str(row.n),
            f"{row.kl_bound:.3f}",
            _interval(row.kl),
            _interval(row.reward),
            "" if row.attainable is None else f"{row.attainable:.3f}",
        )
        for row in record.selections
    ]


def best_of_n_table(record: BestOfNRecord) -> str:
    """The table that the terminal shows, with 95 % intervals in brackets, and a line on the optimum."""
    head = ("selected by", "N", "KL ≤", "KL measured", f"{record.true_reward} reward", "at most")
    rows = [head, *best_of_n_rows(record)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        [
            f"Best-of-N: {record.prompts} prompts, {record.samples} samples of each; the reference itself has a "
            f"{record.true_reward} reward of {_interval(record.reference)}",
            *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
            optimum_in_words(record),
        ]
    )


def optimum_in_words(record: BestOfNRecord) -> str:
    """Where the attainable optimum ends, and why."""
    if not record.optimum:
        return "The optimum π* ∝ π_ref · exp(r/β) does not show: too few samples, or rewards that are all equal."
    last = record.optimum[-1]
    return (
        f"At most: the true reward of π* ∝ π_ref · exp(r/β) at the same KL, from the same samples, to a KL of "
        f"{last.kl.mean:.2f} (reward {last.reward.mean:.3f}); beyond it too few of them would stand for π*."
    )


def draws_from_the_same(record: BestOfNRecord, evaluation: Evaluation) -> bool:
    """Whether an evaluation asked the same prompts in the same way, by the same reward and against the same model."""
    origin = evaluation.made_from
    return (
        record.made_from["weights"] == origin.reference
        and record.made_from["contents"] == origin.prompts
        and record.made_from["decoding"] == origin.decoding.named()
        and record.made_from["rewards"][record.true_reward] == origin.scorer_source
        and record.true_reward == origin.scorer
        and evaluation.sequence_kl is not None
    )


@dataclass(frozen=True)
class _Head:
    """What files of every version have."""

    made_from: dict[str, Any]


_HEAD = TypeAdapter(_Head)
_JSON = TypeAdapter(BestOfNRecord)


def _selection(
    name: str, n: int, selecting: Floats, true: Floats, line: Sequence[Optimum], prompts: Sequence[str]
) -> Selection:
    kl = mean_interval(measured_kl(selecting, n).tolist(), prompts)
    return Selection(
        selected_by=name,
        n=n,
        kl_bound=kl_bound(n),
        kl=kl,
        kl_shown_at_most=strict_kl(selecting.shape[1], n),
        reward=mean_interval(expected_best(selecting, true, n).tolist(), prompts),
        attainable=attainable_reward(true, line, kl.mean),
    )


def _interval(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
