"""Which claims about a method hold, in sentences made from intervals, whichever way they fall."""

from __future__ import annotations

from collections.abc import Mapping

from raydpo.evaluate.frontier import Curves, Decision, Neighbours, Verdict
from raydpo.evaluate.stats import Interval


def claims(comparison: Curves, subject: str, shares: Mapping[float, Mapping[str, Interval]]) -> list[str]:
    """What holds of the subject by itself, against each other method, and of what is attainable.

    shares: by KL in nats and method, see Curves.share_of_attainable.
    """
    said = [monotone(comparison.order(subject), subject)]
    said += [against(comparison.verdicts(other, subject), subject, other) for other in others(comparison, subject)]
    for kl, by_method in shares.items():
        parts = [f"{name} {_percent(share)}" for name, share in by_method.items()]
        said.append(f"Of the reward that is attainable at a KL of {kl:g} nats, reached: {', '.join(parts)}.")
    return [sentence for sentence in said if sentence]


def others(comparison: Curves, subject: str) -> list[str]:
    """All methods but the subject."""
    return [method for method in comparison.methods if method != subject]


def monotone(order: Neighbours, subject: str) -> str:
    """Whether KL and reward rise from strength to strength; empty for a method with one point."""
    if not order.pairs:
        return ""
    steps = [f"{nearer} to {farther}" for nearer, farther in order.pairs]
    kl = sum(difference.low > 0 for difference in order.kl)
    reward = sum(difference.low > 0 for difference in order.reward)
    fallen = [step for step, each in zip(steps, order.reward, strict=True) if each.high < 0]
    whole = "is monotone" if kl == reward == len(steps) else "is not shown to be monotone"
    falls = f" The reward falls from {', '.join(fallen)}." if fallen else ""
    return (
        f"{subject} {whole} in its strength: from the one nearest the reference outwards ({', '.join(steps)}) the KL "
        f"rises beyond doubt at {kl} of {len(steps)} steps, and the reward at {reward}.{falls}"
    )


def against(verdicts: list[Verdict], subject: str, other: str) -> str:
    """How many points of the other method lie below the subject's curve, and which."""
    decisions = {verdict.decision for verdict in verdicts}
    if decisions == {"below"}:
        whole = f"{subject} dominates {other}"
    elif decisions == {"above"}:
        whole = f"{other} dominates {subject}"
    else:
        whole = f"Neither of {subject} and {other} dominates the other beyond doubt"
    words: tuple[Decision, ...] = ("below", "above", "not decided")
    parts = []
    for word in words:
        group = [verdict for verdict in verdicts if verdict.decision == word]
        if group:
            parts.append(f"{len(group)} {word} ({', '.join(map(_figures, group))})")
    return f"{whole}. Points of {other} against what {subject} reaches at their KL: {'; '.join(parts)}."


def _figures(verdict: Verdict) -> str:
    """The point less the curve."""
    gap = verdict.gap
    where = f"{verdict.strength} at {verdict.kl:.2f} nats" if verdict.strength else f"at {verdict.kl:.2f} nats"
    return f"{where}: {-gap.mean:+.3f} [{-gap.high:+.3f}, {-gap.low:+.3f}]"


def _percent(share: Interval) -> str:
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"
