"""Rows of nobody's format: columns that are put together as text, and a function of the user's own, row → row."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raydpo.config.schema.data import columns_of
from raydpo.data.messages import short
from raydpo.data.rows import Row
from raydpo.errors import UserError


@dataclass(frozen=True)
class OwnColumns:
    """Makes the columns of our fields of those that the run file names, or puts together. It travels to the readers."""

    columns: Mapping[str, str]  # by our names: a column, or a template of several
    before: OwnFunction | None = None

    def __call__(self, raw: Row, place: str) -> tuple[Row, str]:
        """Columns that are not read are handed on. UserError where one is missing, or is no text for a template."""
        if self.before:
            raw = self.before(raw, place)
        read = {name for text in self.columns.values() for name in columns_of(text)}
        row = {column: value for column, value in raw.items() if column not in read}
        for ours, text in self.columns.items():
            if "{" in text:
                row[ours] = _filled(text, raw, f"{place}, data.columns.{ours}")
            elif text in raw:
                row[ours] = raw[text]
        return row, place


def _filled(text: str, raw: Row, place: str) -> str:
    values = {}
    for name in columns_of(text):
        if name not in raw:
            raise UserError(f"{place}: there is no column {name!r}; the columns are {', '.join(sorted(raw))}.")
        value = raw[name]
        if value is not None and type(value) not in (str, int, float):
            raise UserError(f"{place}: column {name!r} is {short(value)}, and {short(text)} takes texts and numbers.")
        values[name] = "" if value is None else value
    return text.format_map(values)


@dataclass(frozen=True)
class OwnFunction:
    """A function named as `package.module:function`, loaded where it is first needed. It travels to the readers."""

    name: str

    def __call__(self, raw: Row, place: str) -> Row:
        """What the function makes of a row. UserError where it fails, or gives no row."""
        try:
            row = self._function(dict(raw))
        except UserError:
            raise
        except Exception as error:  # it is somebody else's: anything may come out of it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{place}: data.function {self.name!r} raised {type(error).__name__}: {error} "
                f"({frame.filename}:{frame.lineno}); mend it."
            ) from error
        if not isinstance(row, dict) or not all(isinstance(column, str) for column in row):
            raise UserError(f"{place}: data.function {self.name!r} gave {short(row)}; return a row: a dict by column.")
        return row

    @cached_property
    def _function(self) -> Callable[[Row], Any]:
        module, _, function = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(module), function, None)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"data.function {self.name!r}: there is no module {error.name!r}; install it, or put its folder on "
                "PYTHONPATH."
            ) from error
        if not callable(found):
            raise UserError(f"data.function {self.name!r}: module {module} has no function {function!r}.")
        return found  # called with a row, and what it gives is checked
