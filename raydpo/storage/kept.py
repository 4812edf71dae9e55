"""Pieces of a long piece of work, kept as they come, for as long as what they were made from stays the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raydpo.errors import UserError
from raydpo.storage.files import write_json

_MADE_FROM = "made_from.json"  # written after the pieces of another work are gone, before the first of this one


class Kept:
    """Numbered pieces in a directory of their own, a whole JSON file each.

    made_from decides every number in every piece. Pieces that a directory holds of anything else are removed when it
    is opened; files of other names stay.
    """

    def __init__(self, directory: Path, made_from: dict[str, Any]) -> None:
        self._directory = directory
        marker = directory / _MADE_FROM
        if self._read(marker) == made_from:
            return
        marker.unlink(missing_ok=True)
        for piece in directory.glob("[0-9]" * 6 + ".json"):
            piece.unlink()
        write_json(marker, made_from)

    def read(self, number: int) -> Any:
        """A piece; None where it is not there yet. Raises UserError for one that is damaged."""
        return self._read(self._path(number))

    def write(self, number: int, piece: Any) -> None:
        """Keep a piece, whole or not at all; NaN and infinity are refused (ValueError)."""
        write_json(self._path(number), piece)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.json"

    @staticmethod
    def _read(path: Path) -> Any:
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); remove the directory {path.parent}.") from error
