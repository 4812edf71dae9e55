"""Batch scripts for Slurm: by `bash -n`, and by the directives without which a run would not survive."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from cluster.checks.pods import LEAST_STOP_S, holds_secret

_OPTIONS = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks": r"\d+",
    "ntasks-per-node": r"\d+",
    "exclusive": "",
    "gpus": r"(\w+:)?\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "time": r"(\d+-)?\d{1,2}:\d{2}:\d{2}",
    "signal": r"B:USR1@\d+",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r".*%j.*",
    "partition": r"[\w,-]+",
    "account": r"[\w-]+",
    "qos": r"[\w-]+",
}
_NEEDED = ("job-name", "nodes", "time", "mem", "signal", "requeue", "open-mode", "output")
_OF_RAY_START = ("--head", "--node-ip-address", "--port", "--block")  # which `ray symmetric-run` sets itself
_SYMMETRIC_RUN = re.compile(
    r"^srun\b.*?--kill-on-bad-exit=1\b.*?\bray symmetric-run (.*?)\s-- .+?&$", re.MULTILINE | re.DOTALL
)
_DIRECTIVE = re.compile(r"#SBATCH --([\w-]+)(?:=(\S+))?\s*")


def slurm_problems(text: str) -> list[str]:
    """Everything wrong with a batch script."""
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if checked.returncode:
        return [f"bash -n: {checked.stderr.strip()}"]
    lines = text.splitlines()
    found = [*_directive_problems(lines), *_text_problems(text)]
    several = "ntasks-per-node" in _directives(lines)
    return [*found, *(_several_node_problems(text, lines) if several else _single_node_problems(text, lines))]


def _directives(lines: list[str]) -> dict[str, str]:
    found = (_DIRECTIVE.fullmatch(line) for line in lines)
    return {match[1]: match[2] or "" for match in found if match}


def _directive_problems(lines: list[str]) -> Iterator[str]:
    code = [number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    for number, line in enumerate(lines):
        if not line.startswith(("#SBATCH", "# SBATCH", "#sbatch")):
            continue
        match = _DIRECTIVE.fullmatch(line)
        if match is None:
            yield f"line {number + 1}: write a directive as #SBATCH --name=value"
        elif match[1] not in _OPTIONS:
            yield f"line {number + 1}: --{match[1]} is no option that is known here"
        elif not re.fullmatch(_OPTIONS[match[1]], match[2] or ""):
            yield f"line {number + 1}: --{match[1]}={match[2] or ''} has another form"
        if code and number > code[0]:
            yield f"line {number + 1}: Slurm reads no directive behind the first command"
    given = _directives(lines)
    for name in _NEEDED:
        if name not in given:
            yield f"#SBATCH --{name} is missing"
    notice = given.get("signal", "").rpartition("@")[2]
    if notice.isdigit() and int(notice) < LEAST_STOP_S:
        yield f"#SBATCH --signal: leave {LEAST_STOP_S} s or more for a step and its commit"
    if given.get("open-mode") == "truncate":
        yield "#SBATCH --open-mode: append, or a requeued job writes over its log"


def _text_problems(text: str) -> Iterator[str]:
    if not text.startswith("#!/usr/bin/env bash\n"):
        yield "line 1: #!/usr/bin/env bash"
    for needed, why in (
        ("set -euo pipefail", "a command that fails would go unnoticed"),
        ("umask 077", "others could read the token"),
        ("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=", "whoever reaches a Ray without a token runs code in it"),
        ("unset RAY_ADDRESS", "the job would attach to another cluster"),
        ('scontrol requeue "$SLURM_JOB_ID"', "a job at its time limit would be over"),
        ("python -m raydpo", "that is the command"),
        ('exit "$code"', "Slurm would take every run for a success"),
    ):
        if needed not in text:
            yield f"`{needed}` is missing: {why}"
    traps = re.findall(r"^trap '.*' (\w+)$", text, re.MULTILINE)
    for signal, why in (("USR1", "notice"), ("TERM", "a stop"), ("EXIT", "its end, and the token stays")):
        if signal not in traps:
            yield f"no trap for {signal}: the script would not hear of {why}"
    if holds_secret(text):
        yield "something in it looks like a key"


def _several_node_problems(text: str, lines: list[str]) -> Iterator[str]:
    given = _directives(lines)
    if given.get("ntasks-per-node") != "1" or "exclusive" not in given:
        yield "#SBATCH: --ntasks-per-node=1 and --exclusive: one Ray a node, since `ray stop` ends all that are there"
    if not given.get("nodes", "").isdigit() or int(given["nodes"]) < 2:
        yield "#SBATCH --nodes: two or more; single_node.sh is for one"
    start = _SYMMETRIC_RUN.search(text)
    if start is None:
        yield "`srun --kill-on-bad-exit=1 ray symmetric-run … -- COMMAND &` is missing"
        return
    options = start[1]
    for option in ('--address "$address"', '--min-nodes "$SLURM_JOB_NUM_NODES"', "--disable-usage-stats"):
        if option not in options:
            yield f"`ray symmetric-run`: {option} is missing"
    for option in _OF_RAY_START:
        if re.search(rf"{option}\b", options):
            yield f"`ray symmetric-run` refuses {option}"
    if "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" not in text:
        yield "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT is missing: 30 s are too few for nodes that read a shared disk"
    if "! -s $state/driver" not in text:
        yield "`ray symmetric-run` exits with 0 where its head does not start; look whether the driver ran"


def _single_node_problems(text: str, lines: list[str]) -> Iterator[str]:
    given = _directives(lines)
    if given.get("nodes") != "1" or given.get("ntasks") != "1" or "cpus-per-task" not in given:
        yield "#SBATCH: --nodes=1, --ntasks=1 and --cpus-per-task"
    if "symmetric-run" in text or "ray start" in text:
        yield "on one node raydpo starts Ray itself"
    if 'cluster.num_cpus="$SLURM_CPUS_PER_TASK"' not in text:
        yield "cluster.num_cpus is missing: Ray would count the CPUs of the whole node"
