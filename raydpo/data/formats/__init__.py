"""Formats of preference data as it is in the wild: one file a family, one function a format, a row to one of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from types import MappingProxyType

from raydpo.data.formats import (
    argilla,
    axolotl,
    hh,
    llama_factory,
    ms_swift,
    nectar,
    nemo,
    openrlhf,
    reward_bench,
    trl,
    ultrafeedback,
)
from raydpo.data.formats.contract import Format, Raw
from raydpo.data.messages import short
from raydpo.errors import UserError

# The first one that matches is taken: those of our own columns, then the families, those that ask for more in front.
_FAMILIES: tuple[tuple[Format, ...], ...] = (
    trl.OWN,
    nemo.FORMATS,
    nectar.FORMATS,
    ultrafeedback.FORMATS,
    argilla.FORMATS,
    reward_bench.FORMATS,
    llama_factory.FORMATS,
    ms_swift.FORMATS,
    axolotl.FORMATS,
    openrlhf.FORMATS,
    hh.FORMATS,
    trl.IMPLICIT,
)
FORMATS: Mapping[str, Format] = MappingProxyType({each.name: each for family in _FAMILIES for each in family})
FOR_SFT: Mapping[str, Format] = MappingProxyType({each.name: each for each in (*trl.FOR_SFT, *llama_factory.FOR_SFT)})
FIRST_ROWS = 16


def first_values(rows: Iterable[Raw], ignore: Collection[str] = ()) -> Raw:
    """Of every column of the first rows the first value that is not null; one that has none is left out."""
    found: Raw = {}
    for row in islice(rows, FIRST_ROWS):
        for column, value in row.items():
            if value is not None and column not in ignore:
                found.setdefault(column, value)
    return found


def detect(values: Raw, place: str) -> Format:
    """The format of rows that have these values. UserError where it is none that is known."""
    for each in FORMATS.values():
        if each.matches(values):
            return each
    shown = "; ".join(f"{column!r} is {short(value)}" for column, value in sorted(values.items()))
    raise UserError(
        f"{place}: its rows are of no format that is known: {shown or 'they have no values'}. Name the format in "
        f"data.format ({', '.join(FORMATS)}), the columns in data.columns, or in data.function a function that makes "
        "such rows of them; docs/data.md has them all."
    )
