"""What a reward model is worth on pairs that it was not trained on: accuracy, by source too, calibration, length rules.

No torch: the report reads what is found here.

Legend: P pairs, K heads.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydpo.evaluate.stats import mean_interval, paired_difference, share_interval

VERSION = 2  # raise it whenever a figure of `measure` gets another meaning
BINS = 10  # of equal width, for the confidences from 0.5 to 1
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class RewardedPairs:
    """Pairs of completions with their rewards; the better one is known."""

    prompts: Sequence[Hashable]  # of each pair
    better: Floats  # [P, K]
    worse: Floats  # [P, K]
    better_tokens: Floats  # [P]
    worse_tokens: Floats  # [P]
    sources: Sequence[str]  # of each pair: where its row comes from

    @property
    def margins(self) -> Floats:
        """By how much the better completion has the higher reward, [P]: of the mean over the heads."""
        margins: Floats = (self.better - self.worse).mean(axis=1)
        return margins

    @property
    def right(self) -> Bools:
        """Whether the better completion has the higher reward, [P]; a tie is wrong."""
        return self.margins > 0


@dataclass(frozen=True)
class Bin:
    """Pairs of which the model is about equally sure."""

    low: float
    high: float
    pairs: int
    confidence: float | None  # the mean probability that it gives the completion with the higher reward; None: no pairs
    accuracy: float | None  # how often that one is the better


def measure(pairs: RewardedPairs) -> dict[str, Any]:
    """Every figure, ready for JSON; intervals are of 95 %, with the prompts as independent groups.

    The rules by length are what a reward model has to be better than: on the same pairs, equal lengths count as wrong.
    """
    right = pairs.right
    longer = pairs.better_tokens > pairs.worse_tokens
    shorter = pairs.better_tokens < pairs.worse_tokens
    better_rule = longer if longer.mean() >= shorter.mean() else shorter
    bins = reliability(pairs.margins, right)
    every = np.concatenate([pairs.better, pairs.worse]).mean(axis=1)
    figures: dict[str, Any] = {
        "pairs": len(right),
        "accuracy": asdict(share_interval(right.tolist(), pairs.prompts)),
        "longer_wins": asdict(share_interval(longer.tolist(), pairs.prompts)),
        "shorter_wins": asdict(share_interval(shorter.tolist(), pairs.prompts)),
        "expected_calibration_error": calibration_error(bins),
        "bins": [asdict(each) for each in bins],
        "reward_mean": float(every.mean()),
        "reward_spread": float(every.std()),
        "chosen": float(pairs.better.mean()),
        "rejected": float(pairs.worse.mean()),
    }
    if len(set(pairs.prompts)) > 1:
        gain = paired_difference(better_rule.astype(float).tolist(), right.astype(float).tolist(), pairs.prompts)
        figures["accuracy_above_length"] = asdict(gain)
        figures["margin"] = asdict(mean_interval(pairs.margins.tolist(), pairs.prompts))
    if len(set(pairs.sources)) > 1:
        figures["by_source"] = by_source(pairs, right, better_rule)
    if pairs.better.shape[1] > 1:
        figures["disagreement"] = disagreement(pairs)
    return figures


def by_source(pairs: RewardedPairs, right: Bools, length_rule: Bools) -> dict[str, dict[str, Any]]:
    """Of each source, sorted: its pairs, the accuracy, and that of a rule by length, the same one for all sources."""
    found = {}
    for source in sorted(set(pairs.sources)):
        here = [place for place, each in enumerate(pairs.sources) if each == source]
        prompts = [pairs.prompts[place] for place in here]
        found[source] = {
            "pairs": len(here),
            "accuracy": asdict(share_interval(right[here].tolist(), prompts)),
            "length_rule": asdict(share_interval(length_rule[here].tolist(), prompts)),
        }
    return found


def reliability(margins: Floats, right: Bools) -> list[Bin]:
    """How sure the model was against how often it was right, in bins of confidence.

    By Bradley and Terry the completion with the higher reward is the better one with probability σ(|margin|).
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    edges = np.linspace(0.5, 1.0, BINS + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        here = place == number
        some = bool(here.any())
        bins.append(
            Bin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                pairs=int(here.sum()),
                confidence=float(confidence[here].mean()) if some else None,
                accuracy=float(right[here].mean()) if some else None,
            )
        )
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: |accuracy − confidence| of every bin, weighted by its pairs (Guo et al. 2017)."""
    gaps = [
        each.pairs * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    ]
    return sum(gaps) / sum(each.pairs for each in bins)


def disagreement(pairs: RewardedPairs) -> dict[str, float | None]:
    """How far the heads of an ensemble differ on a pair, and whether they differ more where the model is wrong.

    The difference is the standard deviation of the margin over the heads. accuracy_agreeing and accuracy_differing are
    those of the half of the pairs on which the heads agree more, and of the other half.
    """
    spread = (pairs.better - pairs.worse).std(axis=1, ddof=1)
    right = pairs.right
    order = np.argsort(spread, kind="stable")
    half = len(order) // 2
    return {
        "mean": float(spread.mean()),
        "where_right": _mean(spread[right]),
        "where_wrong": _mean(spread[~right]),
        "accuracy_agreeing": _mean(right[order[:half]]),
        "accuracy_differing": _mean(right[order[half:]]),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
