"""How far two judges, a judge and people, or the two orders of one judge agree; and whether a place wins by itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from raydpo.evaluate.stats import Interval, share_interval


@dataclass(frozen=True)
class Agreement:
    """Of two raters over the same comparisons, those that either left unanswered apart; None where none is left."""

    share: Interval | None  # of equal answers
    kappa: float | None  # Cohen's; None where both always say the same one thing, so that chance explains all
    decided: Interval | None  # share of equal answers where neither calls it a tie


@dataclass(frozen=True)
class PositionBias:
    """Whether a judge prefers a place. Without a preference both places win equally often."""

    first: Interval | None  # share of its choices that fell on the first place; None without choices
    chance: float  # two-sided p of an exact sign test over comparisons: how often an unbiased judge would show as much


def agreement(a: Sequence[str | None], b: Sequence[str | None], prompts: Sequence[Hashable]) -> Agreement:
    """Of two raters' categories for the same comparisons, None for an answer that lacks; "tie" is a category.

    Intervals are over prompts. Kappa is (o - e) / (1 - e), o being the share of equal answers and e what raters would
    reach who answer by their own frequencies alone (Cohen 1960).
    """
    both = [(x, y, prompt) for x, y, prompt in zip(a, b, prompts, strict=True) if x is not None and y is not None]
    decided = [each for each in both if "tie" not in each[:2]]
    return Agreement(_share(both), _kappa([(x, y) for x, y, _ in both]), _share(decided))


def position_bias(places: Sequence[Sequence[str | None]], prompts: Sequence[Hashable]) -> PositionBias:
    """places[i]: which place won each time that comparison i was asked: "first", "second", "tie" or None.

    A comparison asked in both orders gives the first place both times, neither, or the second both times; the sign
    test counts those that lean to a side. Asked in one order, which was drawn, every choice counts.
    """
    choices_of = [_choices(asked) for asked in places]
    choices = [(place == "first", prompt) for asked, prompt in zip(choices_of, prompts, strict=True) for place in asked]
    leaning = [asked.count("first") - asked.count("second") for asked in choices_of]
    share = share_interval([hit for hit, _ in choices], [prompt for _, prompt in choices]) if choices else None
    firsts = sum(lean > 0 for lean in leaning)
    return PositionBias(share, sign_test(firsts, sum(lean < 0 for lean in leaning)))


def sign_test(above: int, below: int) -> float:
    """Two-sided p that a fair coin falls as unevenly; 1 where nothing was thrown."""
    n = above + below
    term = 1  # n choose i, exact
    tail = 0
    for i in range(min(above, below) + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n)


def _choices(asked: Sequence[str | None]) -> list[str]:
    return [place for place in asked if place in ("first", "second")]


def _share(both: Sequence[tuple[str, str, Hashable]]) -> Interval | None:
    return share_interval([x == y for x, y, _ in both], [prompt for *_, prompt in both]) if both else None


def _kappa(both: Sequence[tuple[str, str]]) -> float | None:
    n = len(both)
    if not n:
        return None
    observed = sum(x == y for x, y in both) / n
    categories = {category for pair in both for category in pair}
    expected = sum(
        sum(x == category for x, _ in both) * sum(y == category for _, y in both) for category in categories
    ) / (n * n)
    return None if expected == 1 else (observed - expected) / (1 - expected)
