"""`raydpo checkpoints`: look at a run's commits, verify, export and compare them. No cluster, and nothing is changed.

A path is a commit (the attempt may be left out: .../step-000100), or a directory of commits, or an output_dir with one.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from raydpo.errors import UserError
from raydpo.train.checkpoint.commits import MANIFEST, MARKER, Commit, first_broken_file, read_commit

_PLACES = (".", "checkpoints", "train/checkpoints")  # where commits are, below what the user names
_ROW = "{:>8}  {:>9}  {:>11}  {:>7}  {:>4}  {:<8}  {}"


def list_checkpoints(path: Path) -> int:
    """Print a line for every commit. To say whether it verifies, all its files are read."""
    paths = _commit_paths(path)
    print(_ROW.format("step", "age", "size", "workers", "zero", "verified", "name"))
    for each in paths:
        commit, broken = _checked(each)
        if commit is None:
            print(_ROW.format("?", "?", "?", "?", "?", "no", each.name))
            continue
        cursor = commit.cursor
        age = _duration(time.time() - commit.committed_at)
        size = f"{commit.size / 2**20:,.1f} MiB"
        verified = "no" if broken else "yes"
        print(_ROW.format(cursor.step, age, size, cursor.world_size, cursor.zero_stage, verified, each.name))
    return 0


def verify_checkpoints(path: Path) -> int:
    """Print of every commit whether it is intact, and else which file is not; 1 when any is broken."""
    checked = {each: _checked(each) for each in _commit_paths(path)}
    for each, (commit, broken) in checked.items():
        if commit and not broken:
            print(f"{each.name}: intact, {len(commit.files)} files, {commit.size:,} bytes")
        else:
            print(f"{each.name}: {each / (broken or MANIFEST)} is missing or does not match its hash")
    return int(any(broken or not commit for commit, broken in checked.values()))


def export_checkpoint(path: Path, directory: Path) -> int:
    """Export a commit, of several the newest, as a model that transformers and vLLM load."""
    from raydpo.train.offline import export_commit

    commit = _newest(path)
    print(f"step {commit.cursor.step}: exported to {export_commit(commit, directory)}")
    return 0


def diff_checkpoints(first: Path, second: Path) -> int:
    """Print where two commits differ: in their cursors, and by tensor in max |Δ|; 1 when they do."""
    from raydpo.train.checkpoint.state import SavedState, largest_differences

    one = _newest(first)
    other = _newest(second)
    before = asdict(one.cursor)
    after = asdict(other.cursor)
    lines = [f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
    gaps = largest_differences(SavedState(one.path), SavedState(other.path))
    lines += [f"{name}: max |Δ| {gap:.3g}" for name, gap in gaps.items() if gap]
    print("\n".join(lines) if lines else "no difference")
    return int(bool(lines))


def _commit_paths(path: Path) -> list[Path]:
    """Every directory with a commit's marker, by rising step."""
    if (path / MARKER).is_file():
        return [path]
    markers = list(path.parent.glob(f"{path.name}.attempt-*/{MARKER}")) if path.name.startswith("step-") else []
    for place in _PLACES:
        markers = markers or list((path / place).glob(f"step-*/{MARKER}"))
    if not markers:
        raise UserError(f"{path} holds no commit; name an output_dir, its train, sft or reward, or a commit in there.")
    return sorted(marker.parent for marker in markers)


def _checked(path: Path) -> tuple[Commit | None, str | None]:
    """The commit and its first broken file; no commit where the manifest is broken."""
    commit = read_commit(path)
    return commit, first_broken_file(commit, commit.files) if commit else None


def _newest(path: Path) -> Commit:
    newest = _commit_paths(path)[-1]
    commit, broken = _checked(newest)
    if commit is None or broken:
        raise UserError(
            f"{newest / (broken or MANIFEST)} is missing or does not match its hash; name another commit, as "
            f"`raydpo checkpoints ls {newest.parent}` lists them."
        )
    return commit


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
