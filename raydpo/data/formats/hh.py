"""Anthropic's HH: two transcripts as text, turns of Human and Assistant, alike up to the last of the assistant."""

from __future__ import annotations

from typing import Any

from raydpo.data.formats.contract import Format, Raw, is_text, lacks
from raydpo.data.messages import short
from raydpo.errors import UserError

HUMAN = "\n\nHuman:"
SPEAKS = "\n\nAssistant:"


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(HUMAN) and SPEAKS in value


def _convert(row: Raw, place: str) -> Raw:
    """The prompt ends with the last `Assistant:`; what follows has its space in front."""
    prompts = []
    for side in ("chosen", "rejected"):
        text = row.get(side)
        if not isinstance(text, str) or SPEAKS not in text:
            raise UserError(f"{place}, column {side!r}, is {short(text)}; a transcript has a turn {SPEAKS!r}.")
        begin = text.rindex(SPEAKS) + len(SPEAKS)
        prompts.append(text[:begin])
        row[side] = text[begin:]
    if prompts[0] != prompts[1]:
        raise UserError(
            f"{place}: the transcripts differ before their last answer, so that the answers are to different prompts, "
            f"{short(prompts[0][-60:])} and {short(prompts[1][-60:])}; remove the row, or set data.max_bad_rows to go "
            "on without such rows."
        )
    row["prompt"] = prompts[0]
    return row


FORMATS = (
    Format(
        "hh",
        "pair",
        "`chosen`, `rejected`, transcripts of `\\n\\nHuman:` and `\\n\\nAssistant:`",
        lambda row: (
            is_text(row.get("chosen"), row.get("rejected"))
            and lacks(row, "prompt")
            and _is_transcript(row["chosen"])
            and _is_transcript(row["rejected"])
        ),
        _convert,
    ),
)
