"""What a run writes over or removes, held against what it reads: no input lies among a stage's own output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raydpo.errors import UserError
from raydpo.workspace.layout import Layout

# Of Ray Train, below its storage path.
_RAY_FILES = ("*/checkpoint_manager_snapshot.json", "*/.validate_storage_marker", "*/checkpoint_*/export.json")


def refuse_own_output(layout: Layout, key: str, paths: Sequence[str]) -> None:
    """Raise UserError for an input in a directory of the run's own, where a stage may remove or replace it.

    key: of the run file, which names the paths. An address and a model's hub name are elsewhere in any case.
    """
    for path in paths:
        if "://" in path or not Path(path).exists():
            continue
        real = Path(path).resolve()
        for directory in layout.written_over:
            if real.is_relative_to(directory.resolve()):
                raise UserError(
                    f"{key}: {path} lies in {directory}, which the run's own stages write over; move it out of "
                    f"{layout.root}, or set another output_dir."
                )


def clear_ray_files(directory: Path) -> None:
    """Remove what Ray Train has left in its storage directory, by the names that it gives; all else stays."""
    for path in (path for pattern in _RAY_FILES for path in directory.glob(pattern)):
        path.unlink()
    below = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)  # the deepest first
    for path in (*below, directory):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
