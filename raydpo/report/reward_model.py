"""What the reward stage has measured of its model, for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raydpo.errors import UserError
from raydpo.evaluate.reward_model import VERSION, Bin
from raydpo.evaluate.stats import Interval
from raydpo.report.summary import format_interval


@dataclass(frozen=True)
class OfSource:
    """What is known of the pairs of one source."""

    pairs: int
    accuracy: Interval
    length_rule: Interval


@dataclass(frozen=True)
class RewardEvaluation:
    """The part of `reward/evaluation.json` that the report shows. Intervals are of 95 %, over prompts."""

    made_from: dict[str, Any]
    pairs: int
    accuracy: Interval
    longer_wins: Interval
    shorter_wins: Interval
    expected_calibration_error: float
    bins: list[Bin]
    reward_mean: float
    reward_spread: float
    accuracy_above_length: Interval | None = None  # of one prompt nothing can be said
    by_source: dict[str, OfSource] = field(default_factory=dict)  # empty where all pairs are of one
    disagreement: dict[str, float | None] = field(default_factory=dict)  # empty where there is one head

    @property
    def length_rule(self) -> tuple[str, Interval]:
        """The better of the rules by length, by its name."""
        longer = self.longer_wins.mean >= self.shorter_wins.mean
        return ("longer wins", self.longer_wins) if longer else ("shorter wins", self.shorter_wins)


def read_reward_evaluation(path: Path) -> RewardEvaluation | None:
    """The record; None where there is none or one of another version. Raises UserError for a file that is no record."""
    if not path.exists():
        return None
    try:
        head = _HEAD.validate_json(path.read_bytes())
        return _JSON.validate_json(path.read_bytes()) if head.made_from.get("version") == VERSION else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is not what the reward stage writes ({where}: {first['msg']}); delete it.") from error


def reward_rows(found: RewardEvaluation) -> list[tuple[str, str, str, str]]:
    """Lines of a table, ready to print: source, pairs, accuracy, accuracy of the better rule by length."""
    every = ("all", str(found.pairs), format_interval(found.accuracy, 3), format_interval(found.length_rule[1], 3))
    return [
        every,
        *(
            (source, str(of.pairs), format_interval(of.accuracy, 3), format_interval(of.length_rule, 3))
            for source, of in found.by_source.items()
        ),
    ]


def reward_facts(found: RewardEvaluation) -> dict[str, str]:
    """What is known beside the accuracy, ready to print."""
    facts = {
        "step": f"{found.made_from['step']:,}",
        "calibration error": f"{found.expected_calibration_error:.3f}",
        "rewards": f"{found.reward_mean:.2f} ± {found.reward_spread:.2f}",
    }
    if above := found.accuracy_above_length:
        facts["above the rule by length"] = f"{above.mean:+.3f} [{above.low:+.3f}, {above.high:+.3f}]"
    names = {
        "mean": "heads differ by",
        "accuracy_agreeing": "accuracy where they agree",
        "accuracy_differing": "accuracy where they differ",
    }
    known = {name: found.disagreement.get(key) for key, name in names.items()}
    return facts | {name: f"{value:.3f}" for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class _Head:
    """What files of every version have."""

    made_from: dict[str, Any]


_HEAD = TypeAdapter(_Head)
_JSON = TypeAdapter(RewardEvaluation)
