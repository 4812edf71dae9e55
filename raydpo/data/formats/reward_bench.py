"""RewardBench 2: several answers that are right and several that are wrong. Those of version 1 are plain pairs."""

from __future__ import annotations

from raydpo.data.formats.contract import Format, Raw, answer, asked, is_text, is_texts, put, take
from raydpo.data.messages import short
from raydpo.errors import UserError


def _convert(row: Raw, place: str) -> Raw:
    """Every right answer is better than every wrong one; among themselves they tie."""
    prompt = asked(row, take(row, "prompt", place))
    sides = [take(row, side, place) for side in ("chosen", "rejected")]
    sides = [[side] if isinstance(side, str) else side for side in sides]
    for side in sides:
        if not is_texts(side):
            raise UserError(f"{place} has {short(side)} in chosen or rejected; both are lists of texts.")
    completions = [answer(text) for side in sides for text in side]
    ranks = [rank for rank, side in enumerate(sides, start=1) for _ in side]
    return put(row, place, prompt=prompt, completions=completions, ranks=ranks)


FORMATS = (
    Format(
        "reward_bench",
        "ranked",
        "`prompt`, `chosen[]`, `rejected[]`",
        lambda row: is_text(row.get("prompt")) and is_texts(row.get("chosen")) and is_texts(row.get("rejected")),
        _convert,
    ),
)
