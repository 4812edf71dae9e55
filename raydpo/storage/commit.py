"""How files come to count, everywhere: the files first, then a marker that promises them by name.

A writer completes its files and writes the marker last, itself whole or absent. Readers trust the marker alone. Without
one, whatever lies there is what a killed writer left; with one, find_flaw says how a file differs from its promise.

What a marker looks like is its owner's affair. What it promises of a file, beside its being there:

    a checkpoint's MANIFEST.json   size and sha256; COMMITTED promises the manifest's   raydpo.train.checkpoint.commits
    a shard's <shard>.json         size and sha256, each of one file                    raydpo.reference.shard
    manifest.json of tokens        sha256                                               raydpo.data.shards
    an export's raydpo.json        nothing: it is looked at too often to hash weights   raydpo.train.mark
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from raydpo.storage.files import to_disk
from raydpo.storage.hashing import FOUND_WHOLE, Stream, Version, sha256, sha256_of


@dataclass(frozen=True)
class Promise:
    """What a marker says of a file. That it is there is always promised; None where nothing else is."""

    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Flaw:
    """How a file differs from what was promised."""

    kind: Literal["missing", "size", "content"]
    size: int  # bytes that were found


class Info(Protocol):
    """What is known of a file without reading it; pyarrow's FileInfo is one. Size and time are a file's only."""

    @property
    def is_file(self) -> bool:
        """Whether there is a file, and not a directory or nothing."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int:
        """When it was last written, in nanoseconds since the epoch."""


class Files(Protocol):
    """A directory to look for promised files in: a Folder, or a raydpo.reference.place.Place on any filesystem."""

    def address_of(self, name: str) -> str:
        """What to call a file in a message; no two files have one address."""

    def info(self, name: str) -> Info:
        """A file without its content."""

    def open(self, name: str) -> AbstractContextManager[Stream]:
        """A file's content. FileNotFoundError when it is not there."""


@dataclass(frozen=True)
class _LocalInfo:
    is_file: bool
    size: int = 0
    mtime_ns: int = 0


class Folder:
    """A local directory as Files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def address_of(self, name: str) -> str:
        """The file's path."""
        return str(self._path / name)

    def info(self, name: str) -> Info:
        """What the system says of a file. OSError when it does not tell."""
        path = self._path / name
        if not path.is_file():
            return _LocalInfo(is_file=False)
        status = path.stat()
        return _LocalInfo(True, status.st_size, status.st_mtime_ns)

    def open(self, name: str) -> AbstractContextManager[Stream]:
        """The file, unbuffered: whoever hashes reads large blocks."""
        return (self._path / name).open("rb", buffering=0)


def promise_files(root: Path, files: Collection[Path]) -> dict[str, Promise]:
    """What a marker may promise of local files below root, by their names relative to it; they are on the disk then.

    A writer calls it when its files are complete, and writes the marker afterwards.
    """
    for path in {*files, *(file.parent for file in files)}:
        to_disk(path)
    return {str(file.relative_to(root)): Promise(sha256_of(file), file.stat().st_size) for file in files}


def find_flaw(
    files: Files,
    name: str,
    promise: Promise,
    *,
    remember: bool = False,
    inspect: Callable[[], None] | None = None,
) -> Flaw | None:
    """How a file differs from its promise, None when it does not. Every byte is read where a sha256 is promised.

    remember: what this process has once found whole it does not read again, for as long as size and time stay.
    inspect: what else the owner asks of a file whose bytes are as promised. It raises if it is not satisfied; it is
    remembered with the bytes.
    """
    info = files.info(name)
    if not info.is_file:
        return Flaw("missing", 0)
    if promise.bytes is not None and info.size != promise.bytes:
        return Flaw("size", info.size)
    if promise.sha256 is None:
        return None
    # The time is taken before the reading, so that a file written meanwhile is read again.
    version = Version(files.address_of(name), info.size, info.mtime_ns, promise.sha256)
    if remember and version in FOUND_WHOLE:
        return None
    with files.open(name) as stream:
        if sha256(stream) != promise.sha256:
            return Flaw("content", info.size)
    if inspect:
        inspect()
    if remember:
        FOUND_WHOLE.add(version)
    return None
