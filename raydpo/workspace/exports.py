"""The exports on the disk: which of them are a training's own, and its last one made again where it is gone."""

from __future__ import annotations

from pathlib import Path

import ray

from raydpo.config.schema import RunFile
from raydpo.runtime.trainer.job import Job
from raydpo.track.say import say
from raydpo.train.checkpoint.commits import Commit
from raydpo.train.mark import MARK, check_replaceable, read_mark, remove_export
from raydpo.workspace.identity import train_identity_now
from raydpo.workspace.layout import Layout


def own_exports(exports: Path, identity: str) -> dict[int, Path]:
    """The whole exports of the training with this identity's digest, by step; without a mark they are nobody's."""
    marks = {path: read_mark(path) for path in sorted(exports.glob("step-*"))}
    return {mark.step: path for path, mark in marks.items() if mark and mark.identity == identity}


def exports_of_run(run: RunFile) -> dict[int, Path]:
    """The exports that the run's preference training has made, by step. Says which others are left out, and why."""
    layout = Layout(run)
    identity = train_identity_now(run)
    own = own_exports(layout.exports, identity.digest) if identity else {}
    for path in sorted(set(layout.exports.glob("step-*")) - set(own.values())):
        why = "of other data, settings or weights" if read_mark(path) else f"without a whole {MARK}, of unknown origin"
        say(f"{path} is left out: it is {why}")
    return own


def check_room_for_exports(job: Job, *, done: int) -> None:
    """Raise UserError where an export of the steps after those `done` would replace files that are no export's."""
    for step in filter(job.exports_at, range(done + 1, job.num_steps + 1)):
        check_replaceable(job.export(step))


def last_export(job: Job, commit: Commit) -> Path:
    """The export of a training's last commit, made again from the commit where it is gone, cut or another run's.

    Raises UserError where something stands in its place that is no export.
    """
    directory = job.export(commit.cursor.step)
    mark = read_mark(directory)
    if mark and (mark.identity, mark.step) == (job.identity, commit.cursor.step):
        return directory
    remove_export(directory)
    say(f"{job.directory.name}: {directory} is not there, or not whole; exported again from {commit.path.name}")
    ray.get(_export.options(num_cpus=min(1, job.training.workers.cpus)).remote(commit, directory))
    return directory


@ray.remote
def _export(commit: Commit, directory: Path) -> None:
    from raydpo.train.offline import export_commit  # here: drivers load no transformers

    export_commit(commit, directory)
