"""Commits on disk: which ones stand, whether they are intact, and how one comes to stand. No tensors here.

Layout: <directory>/step-000100.attempt-1f2e3d4c/{rank-00000.safetensors, ..., model/, parts/, MANIFEST.json, COMMITTED}
Every rank writes its files and then its part (their hashes); the manifest gathers the parts; the marker comes last and
holds the manifest's own hash. Without the marker a directory is an orphan, whatever it contains. It is the protocol of
raydpo.storage.commit in three tiers, because no rank sees the files of all.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from raydpo.storage.commit import Folder, Promise, find_flaw, promise_files
from raydpo.storage.files import to_disk, write_json, write_text
from raydpo.storage.hashing import sha256_of
from raydpo.track.say import say

MANIFEST = "MANIFEST.json"
MARKER = "COMMITTED"
POLL_S = 0.02


@dataclass(frozen=True)
class Cursor:
    """Where a run stands. The order, the learning rate and everything else are functions of the step."""

    step: int  # steps done
    identity: str  # hash of what makes the run what it is; another run must not be resumed
    world_size: int  # how the state was cut; it may be resumed by any other number of workers
    zero_stage: int


@dataclass(frozen=True)
class Commit:
    """A checkpoint whose marker and manifest stand; its files are not verified yet."""

    path: Path
    cursor: Cursor
    files: dict[str, Promise]  # by name, relative to the path
    committed_at: float  # seconds since the epoch

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(promise.bytes or 0 for promise in self.files.values())


def commits(directory: Path) -> list[Commit]:
    """All commits of a directory by rising step."""
    found = [read_commit(marker.parent) for marker in directory.glob(f"step-*/{MARKER}")]
    return sorted((commit for commit in found if commit), key=lambda commit: (commit.cursor.step, commit.path.name))


def read_commit(path: Path) -> Commit | None:
    """The commit at a path with a marker; None when the manifest is not the one that was committed."""
    manifest = path / MANIFEST
    if not manifest.is_file() or sha256_of(manifest) != (path / MARKER).read_text():
        return None
    content = json.loads(manifest.read_text())
    return Commit(
        path,
        Cursor(**{name: content[name] for name in Cursor.__dataclass_fields__}),
        files={name: Promise(file["sha256"], file["bytes"]) for name, file in content["files"].items()},
        committed_at=content["committed_at"],
    )


def latest(directory: Path) -> Commit | None:
    """The commit of the highest step, not verified."""
    return next(reversed(commits(directory)), None)


def newest(directory: Path) -> Commit | None:
    """The newest commit that verifies; newer ones that do not are set aside."""
    while found := latest(directory):
        broken = first_broken_file(found, found.files)
        if broken is None:
            return found
        set_aside(found.path, broken)
    return None


def first_broken_file(commit: Commit, names: Iterable[str]) -> str | None:
    """The first of these files that is missing or does not match its hash.

    What was whole before is read again: a checkpoint is opened seldom, and its disk may have failed in between.
    """
    folder = Folder(commit.path)
    return next((name for name in names if find_flaw(folder, name, commit.files[name])), None)


def set_aside(path: Path, broken: str) -> None:
    """Keep a broken commit for whoever wants to look into it, under a name that nothing reads."""
    say(f"checkpoint {path.name}: {broken} is missing or does not match its hash; set aside")
    path.rename(path.with_name(f"broken-{path.name}"))


def clear(directory: Path) -> None:
    """Remove what a killed run has left half-written, and set aside what lost its manifest. Nobody may be writing."""
    standing = {commit.path for commit in commits(directory)}
    for path in directory.glob("step-*.attempt-*"):  # whatever has another name is not ours
        if path in standing:
            continue
        if (path / MARKER).exists():
            set_aside(path, MANIFEST)
        else:
            shutil.rmtree(path)


def remove(commit: Commit) -> None:
    """The marker goes first, so that a commit half removed is an orphan and not a broken commit."""
    (commit.path / MARKER).unlink()
    shutil.rmtree(commit.path)


def write_part(path: Path, rank: int, files: Collection[Path]) -> None:
    """Tell the committing rank that these files of `rank`, below `path`, are complete, and on the disk."""
    part = {name: asdict(promise) for name, promise in promise_files(path, files).items()}
    write_json(path / "parts" / f"{rank:05d}.json", part)


def commit_parts(path: Path, cursor: Cursor, *, timeout_s: float, cancelled: Callable[[], bool]) -> None:
    """Wait until every rank's part is there, then write manifest and marker.

    Parts are files and not a collective, because this runs in a thread beside training, which has collectives of its
    own in flight. TimeoutError names the ranks that are late; nothing is committed after a cancellation.
    """
    late = {rank: path / "parts" / f"{rank:05d}.json" for rank in range(cursor.world_size)}
    deadline = time.monotonic() + timeout_s
    while late := {rank: part for rank, part in late.items() if not part.exists()}:
        if cancelled():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name}: ranks {sorted(late)} did not write their parts in {timeout_s:.0f} s.")
        time.sleep(POLL_S)
    files = {}
    for part in sorted((path / "parts").glob("*.json")):
        files.update(json.loads(part.read_text()))
    write_json(path / MANIFEST, {**asdict(cursor), "committed_at": time.time(), "files": files})
    to_disk(path.parent)
    write_text(path / MARKER, sha256_of(path / MANIFEST))
