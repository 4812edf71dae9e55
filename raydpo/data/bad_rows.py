"""Rows that cannot be used, where a run file allows some: each goes to a side file with file, row and reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raydpo.errors import UserError

FILE = "bad_rows.jsonl"
BAD = "bad"  # the only key of a row that stands for one of them; its value is the reason
_SHOWN = 3

BadRow = tuple[str, int, str]
"""(file, row, reason)."""


class BadRows:
    """Counts bad rows against what is allowed, and keeps them in a file of the directory."""

    def __init__(self, directory: Path, allowed: float) -> None:
        """allowed: a number of rows, or a share of all below 1."""
        self._path = directory / FILE
        self._allowed = allowed
        self._first: list[str] = []
        self._count = 0

    def add(self, rows: Sequence[BadRow]) -> None:
        """Write rows. Raises UserError as soon as they are more than a number that is allowed."""
        if not rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for path, row, reason in rows:
                file.write(json.dumps({"file": path, "row": row, "reason": reason}) + "\n")
        self._first += [reason for _, _, reason in rows[: _SHOWN - len(self._first)]]
        self._count += len(rows)
        if not 0 < self._allowed < 1 and self._count > self._allowed:
            raise self._too_many("or more")

    def close(self, rows_read: int) -> str | None:
        """What is to be said of them; None where there are none. UserError where they are more than a share allowed."""
        if 0 < self._allowed < 1 and self._count > self._allowed * rows_read:
            raise self._too_many(f"of {rows_read}")
        if not self._count:
            return None
        first = self._first[0]
        return f"{self._count} of {rows_read} rows are bad and left out; {self._path} says why. The first: {first}"

    def _too_many(self, of: str) -> UserError:
        return UserError(
            f"{self._count} rows {of} are bad, more than data.max_bad_rows={self._allowed:g}; mend them, or raise it. "
            f"All so far are in {self._path}, the first are: {' | '.join(self._first)}"
        )
