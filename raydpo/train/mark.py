"""The mark that an export carries: whose it is, and which files are its own. transformers and vLLM do not read it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from raydpo import __version__
from raydpo.errors import UserError
from raydpo.storage.commit import Folder, Promise, find_flaw
from raydpo.storage.files import write_json

MARK = "raydpo.json"


@dataclass(frozen=True)
class Mark:
    """What an export says of itself."""

    identity: str  # digest of the run's identity, as in its commits
    step: int  # steps done
    raydpo: str  # version that wrote it
    files: list[str]  # the other files of the export, relative to it


def mark_export(directory: Path, *, identity: str, step: int) -> None:
    """Mark the export that a directory holds; every file in it is taken for the export's."""
    write_json(directory / MARK, asdict(Mark(identity, step, __version__, _files(directory))))


def read_mark(directory: Path) -> Mark | None:
    """The mark of an export that is whole; None of one without a mark, or without one of its files."""
    mark = _mark(directory)
    if mark is None:
        return None
    folder = Folder(directory)
    missing = any(find_flaw(folder, name, Promise()) for name in mark.files)
    return None if missing else mark


def check_replaceable(directory: Path) -> None:
    """Raise UserError when a directory, which may be absent, holds a file that is no part of a marked export."""
    mark = _mark(directory)
    foreign = [name for name in _files(directory) if mark is None or name not in mark.files]
    if foreign:
        raise UserError(
            f"{directory} is where an export goes, and holds {', '.join(foreign[:3])}, which no {MARK} there names as "
            "part of an earlier export; move it away, or remove it."
        )


def remove_export(directory: Path) -> None:
    """Remove an export, and nothing else. UserError, before anything is removed, where there is anything else."""
    check_replaceable(directory)
    for name in _files(directory):
        (directory / name).unlink()
    (directory / MARK).unlink(missing_ok=True)  # last: without it, what a kill has left would be anybody's
    shutil.rmtree(directory, ignore_errors=True)  # directories alone are left


def _mark(directory: Path) -> Mark | None:
    try:
        return Mark(**json.loads((directory / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _files(directory: Path) -> list[str]:
    """All files below a directory but for the mark, as paths relative to it; none where it is absent."""
    below = (path for path in directory.rglob("*") if not path.is_dir() and path != directory / MARK)
    return sorted(str(path.relative_to(directory)) for path in below)
