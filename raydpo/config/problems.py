"""pydantic's errors in the words of a run file: dotted field, value, what is allowed."""

from __future__ import annotations

import json
import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raydpo.config.keys import nearest_key
from raydpo.config.secret import redact_environment, redact_text

_LONGEST_VALUE = 80  # characters
_QUOTE_IT = "must be text; put it in quotes"


def describe_problems(error: ValidationError) -> str:
    """Every problem on a line of its own; a single one without the heading."""
    lines = [_describe(problem) for problem in error.errors(include_url=False)]
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([f"{len(lines)} problems", *lines])


def _describe(problem: ErrorDetails) -> str:
    field = _dotted(problem["loc"])
    reason = re.sub("^(Input|String|List) should", "must", problem["msg"]).removeprefix("Value error, ")
    match problem["type"]:
        case "missing":
            return f"{field} is missing; add it."
        case "extra_forbidden":
            return f"unknown key {field}; the nearest known key is {nearest_key(field)}."
        case "value_error":  # a rule between the fields of a section: the message names them
            return f"{field}: {reason}." if field else f"{reason}."
        case "model_type":
            reason = "must be a section, that is a mapping of keys; leave the key out for the defaults"
        case "string_type":
            reason = _QUOTE_IT
    return f"{field} = {_shown(problem)}: {reason}."


def _dotted(loc: tuple[int | str, ...]) -> str:
    """`("data", "train", 0)` is `data.train[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _shown(problem: ErrorDetails) -> str:
    name = str(problem["loc"][-1]) if problem["loc"] else ""
    value = problem["input"]
    if problem["loc"][:2] == ("cluster", "env") or name == "api_key_env":  # where a key may stand by mistake
        value = redact_environment({name: str(value)})[name]
    shown = redact_text(json.dumps(value, default=str, ensure_ascii=False))
    return shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 1] + "…"
