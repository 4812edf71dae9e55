"""Rows that were read held against rows that arrived: a pipeline that ends early must not look like a short file."""

from __future__ import annotations

from collections.abc import Sequence


class RowLedger:
    """What has arrived of every file, in order: chunks without a gap, and as many rows as the reader has counted.

    The last chunk of a file carries the reader's own count; a file whose last chunk never came is not whole.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._arrived = [0] * len(paths)
        self._counted: list[int | None] = [None] * len(paths)

    def add(self, file: int, first_row: int, rows: int, total: int | None) -> None:
        """Enter one chunk. first_row counts from 1; total: rows of the whole file, with its last chunk alone.

        Raises RuntimeError when rows before the chunk are missing, or the file has ended before.
        """
        if first_row != self._arrived[file] + 1 or self._counted[file] is not None:
            raise RuntimeError(
                f"rows from {first_row} of {self._paths[file]} came after {self._arrived[file]} rows: some were lost "
                "on their way through Ray Data; this is a defect, please report it."
            )
        self._arrived[file] += rows
        self._counted[file] = total

    def close(self) -> list[int]:
        """Rows of every file. Raises RuntimeError unless each has arrived as a whole."""
        for path, arrived, counted in zip(self._paths, self._arrived, self._counted, strict=True):
            if counted != arrived:
                of = "an unknown number of" if counted is None else str(counted)
                raise RuntimeError(
                    f"{arrived} of {of} rows of {path} have arrived: the rest was lost on its way through Ray Data; "
                    "this is a defect, please report it."
                )
        return self._arrived
