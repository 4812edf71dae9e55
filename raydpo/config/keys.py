"""The names that a run file may use, and the nearest of them to a name that it may not."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from raydpo.config.schema import RunFile

_ANY = "*"  # stands for the name of an entry where a mapping holds sections, such as judge.judges


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, optional or not; None for a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> dict[str, bool]:
    """Every dotted key below a section, and whether its value is a free mapping such as cluster.env."""
    keys: dict[str, bool] = {}
    for name, field in model.model_fields.items():
        dotted = prefix + name
        section = _section(field.annotation)
        is_mapping = getattr(field.annotation, "__origin__", None) is dict
        keys[dotted] = section is None and is_mapping
        if section is not None:
            entry = f"{_ANY}." if is_mapping else ""
            keys |= _dotted_keys(section, f"{dotted}.{entry}")
    return keys


_KEYS = _dotted_keys(RunFile)
_MAPPINGS = {key.partition(f".{_ANY}.")[0] for key in _KEYS if f".{_ANY}." in key}


def is_known(key: str) -> bool:
    """Whether a dotted key names a field, a section, or an entry of a free mapping."""
    form, _ = _without_entry(key)
    return form in _KEYS or form.endswith(f".{_ANY}") or _KEYS.get(key.rpartition(".")[0], False)


def nearest_key(key: str) -> str:
    """The known dotted key that was most likely meant: a sibling, the same name elsewhere, or the closest spelling."""
    form, entry = _without_entry(key)
    return _nearest(form).replace(_ANY, entry)


def _without_entry(key: str) -> tuple[str, str]:
    """The key with _ANY for the name of an entry, and that name: `judge.judges.mine.model` → `judge.judges.*.model`."""
    for mapping in _MAPPINGS:
        if key.startswith(f"{mapping}."):
            entry, dot, rest = key.removeprefix(f"{mapping}.").partition(".")
            return f"{mapping}.{_ANY}{dot}{rest}", entry
    return key, _ANY


def _nearest(key: str) -> str:
    """The known key, with _ANY where a mapping has the names of its own."""
    section, _, name = key.rpartition(".")
    siblings = {known.rpartition(".")[2]: known for known in _KEYS if known.rpartition(".")[0] == section}
    if close := get_close_matches(name, siblings, n=1):
        return siblings[close[0]]
    same_name = [known for known in _KEYS if known.rpartition(".")[2] == name]
    return get_close_matches(key, same_name or _KEYS, n=1, cutoff=0.0)[0]
