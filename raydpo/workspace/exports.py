"""The exports on the disk: which of them are a training's own."""

from __future__ import annotations

from pathlib import Path

from raydpo.track.say import say
from raydpo.train.mark import MARK, read_mark
from raydpo.workspace.identity import TrainingSettings, identity_now


def own_exports(exports: Path, identity: str) -> dict[int, Path]:
    """The whole exports of the training with this identity's digest, by step; without a mark they are nobody's."""
    marks = {path: read_mark(path) for path in sorted(exports.glob("step-*"))}
    return {mark.step: path for path, mark in marks.items() if mark and mark.identity == identity}


def exports_of_run(exports: Path, training: TrainingSettings) -> dict[int, Path]:
    """Those of the exports that this training has made, by step. Says which others are left out, and why."""
    identity = identity_now(training)
    own = own_exports(exports, identity.digest) if identity else {}
    for path in sorted(set(exports.glob("step-*")) - set(own.values())):
        why = "of other data, settings or weights" if read_mark(path) else f"without a whole {MARK}, of unknown origin"
        say(f"{path} is left out: it is {why}")
    return own
