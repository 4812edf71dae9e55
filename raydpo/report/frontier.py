"""The frontier in one figure, as tables, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydpo.evaluate.frontier import (
    BestOf,
    Curves,
    Run,
    Verdict,
    interval_of,
    mean_line,
    points_of,
    pooled,
)
from raydpo.evaluate.stats import Interval
from raydpo.report.best_of_n import BestOfNRecord, Selection, read_best_of_n
from raydpo.report.claims import claims, others
from raydpo.report.frontier_figure import reward_against_kl
from raydpo.report.rendering import Picture, make_picture, render
from raydpo.storage.files import whole_file, write_text
from raydpo.track.say import say

SHARES_AT = (0.5, 1.0, 2.0, 4.0)  # nats


@dataclass(frozen=True)
class Findings:
    """What the page, the JSON file and the terminal tell."""

    seeds: Sequence[int]
    reference: Interval
    comparison: Curves
    optimum: Sequence[tuple[float, float]]  # (KL, reward) by rising KL, the reference first; empty without Best-of-N
    verdicts: Sequence[Verdict]  # of all other methods' points, against the subject's curve
    shares: Mapping[float, Mapping[str, Interval]]  # of what is attainable, by KL and method
    claims: Sequence[str]


def write_frontier(root: Path, runs: Sequence[Run], best: Sequence[Path], *, subject: str, name: str) -> dict[str, Any]:
    """Write frontier.json, frontier.png and frontier.html below `root`, print tables and sentences, return a summary.

    best: the Best-of-N records of the seeds; those that are not there are left out. Raises UserError where nothing can
    be compared yet.
    """
    found = findings(runs, [record for path in best if (record := read_best_of_n(path))], subject)
    write_text(root / "frontier.json", json.dumps(_tree(found), indent=1))
    figure = reward_against_kl(found.comparison, found.reference, found.optimum)
    picture = make_picture("frontier", "True reward against sequence KL, by method", figure)
    with whole_file(root / "frontier.png") as temporary:
        temporary.write_bytes(picture.png)
    write_text(root / "frontier.html", _page(name, picture, found))
    for row in _table(found):
        say("  ".join(f"{cell:24}" for cell in row).rstrip())
    for sentence in found.claims:
        say(sentence)
    say(f"frontier: {root / 'frontier.html'}")
    points = len(found.comparison.points)
    return {"frontier": str(root / "frontier.html"), "points": points, "claims": list(found.claims)}


def findings(runs: Sequence[Run], records: Sequence[BestOfNRecord], subject: str) -> Findings:
    """Everything that the runs, and the Best-of-N of their seeds, say of the subject."""
    reference, points, seeds = points_of(runs)
    comparison = Curves(reference, points, _best_of(records))
    optimum = mean_line([_line(record) for record in records]) if records else []
    shares = {at: _shares(comparison, optimum, at) for at in SHARES_AT} if optimum else {}
    shares = {at: by_method for at, by_method in shares.items() if by_method}
    return Findings(
        seeds=seeds,
        reference=interval_of(reference),
        comparison=comparison,
        optimum=optimum,
        verdicts=[v for other in others(comparison, subject) for v in comparison.verdicts(other, subject)],
        shares=shares,
        claims=claims(comparison, subject, shares),
    )


def _best_of(records: Sequence[BestOfNRecord]) -> list[BestOf]:
    """Best-of-N by each reward and n, its reward pooled over the seeds' records."""
    by_kind: dict[tuple[str, int], list[Selection]] = {}
    for record in records:
        for selection in record.selections:
            by_kind.setdefault((selection.selected_by, selection.n), []).append(selection)
    return [
        BestOf(f"best of n by {reward}", n, same[0].kl_bound, pooled([each.reward for each in same]))
        for (reward, n), same in by_kind.items()
    ]


def _line(record: BestOfNRecord) -> list[tuple[float, float]]:
    return [(0.0, record.reference.mean), *((p.kl.mean, p.reward.mean) for p in record.optimum)]


def _shares(comparison: Curves, optimum: Sequence[tuple[float, float]], at: float) -> dict[str, Interval]:
    found = {method: comparison.share_of_attainable(method, optimum, at) for method in comparison.methods}
    return {method: share for method, share in found.items() if share}


def _table(found: Findings) -> list[list[str]]:
    comparison = found.comparison
    rows = [["method", "strength", "true reward", "sequence KL (nats)"]]
    rows.append(["reference", "", _shown(found.reference, 3), "0"])
    rows += [[p.method, p.strength, _shown(p.reward, 3), _shown(p.kl, 2)] for p in comparison.points]
    rows += [[b.method, b.strength, _shown(b.reward, 3), f"<= {b.kl:.2f}"] for b in comparison.best]
    return rows


def _shown(interval: Interval, digits: int) -> str:
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _tree(found: Findings) -> dict[str, Any]:
    points = [
        {
            "method": point.method,
            "strength": point.strength,
            "reward": asdict(point.reward),
            "kl": asdict(point.kl),
            "reward_by_seed": point.rewards.mean(axis=1).tolist(),
            "kl_by_seed": point.kls.mean(axis=1).tolist(),
            "course": list(point.course),
        }
        for point in found.comparison.points
    ]
    return {
        "seeds": list(found.seeds),
        "reference": asdict(found.reference),
        "points": points,
        "best_of_n": [asdict(each) for each in found.comparison.best],
        "optimum": list(found.optimum),
        "verdicts": [asdict(verdict) for verdict in found.verdicts],
        "shares": {at: {name: asdict(share) for name, share in of.items()} for at, of in found.shares.items()},
        "claims": list(found.claims),
    }


def _page(name: str, picture: Picture, found: Findings) -> str:
    return render(
        "frontier.html.j2",
        name=name,
        seeds=found.seeds,
        said=found.claims,
        table=_table(found),
        verdicts=found.verdicts,
        picture=picture,
    )
