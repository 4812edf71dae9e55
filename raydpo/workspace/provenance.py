"""What token shards were made from, kept in their manifest, and held against the run that uses them.

Tokens are made once and used many times. Whatever decides the ids is written beside them, so that a changed run file,
tokenizer or data file is noticed by the stages that read the tokens, not by whoever wonders about the figures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs

from raydpo.config.schema import RunFile
from raydpo.data.paths import expand_paths
from raydpo.data.shards import TokenManifest
from raydpo.errors import UserError
from raydpo.model.tokenizer_files import tokenizer_digest
from raydpo.reference.dataset import MANIFEST
from raydpo.workspace.layout import Layout
from raydpo.workspace.objective import needs_others
from raydpo.workspace.rows import given_rows, training_rows

Part = Literal["train", "held_out", "sft"]
TOKENIZER = "tokenizer"
INPUTS = "inputs"


def made_from(run: RunFile, part: Part) -> dict[str, Any]:
    """What decides the ids of a part's rows, by the run file's keys; as JSON gives it back.

    The tokenizer stands there as a digest of its files and stop tokens, the inputs as sizes in bytes by path. Raises
    UserError for an input that is not there.
    """
    return {**_settings(run, part), INPUTS: _sizes(expand_paths(_patterns(run, part)))}


def check_made_from(run: RunFile, part: Part, directory: Path) -> None:
    """Raise UserError when the tokens in a directory are not those that the run would be given by prepare today.

    Inputs that are no longer there are not missed: the tokens are all that training reads.
    """
    kept = _kept(directory)
    for key, value in _settings(run, part).items():
        if kept.get(key) == value:
            continue
        if key == TOKENIZER:
            raise _another_tokenizer(run, part, directory)
        raise UserError(
            f"the tokens in {directory} were prepared with {key}={kept.get(key)}, and the run file says {value}; run "
            f"`raydpo {_stage(part)}` again."
        )
    try:
        sizes = _sizes(expand_paths(_patterns(run, part)))
    except UserError:  # moved away since
        return
    then = kept.get(INPUTS, {})
    for path in sorted(sizes.keys() | then.keys()):
        if sizes.get(path) != then.get(path):
            change = _change(path, sizes, then)
            raise UserError(
                f"the tokens in {directory} were prepared from other data: {path} {change}; run "
                f"`raydpo {_stage(part)}` again."
            )


def check_prepared(run: RunFile) -> None:
    """Raise UserError where tokens that prepare has left are not this run's; nothing where there are none."""
    layout = Layout(run)
    directories: dict[Part, Path] = {"train": layout.train_tokens, "held_out": layout.held_out_tokens}
    for part, directory in directories.items():
        if (directory / MANIFEST).exists():
            check_made_from(run, part, directory)


def check_same_tokenizer(run: RunFile, part: Part, directory: Path) -> None:
    """Raise UserError when the tokens in a directory were prepared with another tokenizer than the run has now."""
    if _kept(directory).get(TOKENIZER) != _settings(run, part)[TOKENIZER]:
        raise _another_tokenizer(run, part, directory)


def _settings(run: RunFile, part: Part) -> dict[str, Any]:
    data = run.data
    settings: dict[str, Any] = {
        TOKENIZER: tokenizer_digest(_model(run, part)),
        "data.max_length": data.max_length,
        "data.truncation": data.truncation,
        "data.append_eos": data.append_eos,
        "data.date": data.date and data.date.isoformat(),
        "data.ignore": list(data.ignore),
    }
    if part == "sft":
        assert run.sft
        return {**settings, "sft.prompt": run.sft.prompt, "sft.completion": run.sft.completion}
    of_own_files = part == "held_out" and bool(data.held_out)  # else a share of what is trained on
    rows = given_rows(data) if of_own_files else training_rows(data, run.sample)
    return {
        **settings,
        "data.format": rows.name,
        "completions of other prompts": not of_own_files and needs_others(run),
        "data.columns": data.columns.model_dump(),
        "data.held_out_fraction": data.held_out_fraction,
    }


def _model(run: RunFile, part: Part) -> str:
    return run.model.path if part == "sft" else Layout(run).start_model


def _patterns(run: RunFile, part: Part) -> Sequence[str]:
    if part == "sft":
        assert run.sft
        return run.sft.train
    if part == "held_out" and run.data.held_out:
        return run.data.held_out
    return Layout(run).pair_files


def _sizes(paths: Sequence[str]) -> dict[str, int]:
    return {path: _size(path) for path in paths}


def _size(path: str) -> int:
    if "://" not in path:
        return os.path.getsize(path)
    filesystem, inner = pafs.FileSystem.from_uri(path)
    return int(filesystem.get_file_info(inner).size)


def _kept(directory: Path) -> dict[str, Any]:
    kept = TokenManifest.read(directory / MANIFEST).made_from
    if not kept:
        raise UserError(
            f"{directory / MANIFEST} does not say what the tokens were made from, as an earlier raydpo left it; run "
            "`raydpo prepare` again."
        )
    return kept


def _stage(part: Part) -> str:
    return "sft" if part == "sft" else "prepare"


def _change(path: str, now: dict[str, int], then: dict[str, int]) -> str:
    if path not in then:
        return "was not among them"
    if path not in now:
        return "is not in the run file now"
    return f"had {then[path]} bytes and has {now[path]}"


def _another_tokenizer(run: RunFile, part: Part, directory: Path) -> UserError:
    return UserError(
        f"the tokens in {directory} were prepared with another tokenizer than {_model(run, part)} has now (its "
        f"vocabulary, special tokens, chat template or stop tokens have changed); run `raydpo {_stage(part)}` again, "
        "or put the former tokenizer back."
    )
