"""From a file and command-line overrides to a checked run file, and back to text without secrets."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml.error import YAMLError

from raydpo.config.keys import is_known, nearest_key
from raydpo.config.problems import describe_problems
from raydpo.config.schema import RunFile
from raydpo.config.secret import redact, redact_environment
from raydpo.config.yaml12 import read_yaml, write_yaml
from raydpo.errors import UserError


def load_run_file(path: str | Path, overrides: Sequence[str] = ()) -> RunFile:
    """Read a run file and lay `dotted.key=value` overrides over it, the later over the earlier.

    Values are strict: `true` is not 1, `"0.1"` is not a number, `2.0` is not an integer.
    Raises UserError that names the file and every problem found in it.
    """
    tree = read_mapping(Path(path))
    for override in overrides:
        _apply(tree, override)
    return checked_run_file(tree, str(path))


def checked_run_file(tree: Mapping[str, Any], where: str) -> RunFile:
    """The run file that a tree holds. Raises UserError with every problem found in it; where: what to call it."""
    try:
        return RunFile.model_validate(tree, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {describe_problems(error)}") from None


def dump_run_file(run: RunFile) -> str:
    """The resolved run file as YAML, defaults included and secrets redacted."""
    tree = redact(run.model_dump(mode="json"))
    tree["cluster"]["env"] = redact_environment(run.cluster.env)
    return write_yaml(tree)


def shipped_run_file(run: RunFile) -> str:
    """The resolved run file as YAML, to be sent to a cluster, where others may read it.

    Raises UserError where it holds a secret, which belongs into the environment of the nodes.
    """
    for name, value in run.cluster.env.items():
        if redact_environment({name: value})[name] != value:
            raise UserError(
                f"cluster.env.{name} looks like a secret, and a submitted job's settings can be read on the dashboard. "
                "Set it in the environment of the nodes, and take it out of the run file."
            )
    tree = run.model_dump(mode="json")
    if key := _first_secret(tree):
        raise UserError(
            f"{key} has credentials in its address, and a submitted job's settings can be read on the dashboard. Give "
            "the nodes the credentials by their environment, and take them out of the run file."
        )
    return write_yaml(tree)


def _first_secret(value: Any, key: str = "") -> str | None:
    """The dotted key of the first text that would be redacted."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_first_secret(item, f"{key}.{name}".lstrip(".")) for name, item in items)
        return next(filter(None, found), None)
    return key if redact(value) != value else None


def read_mapping(path: Path) -> dict[str, Any]:
    """The tree of a YAML file whose top is a mapping. Raises UserError with the line where it is something else."""
    try:
        with path.open("rb") as file:
            tree = read_yaml(file)
    except OSError as error:
        raise UserError(f"{path}: cannot read the run file ({error.strerror}); give the path of a YAML file.") from None
    except YAMLError as error:
        raise UserError(f"{path}{_place_and_reason(error)}") from None
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise UserError(f"{path}, line 1: a run file is a mapping such as `name: my-run`; this one is {found}.")
    return tree


def _place_and_reason(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None:
        return f": not YAML: {error}"
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r} has no value; write it as key=value, for example train.epochs=2.")
    try:
        value = read_yaml(text)
    except YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML{_place_and_reason(error)}") from None
    set_key(tree, key, value, f"override {override!r}")


def set_key(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Lay a value over a run file's tree at a dotted key. Raises UserError for a key that no run file has."""
    if not is_known(key):
        raise UserError(f"{where}: unknown key {key}; the nearest known key is {nearest_key(key)}.")
    *sections, name = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"{where}: {section} is not a section in the run file but {tree!r}.")
    tree[name] = copy.deepcopy(value)  # later keys may be laid into it
