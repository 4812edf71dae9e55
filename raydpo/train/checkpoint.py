"""Committed checkpoints: every rank's shard first, then the manifest, then the marker that readers trust.

Layout: <directory>/step-000100.attempt-1f2e3d4c/{state/..., MANIFEST.json, COMMITTED}
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from raydpo.config.files import write_json, write_text

if TYPE_CHECKING:  # the driver lists checkpoints too, and must not pay for importing DeepSpeed
    from raydpo.train.engine import Policy

_TAG = "state"
T = TypeVar("T")


@dataclass(frozen=True)
class Cursor:
    """Where a run stands. The order is a pure function, so the step is the whole position in the data."""

    step: int  # steps done
    identity: str  # hash of what makes the run what it is; another run must not be resumed
    world_size: int
    zero_stage: int


@dataclass(frozen=True)
class Committed:
    """A checkpoint whose marker stands."""

    path: Path
    cursor: Cursor


def save_checkpoint(policy: Policy, cursor: Cursor, directory: Path, *, keep_last: int) -> Path:
    """Write and commit; all ranks call it and return together. Older commits beyond keep_last are removed."""
    attempt = _agree(uuid.uuid4().hex[:8])
    path = directory / f"step-{cursor.step:06d}.attempt-{attempt}"
    policy.engine.save_checkpoint(str(path), tag=_TAG, save_latest=False)
    hashes = _hash_all(policy, path)
    if policy.rank == 0:
        write_json(path / "MANIFEST.json", {**asdict(cursor), "sha256": hashes})
        write_text(path / "COMMITTED", "")
        for old in sorted(committed(directory), key=lambda c: c.cursor.step)[:-keep_last]:
            shutil.rmtree(old.path)
    torch.distributed.barrier()
    return path


def load_checkpoint(policy: Policy, found: Committed) -> None:
    """Load a verified commit into the engine; all ranks call it.

    DeepSpeed's files are pickles, so only the run's own storage is read, after its hashes were checked.
    """
    loaded, _ = policy.engine.load_checkpoint(str(found.path), tag=_TAG)
    if loaded is None:
        raise RuntimeError(f"DeepSpeed loaded nothing from {found.path}.")


def resume(policy: Policy, directory: Path) -> Committed | None:
    """The newest commit that verifies, as rank 0 sees it, so that all ranks start from the same one."""
    return _agree(newest(directory) if policy.rank == 0 else None)


def newest(directory: Path) -> Committed | None:
    """The newest commit that verifies; one that does not is set aside under broken-* and named on stdout."""
    for found in sorted(committed(directory), key=lambda c: c.cursor.step, reverse=True):
        broken = _first_broken_file(found.path)
        if broken is None:
            return found
        print(f"checkpoint {found.path.name}: {broken} does not match its manifest; set aside", flush=True)
        found.path.rename(found.path.with_name(f"broken-{found.path.name}"))
    return None


def committed(directory: Path) -> Iterator[Committed]:
    """All checkpoints in a directory that carry the marker, unverified."""
    for marker in directory.glob("step-*/COMMITTED"):
        manifest = json.loads((marker.parent / "MANIFEST.json").read_text())
        yield Committed(marker.parent, Cursor(**{k: manifest[k] for k in Cursor.__dataclass_fields__}))


def _first_broken_file(path: Path) -> str | None:
    hashes: dict[str, str] = json.loads((path / "MANIFEST.json").read_text())["sha256"]
    for name, expected in hashes.items():
        if not (path / name).is_file() or _sha256(path / name) != expected:
            return name
    return None


def _hash_all(policy: Policy, path: Path) -> dict[str, str]:
    """Every rank hashes its share of the files; also the barrier that all shards are written."""
    torch.distributed.barrier()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    mine = {str(p.relative_to(path)): _sha256(p) for p in files[policy.rank :: policy.world_size]}
    gathered: list[Any] = [None] * policy.world_size
    torch.distributed.all_gather_object(gathered, mine)
    return dict(sorted((name, value) for part in gathered for name, value in part.items()))


def _agree(value: T) -> T:
    """Rank 0's value, on every rank."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
