"""Dockerfiles: what can be said without building them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cluster.checks.pods import holds_secret, looks_secret

ROOT = Path(__file__).parents[2]
_KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "SHELL", "USER", "WORKDIR"}
_LOCK_PYTHON = re.compile(r"for Python (\d+\.\d+)")


def docker_problems(variant: str, text: str, ignored: str) -> list[str]:
    """Everything wrong with VARIANT.Dockerfile; ignored: the text of its .dockerignore."""
    steps = _instructions(text)
    problems = [*_form_problems(steps), *_base_problems(variant, steps), *_install_problems(variant, steps)]
    problems += [*_user_problems(steps), *_secret_problems(text, steps), *_context_problems(steps, ignored)]
    return problems


def _instructions(text: str) -> list[tuple[str, str]]:
    """Names and arguments, with continued lines put together and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


def _arguments(steps: list[tuple[str, str]], name: str) -> list[str]:
    return [argument for step, argument in steps if step == name]


def _form_problems(steps: list[tuple[str, str]]) -> Iterator[str]:
    for name, argument in steps:
        if name == "ADD":
            yield "ADD fetches and unpacks whatever it is given; use COPY"
        elif name not in _KNOWN:
            yield f"{name} is no instruction that is used here"
        elif not argument:
            yield f"{name} says nothing"


def _base_problems(variant: str, steps: list[tuple[str, str]]) -> Iterator[str]:
    bases = _arguments(steps, "FROM")
    if len(bases) != 1 or not steps or steps[0][0] != "FROM":
        yield "one FROM, and nothing before it"
        return
    name, _, tag = bases[0].partition(":")
    lock = _LOCK_PYTHON.search((ROOT / "requirements" / f"{variant}.lock").read_text(encoding="utf-8"))
    if name != "python" or not lock or not tag.startswith(f"{lock[1]}-"):
        yield f"FROM: a python:{lock[1] if lock else ''}-… image, the version that the lock is for, and never latest"


def _install_problems(variant: str, steps: list[tuple[str, str]]) -> Iterator[str]:
    runs = _arguments(steps, "RUN")
    pips = [run for run in runs if "pip install" in run]
    if not any(f"-r requirements/{variant}.lock" in run for run in pips):
        yield f"RUN: pip installs requirements/{variant}.lock, and nothing that is not locked"
    for run in pips:
        if "--no-deps" not in run or "--no-cache-dir" not in run:
            yield "RUN: pip install needs --no-deps, because the lock is complete, and --no-cache-dir"
        packages = [word for word in run.partition("pip install")[2].split() if not word.startswith("-")]
        if set(packages) - {f"requirements/{variant}.lock", "."}:
            yield f"RUN: pip installs {', '.join(packages)}, which is not from the lock"
    for run in runs:
        if "apt-get install" in run and not ("--no-install-recommends" in run and "rm -rf /var/lib/apt/lists" in run):
            yield "RUN: apt-get install needs --no-install-recommends, and its lists removed in the same step"
        if re.search(r"(curl|wget) [^|&]*\|\s*(ba)?sh", run):
            yield "RUN: a script from the network is run unseen"
    if "RAY_AUTH_MODE=token" not in " ".join(_arguments(steps, "ENV")).split():
        yield "ENV: RAY_AUTH_MODE=token is missing, with which a Ray in this image asks for a token"


def _user_problems(steps: list[tuple[str, str]]) -> Iterator[str]:
    users = _arguments(steps, "USER")
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "USER: a number above 0; Kubernetes cannot tell by a name that it is not root"
    elif f"--uid {users[-1].partition(':')[0]} " not in " ".join(_arguments(steps, "RUN")):
        yield "USER: no useradd has made this uid, which needs a home for Ray's token"
    elif steps[-1][0] != "USER":
        yield "USER: has to be the last instruction, so that what is installed belongs to root"


def _secret_problems(text: str, steps: list[tuple[str, str]]) -> Iterator[str]:
    settings = [w.partition("=") for s in ("ENV", "ARG") for a in _arguments(steps, s) for w in a.split() if "=" in w]
    if holds_secret(text) or any(looks_secret(name, value) for name, _, value in settings if name != "RAY_AUTH_MODE"):
        yield "a secret in an image is everybody's who has the image"


def _context_problems(steps: list[tuple[str, str]], ignored: str) -> Iterator[str]:
    """Of the files that are copied; the .dockerignore names them one by one, so that no checkout's leftovers come."""
    rules = ignored.split()
    if rules[:1] != ["*"]:
        yield ".dockerignore: has to begin with *, and then name what is let in"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    for argument in _arguments(steps, "COPY"):
        for source in argument.split()[:-1]:
            if not (ROOT / source).exists():
                yield f"COPY: the checkout has no {source}"
            elif source.partition("/")[0] not in allowed:
                yield f"COPY: .dockerignore leaves {source} out"
    folders = [argument.split()[:-1] for argument in _arguments(steps, "COPY")]
    if {"raydpo", "jobs"} - {source for sources in folders for source in sources}:
        yield "COPY: raydpo and jobs are missing"
