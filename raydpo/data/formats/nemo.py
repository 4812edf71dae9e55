"""NeMo RL: a conversation in `context`, and completions that each have a rank, of which the lowest is the best."""

from __future__ import annotations

from typing import Any

from raydpo.data.formats.contract import Format, Raw, as_turn, has, is_dicts, lacks, put, said_by, take, take_dicts
from raydpo.data.formats.groups import ranks_in, texts_in


def _convert(row: Raw, place: str) -> Raw:
    context: Any = take(row, "context", place)
    prompt = said_by("user", context) if isinstance(context, str) else context
    group = take_dicts(row, "completions", place)
    completions = [as_turn(value) for value in texts_in(group, "completion", place)]
    return put(row, place, prompt=prompt, completions=completions, ranks=ranks_in(group, "rank", place))


FORMATS = (
    Format(
        "nemo",
        "ranked",
        "`context`, `completions[{rank, completion}]`",
        lambda row: (
            has(row, "context") and lacks(row, "prompt") and is_dicts(row.get("completions"), "rank", "completion")
        ),
        _convert,
    ),
)
