"""Shapes of objects: which fields there may be, of which types. Written as JSON Schema, where every field is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

Tree = dict[str, Any]
Shape = dict[str, Any]

TEXT: Shape = {"type": "string", "minLength": 1}
BOOL: Shape = {"type": "boolean"}
INT: Shape = {"type": "integer"}
TEXTS: Shape = {"type": "object", "additionalProperties": {"type": "string"}}  # texts by name, such as labels


def one_of(*values: str) -> Shape:
    """One of a few texts."""
    return {"enum": list(values)}


def matching(pattern: str) -> Shape:
    """A text that matches a pattern as a whole."""
    return {"type": "string", "pattern": rf"^(?:{pattern})$"}


def list_of(item: Shape) -> Shape:
    """A list with at least one item."""
    return {"type": "array", "items": item, "minItems": 1}


def record(fields: Mapping[str, Shape], required: Iterable[str] = ()) -> Shape:
    """A mapping with these fields and no others."""
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(required),
        "additionalProperties": False,
    }


def shape_problems(tree: Any, shape: Shape) -> list[str]:
    """What in a tree is not as its shape says, each with its place."""
    errors = sorted(Draft202012Validator(shape).iter_errors(tree), key=lambda error: [str(p) for p in error.path])
    return [f"{place(error.absolute_path)}: {_said(error)}" for error in errors]


def place(path: Iterable[str | int]) -> str:
    """`spec.containers[0].image` for the keys and indices that lead to a value."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.lstrip(".") or "the object"


def _said(error: ValidationError) -> str:
    if error.validator != "additionalProperties" or not isinstance(error.instance, dict):
        return str(error.message)
    known = error.schema.get("properties", {})
    unknown = [name for name in error.instance if name not in known]
    nearest = [close[0] for name in unknown if (close := get_close_matches(str(name), known, n=1))]
    hint = f"; the nearest field is {nearest[0]}" if nearest else ""
    return f"{', '.join(map(str, unknown))} is no field of it, or none that is used here{hint}"
