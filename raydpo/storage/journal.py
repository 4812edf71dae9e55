"""A file of JSON lines that grows while work is done: each line counts as soon as it is whole and on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raydpo.errors import UserError
from raydpo.storage.files import to_disk, whole_lines


class Journal:
    """Entries of one writer, in the order in which they were added."""

    def __init__(self, path: Path) -> None:
        """Take up what an earlier writer has left. UserError names a line that is no JSON object."""
        self._path = path
        lines = whole_lines(path)
        self.entries = [_entry(line, f"{path} line {number}", path) for number, line in enumerate(lines, start=1)]
        if path.exists():
            self._drop_what_was_cut(sum(len(line.encode("utf-8")) for line in lines))

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry; it is on the disk when this returns. NaN and infinity are refused (ValueError)."""
        is_new = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
        to_disk(self._path)
        if is_new:
            to_disk(self._path.parent)
        self.entries.append(entry)

    def _drop_what_was_cut(self, size: int) -> None:
        """A killed writer leaves half a line, which the next entry would be glued to."""
        if self._path.stat().st_size > size:
            with self._path.open("r+b") as file:
                file.truncate(size)


def _entry(line: str, place: str, path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is damaged ({error}); remove the line, or the file {path}.") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place} is damaged (no JSON object); remove the line, or the file {path}.")
    return entry
