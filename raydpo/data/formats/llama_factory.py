"""LLaMA-Factory: alpaca columns, and sharegpt conversations; both are for chat models, so texts become messages."""

from __future__ import annotations

import json
from typing import Any

from raydpo.data.formats.contract import (
    ASSISTANT,
    USER,
    Format,
    Raw,
    answer,
    as_flag,
    as_turn,
    has,
    is_dicts,
    is_text,
    lacks,
    put,
    said_by,
    system_of,
    take,
    take_dicts,
    with_margin,
)
from raydpo.data.messages import CONTENT, ROLE, short
from raydpo.errors import UserError

_ROLES = {"human": USER, "gpt": ASSISTANT, "observation": "tool", "function_response": "tool"}


def _alpaca(row: Raw, place: str) -> Raw:
    prompt = _instructed(row, place)
    chosen, rejected = answer(take(row, "chosen", place)), answer(take(row, "rejected", place))
    return with_margin(put(row, place, prompt=prompt, chosen=chosen, rejected=rejected))


def _alpaca_kto(row: Raw, place: str) -> Raw:
    prompt = _instructed(row, place)
    completion = answer(take(row, "output", place))
    return put(row, place, prompt=prompt, completion=completion, label=as_flag(take(row, "kto_tag", place)))


def _alpaca_sft(row: Raw, place: str) -> Raw:
    prompt = _instructed(row, place)
    return put(row, place, prompt=prompt, completion=answer(take(row, "output", place)))


def _instructed(row: Raw, place: str) -> list[dict[str, Any]]:
    """The prompt of alpaca columns: system, the rounds of the history, and the instruction with its input below it."""
    prompt = system_of(row)
    history = row.pop("history", None) or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise UserError(f"{place}, column 'history', is {short(history)}; it is a list of [question, answer].")
    for turn in history:
        prompt += [*said_by(USER, turn[0]), *answer(turn[1])]
    instruction = take(row, "instruction", place)
    more = row.pop("input", None)
    if more and is_text(instruction, more):
        instruction = f"{instruction}\n{more}"
    elif more:
        raise UserError(f"{place}, columns 'instruction' and 'input': {short(instruction)}, {short(more)} is no text.")
    return prompt + said_by(USER, instruction)


def _sharegpt(row: Raw, place: str) -> Raw:
    turns = _turns(row, place)
    chosen, rejected = (
        [_message(each, f"{place}, column {side!r},") for each in as_turn(take(row, side, place))]
        for side in ("chosen", "rejected")
    )
    return with_margin(put(row, place, prompt=turns, chosen=chosen, rejected=rejected))


def _sharegpt_kto(row: Raw, place: str) -> Raw:
    turns = _turns(row, place)
    label = as_flag(take(row, "kto_tag", place))
    return put(row, place, prompt=turns[:-1] or "", completion=turns[-1:], label=label)


def _sharegpt_sft(row: Raw, place: str) -> Raw:
    turns = _turns(row, place)
    return put(row, place, prompt=turns[:-1] or "", completion=turns[-1:])


def _turns(row: Raw, place: str) -> list[dict[str, Any]]:
    column = "conversations" if has(row, "conversations") else "messages"
    turns = [_message(each, f"{place}, column {column!r},") for each in take_dicts(row, column, place)]
    return system_of(row) + turns


def _message(turn: Any, place: str) -> dict[str, Any]:
    """A turn {"from", "value"} as a message. A function_call is the assistant's, with the calls that its text lists."""
    if not isinstance(turn, dict) or "from" not in turn or ROLE in turn:
        return turn  # checked as every message is
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = turn["from"]
    if role == "function_call":
        return {ROLE: ASSISTANT, CONTENT: None, "tool_calls": _calls(turn.get("value"), place)} | rest
    return {ROLE: _ROLES.get(role, role) if isinstance(role, str) else role, CONTENT: turn.get("value")} | rest


def _calls(text: Any, place: str) -> list[dict[str, Any]]:
    try:
        calls = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not is_dicts(calls, "name"):
        raise UserError(f'{place} has a function_call {short(text)}; it is {{"name": ..., "arguments": ...}} as JSON.')
    return [{"type": "function", "function": call} for call in calls]


FORMATS = (
    Format(
        "alpaca_kto",
        "unpaired",
        "`instruction`, `input`, `output`, `kto_tag`",
        lambda row: has(row, "instruction", "output", "kto_tag") and lacks(row, "prompt"),
        _alpaca_kto,
    ),
    Format(
        "alpaca",
        "pair",
        "`instruction`, `input`, `chosen`, `rejected`; `system`, `history`",
        lambda row: (
            has(row, "instruction", "chosen", "rejected")
            and lacks(row, "prompt")
            and is_text(row["chosen"], row["rejected"])
        ),
        _alpaca,
    ),
    Format(
        "sharegpt_kto",
        "unpaired",
        "`conversations` or `messages`, `kto_tag`; `system`",
        lambda row: (
            has(row, "kto_tag") and (has(row, "conversations") or has(row, "messages")) and lacks(row, "prompt")
        ),
        _sharegpt_kto,
    ),
    Format(
        "sharegpt",
        "pair",
        "`conversations`, `chosen`, `rejected`; `system`",
        lambda row: has(row, "conversations", "chosen", "rejected") and lacks(row, "prompt"),
        _sharegpt,
    ),
)
FOR_SFT = (
    Format(
        "alpaca", "sft", "`instruction`, `input`, `output`", lambda row: has(row, "instruction", "output"), _alpaca_sft
    ),
    Format("sharegpt", "sft", "`conversations`", lambda row: is_dicts(row.get("conversations")), _sharegpt_sft),
)
