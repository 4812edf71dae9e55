"""ms-swift: a conversation in `messages`, and beside it another answer, another conversation, or a label."""

from __future__ import annotations

from raydpo.data.formats.contract import (
    Format,
    Raw,
    answer,
    as_flag,
    has,
    lacks,
    put,
    same_prompt,
    system_of,
    take,
    take_dicts,
)
from raydpo.data.messages import short
from raydpo.errors import UserError


def _pair(row: Raw, place: str) -> Raw:
    turns = take_dicts(row, "messages", place)
    other = row.pop("rejected_response", None)
    if other is None:
        prompt, chosen, rejected = same_prompt(turns, take_dicts(row, "rejected_messages", place), place)
    else:
        if has(row, "rejected_messages"):
            raise UserError(f"{place} has rejected_response and rejected_messages; keep one of them.")
        if not isinstance(other, str | list):
            raise UserError(f"{place}, column 'rejected_response', is {short(other)}; it is a text.")
        prompt, chosen = turns[:-1], turns[-1:]
        rejected = answer(other) if isinstance(other, str) else other
    return put(row, place, prompt=[*system_of(row), *prompt] or "", chosen=chosen, rejected=rejected)


def _labelled(row: Raw, place: str) -> Raw:
    turns = take_dicts(row, "messages", place)
    label = as_flag(take(row, "label", place))
    return put(row, place, prompt=[*system_of(row), *turns[:-1]] or "", completion=turns[-1:], label=label)


FORMATS = (
    Format(
        "ms_swift",
        "pair",
        "`messages`, `rejected_response` or `rejected_messages`",
        lambda row: (
            has(row, "messages")
            and (has(row, "rejected_response") or has(row, "rejected_messages"))
            and lacks(row, "prompt", "chosen")
        ),
        _pair,
    ),
    Format(
        "ms_swift_kto",
        "unpaired",
        "`messages`, `label`",
        lambda row: has(row, "messages", "label") and lacks(row, "prompt", "chosen", "completion"),
        _labelled,
    ),
)
