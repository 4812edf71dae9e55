"""A file system of its own for what a run writes, that can be filled and locked. To mount one takes root."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CannotMount(Exception):
    """Raised where this user may not mount file systems."""


class Disk:
    """A mounted file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"
        self._locked = False

    def fill(self, *, leave: int = 0) -> None:
        """Take all the room that is left but for so many bytes."""
        try:
            with self._ballast.open("ab", buffering=0) as ballast:
                while True:
                    ballast.write(bytes(2**16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        os.truncate(self._ballast, self._ballast.stat().st_size - leave)

    def lock(self) -> None:
        """Make it read-only for whoever opens a file from now on."""
        mount("--bind", self.path, self.path)  # a mount with open files cannot itself become read-only
        self._locked = True
        mount("-o", "remount,bind,ro", self.path)

    def mend(self) -> None:
        """Room again, and writable."""
        if self._locked:
            unmount(self.path)
            self._locked = False
        self._ballast.unlink(missing_ok=True)


@contextmanager
def disk(path: Path, *, mib: int) -> Iterator[Disk]:
    """An empty disk at `path`, gone when the block ends; CannotMount where that is not allowed."""
    path.mkdir()
    mount("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
    mounted = Disk(path)
    try:
        yield mounted
    finally:
        mounted.mend()
        unmount(path)


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMount(done.stderr.strip())


def unmount(path: Path) -> None:
    """From the tree; the kernel lets go of it when the last process does."""
    subprocess.run(["umount", "--lazy", path], check=True)
