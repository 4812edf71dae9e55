"""A training's last export, made again where it is gone, and the room that the coming ones find."""

from __future__ import annotations

from pathlib import Path

import ray

from raydpo.track.say import say
from raydpo.train.checkpoint.commits import Commit
from raydpo.train.mark import check_replaceable, read_mark, remove_export
from raydpo.workspace.job import Job


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
