"""sha256 of files, and which of them this process has found whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

# Large, since an object store answers every read with a request of its own.
_BLOCK = 1 << 22


class Stream(Protocol):
    """Bytes in order, from a local file or an object store."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer from its start; how many bytes there were, 0 at the end."""


class Version(NamedTuple):
    """A file at one time, and its hash; written again, it has another time."""

    address: str
    size: int  # bytes
    mtime_ns: int
    sha256: str


# Hashing reads every byte, so a process does it once to files that it opens again and again. Good news alone is kept:
# a file that was mended is looked at again, though a store may tell its time by the second only.
FOUND_WHOLE: set[Version] = set()


def sha256(stream: Stream) -> str:
    """The hex digest of what is left of a stream. Other threads run meanwhile."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    while size := stream.readinto(block):
        digest.update(block[:size])
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The hex digest of a local file's content."""
    with path.open("rb", buffering=0) as stream:
        return sha256(stream)
