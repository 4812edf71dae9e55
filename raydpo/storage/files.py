"""Files that are whole or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydpo.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # threads and hosts may share a pid
    try:
        yield temporary
        to_disk(temporary)
        temporary.replace(path)
        to_disk(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Return when a file's content, or a directory's names, would be there after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems have it for files only
            raise
    finally:
        os.close(descriptor)


def tree_to_disk(directory: Path) -> None:
    """The same for a directory and everything below it."""
    for path in (*directory.rglob("*"), directory):
        to_disk(path)


def storage_refusal(error: BaseException | None) -> UserError | None:
    """What the user is told where a disk is full or read-only; None for every other error."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return UserError(
        f"{error.filename or 'a file'} cannot be written: {error.strerror}. Make room or make it writable, then start "
        "again; what is complete stays."
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that is appended to, with their ends; none where it is absent. One cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines(keepends=True)
