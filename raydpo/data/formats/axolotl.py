"""Axolotl's types of pairs, chatml and chat_template: a question in one of several columns, and two answers as text."""

from __future__ import annotations

from raydpo.data.formats.contract import (
    Format,
    Raw,
    as_turn,
    asked,
    has,
    is_dicts,
    is_text,
    lacks,
    put,
    system_of,
    take,
    with_margin,
)
from raydpo.errors import UserError

_QUESTIONS = ("question", "instruction", "input", "prompt")  # intel, argilla, icr, ultra and prompt_pairs


def _convert(row: Raw, place: str) -> Raw:
    chosen, rejected = (as_turn(take(row, _column(row, side), place)) for side in ("chosen", "rejected"))
    if has(row, "messages"):
        prompt = [*system_of(row), *_turns(row, place)]
    else:
        question = next((name for name in _QUESTIONS if has(row, name)), _QUESTIONS[0])
        prompt = asked(row, take(row, question, place))
    return with_margin(put(row, place, prompt=prompt, chosen=chosen, rejected=rejected))


def _turns(row: Raw, place: str) -> list[object]:
    turns = take(row, "messages", place)
    if not isinstance(turns, list):
        raise UserError(f"{place}, column 'messages', is no list of messages.")
    return turns


def _column(row: Raw, side: str) -> str:
    return f"{side}_response" if has(row, f"{side}_response") else side


def _matches(row: Raw) -> bool:
    if has(row, "messages", "chosen", "rejected"):
        return isinstance(row["chosen"], dict) and isinstance(row["rejected"], dict) and is_dicts(row["messages"])
    if has(row, "chosen_response", "rejected_response"):
        return any(has(row, name) for name in _QUESTIONS) and lacks(row, "chosen", "rejected")
    there = has(row, "chosen", "rejected") and lacks(row, "prompt") and is_text(row["chosen"], row["rejected"])
    return there and (has(row, "question") or has(row, "system", "input"))


FORMATS = (
    Format(
        "axolotl",
        "pair",
        "`question`, `instruction`, `input` or `prompt`, `chosen`/`chosen_response`, `rejected`/`rejected_response`; "
        "`system`; or `messages` with `chosen{}` and `rejected{}`",
        _matches,
        _convert,
    ),
)
