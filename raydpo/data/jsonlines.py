"""One JSON object a line, and what a line is where it is none."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from raydpo.data.messages import short
from raydpo.data.paths import filesystem_of
from raydpo.errors import UserError

MAX_LINE_BYTES = 1 << 24
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8, which some editors write
# How files begin that are not lines of JSON, and what to do with them.
_BEGINNINGS = {
    b"\xff\xfe": "it looks like UTF-16: save the file as UTF-8",
    b"\xfe\xff": "it looks like UTF-16: save the file as UTF-8",
    b"\x1f\x8b": "it is compressed: name it .jsonl.gz",
    b"PAR1": "it is a parquet file: name it .parquet",
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"<": "it looks like a web page: fetch the file itself",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"[": "it looks like one array: write its objects one a line (`jq -c '.[]'`)",
}


class _KeyTwiceError(ValueError):
    """An object has a key twice, so that a reader has to choose between its values."""


def json_rows(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, unchecked. UserError names file and row of what is no object."""
    for found in json_rows_or_errors(path):
        if isinstance(found, UserError):
            raise found
        yield found


def json_rows_or_errors(path: str) -> Iterator[dict[str, Any] | UserError]:
    """The objects of a file, and in place of a line that is none the error that names it.

    Raises UserError where it cannot be read on from there.
    """
    filesystem, inner = filesystem_of(path)
    blank = 0
    try:
        with io.BufferedReader(filesystem.open_input_stream(inner)) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if blank and line.strip():
                    raise UserError(f"{path} row {blank} is blank; remove the line.")
                if line.strip():
                    yield _object_or_error(line, number, f"{path} row {number}")
                else:
                    blank = blank or number  # fine at the end of a file
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); is it whole, and what its suffix says?") from error


def _object_or_error(line: bytes, number: int, place: str) -> dict[str, Any] | UserError:
    if len(line) > MAX_LINE_BYTES:  # where its end is, is not known
        raise UserError(f"{place} is longer than {MAX_LINE_BYTES >> 20} MiB; {_hint(line, number)}.")
    try:
        return _object(line, number, place)
    except UserError as error:
        return error


def _object(line: bytes, number: int, place: str) -> dict[str, Any]:
    if number == 1:
        line = line.removeprefix(BYTE_ORDER_MARK)
    hint = _hint(line, number)
    try:
        value = json.loads(line.decode(), object_pairs_hook=_each_key_once)
    except _KeyTwiceError as error:
        raise UserError(f"{place} has the key {error} twice in one object; keep one of them.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 (byte {error.start + 1} is {line[error.start]:#x}); {hint}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): {short(line)}; {hint}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{place} is {short(value)}, not a JSON object; {hint}.")
    return value


def _hint(line: bytes, number: int) -> str:
    """What to do about a line that is no JSON object."""
    if number == 1:
        for beginning, remedy in _BEGINNINGS.items():
            if line.startswith(beginning):
                return remedy
    if b"\0" in line[:64]:
        return "it looks like UTF-16: save the file as UTF-8"
    try:
        line.decode()
    except UnicodeDecodeError:
        return "it looks like Latin-1 or Windows-1252: save the file as UTF-8"
    return "write one JSON object a line"


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Python alone would take the last of two values with the same key."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _KeyTwiceError(repr(twice))
    return value
