"""What columns of a row tell its chat template beside the messages: a system message, tools, arguments of its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from raydpo.data.meaning import is_nothing
from raydpo.data.messages import CONTENT, ROLE, Messages, Value, as_messages, is_chat, plain, short
from raydpo.errors import UserError

SYSTEM = "system"
TOOLS = "tools"
KWARGS = "chat_template_kwargs"
COLUMNS = (SYSTEM, TOOLS, KWARGS)
# What the template is told by us.
_OURS = {"messages", "conversation", "tools", "tokenize", "add_generation_prompt", "continue_final_message"}
_OURS |= {"chat_template", "return_dict", "return_tensors", "strftime_now", "documents", "padding", "truncation"}


def with_context(row: dict[str, Any], raw: Mapping[str, Any], ignore: Collection[str], place: str) -> list[str]:
    """Put what the columns say into a row of chat messages, in place; returns the columns that are read.

    A row of text or ids has no template, and reads none of them. UserError for values of another shape.
    """
    if not any(is_chat(value) for value in _values(row)):
        return []
    given = [column for column in COLUMNS if column not in ignore and not is_nothing(raw.get(column))]
    if SYSTEM in given:
        _put_in_front(row, raw[SYSTEM], f"{place}, column {SYSTEM!r},")
    if TOOLS in given:
        row[TOOLS] = _tools(raw[TOOLS], f"{place}, column {TOOLS!r},")
    if KWARGS in given:
        row[KWARGS] = _kwargs(raw[KWARGS], f"{place}, column {KWARGS!r},")
    return given


def arguments_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's template is told beside its messages."""
    tools = {TOOLS: row[TOOLS]} if TOOLS in row else {}
    return tools | row.get(KWARGS, {})


def _values(row: Mapping[str, Any]) -> list[Value]:
    several = row.get("completions", [])
    return [*(row[name] for name in ("prompt", "chosen", "rejected", "completion") if name in row), *several]


def _put_in_front(row: dict[str, Any], text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"{place} is {short(text)}; it is a text.")
    prompt: Value = row["prompt"]
    if isinstance(prompt, str):
        prompt = as_messages(prompt) if prompt else []
    if prompt and not is_chat(prompt):
        raise UserError(f"{place} stands beside a prompt of token ids, which are exact; leave one of them out.")
    turns: Messages = [each for each in prompt if isinstance(each, dict)]
    if turns and turns[0][ROLE] == SYSTEM:
        if turns[0][CONTENT] == text:
            return
        raise UserError(f"{place} is {short(text)}, and the prompt begins with another system message; keep one.")
    system = [{ROLE: SYSTEM, CONTENT: str(plain(text, place))}]
    row["prompt"] = system + turns

    def whole(value: Value) -> Value:
        """A transcript begins with its prompt."""
        return system + value if turns and is_chat(value) and value[: len(turns)] == turns else value

    for name in ("chosen", "rejected", "completion"):
        if name in row:
            row[name] = whole(row[name])
    if "completions" in row:
        row["completions"] = [whole(value) for value in row["completions"]]


def _tools(value: Any, place: str) -> list[dict[str, Any]]:
    tools = _parsed(value, place)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool for tool in tools):
        raise UserError(f"{place} is {short(value)}; it is a list of tools, each an object, or such a list as JSON.")
    return [plain(tool, place) for tool in tools]


def _kwargs(value: Any, place: str) -> dict[str, Any]:
    kwargs = _parsed(value, place)
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) and name.isidentifier() for name in kwargs):
        raise UserError(f"{place} is {short(value)}; it is an object with the names and values of arguments.")
    if ours := sorted(_OURS.intersection(kwargs)):
        raise UserError(f"{place} has {', '.join(ours)}, which a template is told by raydpo; leave it out.")
    return {name: plain(each, place) for name, each in kwargs.items()}


def _parsed(value: Any, place: str) -> Any:
    """A value, or what its text says as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is {short(value)}, which is not JSON ({error}).") from error
