"""The commands in manifests: each has to be one that raydpo has, and each run file one that it takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from raydpo.cli import STAGES
from raydpo.config.keys import is_known, nearest_key
from raydpo.config.load import checked_run_file
from raydpo.config.yaml12 import read_yaml
from raydpo.errors import UserError

JOBS = Path(__file__).parents[2] / "jobs"
# KubeRay puts an entrypoint unquoted into the submitter's own shell, which would take these for itself.
_FOR_A_SHELL = re.compile(r"[;&|<>`$(){}*?\[\]'\"\\\n]")


def entrypoint_problems(command: str) -> Iterator[str]:
    """Of the command of a job: `python -m raydpo STAGE RUNFILE [key=value …]`, or a script of jobs/."""
    if found := _FOR_A_SHELL.search(command):
        yield f"{found[0]!r} would be read by the shell of the pod that submits; leave it out"
        return
    words = shlex.split(command)
    stage, arguments = _stage(words)
    if stage is None:
        yield f"{command!r} is no command that raydpo has; write `python -m raydpo STAGE RUNFILE [key=value …]`"
        return
    if stage not in STAGES:
        yield f"raydpo has no stage {stage}; it has {', '.join(STAGES)}"
    if not arguments or "=" in arguments[0]:
        yield "the run file is missing behind the stage"
    for override in arguments[1:]:
        key, equals, _ = override.partition("=")
        if not equals:
            yield f"{override} is no override; write key=value"
        elif not is_known(key):
            yield f"unknown key {key}; the nearest known key is {nearest_key(key)}"


def _stage(words: list[str]) -> tuple[str | None, list[str]]:
    """The stage that a command runs, with what stands behind it; None for any other command."""
    if words[:3] == ["python", "-m", "raydpo"] and len(words) > 3:
        return words[3], words[4:]
    if words[:1] == ["raydpo"] and len(words) > 1:
        return words[1], words[2:]
    script = Path(words[1]) if words[:1] == ["python"] and len(words) > 1 else None
    if script and script.parent.name == "jobs" and (JOBS / script.name).is_file():
        return script.stem, words[2:]
    return None, []


def run_file_of(command: str) -> str | None:
    """The path of the run file in a command that has no problems."""
    return next(iter(_stage(shlex.split(command))[1]), None)


def run_file_problems(text: str) -> Iterator[str]:
    """Of a run file that stands inside a manifest."""
    try:
        tree: Any = read_yaml(text)
        if not isinstance(tree, dict):
            yield "a run file is a mapping"
            return
        run = checked_run_file(tree, "the run file")
    except (YAMLError, UserError) as error:
        yield str(error)
        return
    for key, path in (("output_dir", run.output_dir), ("model.path", run.model.path)):
        if not path.startswith("/shared/"):
            yield f"{key}={path} has to be below /shared, which every pod mounts"
