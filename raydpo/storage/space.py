"""Storage that fails a run, in the user's terms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from raydpo.errors import UserError


@contextmanager
def room_for(size: int, path: Path) -> Iterator[None]:
    """A UserError that says what is needed, `size` bytes or a little more, when the block cannot write to `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        raise UserError(
            f"{path} cannot be written: {error}. It needs {size:,} bytes, and {free:,} are free. Make room or make it "
            "writable, then start again: the run goes on from its last commit."
        ) from error
