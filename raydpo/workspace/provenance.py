"""What token shards were made from, kept in their manifest, and held against the run that uses them.

Tokens are made once and used many times. Whatever decides the ids is written beside them, so that a changed run file,
tokenizer or data file is noticed by the stages that read the tokens, not by whoever wonders about the figures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs

from raydpo.config.schema import Data
from raydpo.data.paths import expand_paths
from raydpo.data.shards import TokenManifest
from raydpo.errors import UserError
from raydpo.model.tokenizer_files import chat_template_digest, tokenizer_digest
from raydpo.reference.dataset import MANIFEST
from raydpo.reward.functions import function_source
from raydpo.workspace.objective import needs_others
from raydpo.workspace.rows import RowSettings, SftRows, given_rows, training_rows

Part = Literal["train", "held_out", "sft"]
TOKENIZER = "tokenizer"
INPUTS = "inputs"


@dataclass(frozen=True)
class TokenSource:
    """What a run file says of a part's rows, as far as it decides their ids."""

    part: Part
    model: str  # whose tokenizer it is
    said: dict[str, Any]  # by the run file's keys
    inputs: Sequence[str]  # paths and patterns

    @property
    def stage(self) -> str:
        """The one that makes the tokens."""
        return "sft" if self.part == "sft" else "prepare"

    def decisive(self) -> dict[str, Any]:
        """All of it but the inputs, the tokenizer as a digest of its files and stop tokens."""
        return {TOKENIZER: tokenizer_digest(self.model), **self.said}

    def sizes(self) -> dict[str, int]:
        """The inputs as they are now, in bytes by path. Raises UserError for one that is not there."""
        return {path: _size(path) for path in expand_paths(self.inputs)}


def token_source(settings: RowSettings, part: Literal["train", "held_out"]) -> TokenSource:
    """Those of preference rows. Looks up the loss of rows to train on, which loads torch."""
    data = settings.data
    layout = settings.layout
    apart = part == "held_out" and bool(data.held_out)  # else a share of the training files is held out
    said = _said_of_all(data) | {
        "completions of other prompts": not apart and needs_others(settings.train),
        "data.columns": _named_columns(data),
        "data.held_out_fraction": data.held_out_fraction,
    }
    # Files that have moved away since they were prepared cannot tell what they held, and are not missed.
    with suppress(UserError):
        rows = given_rows(data, data.held_out) if apart else training_rows(data, settings.sample)
        said["data.format"] = rows.name
    return TokenSource(part, layout.start_model, said, data.held_out if apart else layout.pair_files)


def sft_source(settings: SftRows) -> TokenSource:
    """Those of the rows of the sft stage."""
    sft = settings.sft
    said = _said_of_all(settings.data) | {"sft.prompt": sft.prompt, "sft.completion": sft.completion}
    return TokenSource("sft", settings.model, said, sft.train)


def _named_columns(data: Data) -> dict[str, str | None]:
    """As earlier versions wrote them down, whose tokens stay good: they knew neither a system column nor a source."""
    columns = data.columns.model_dump()
    new = {"system", "source"}
    return {key: name for key, name in columns.items() if key not in new or name is not None}


def _said_of_all(data: Data) -> dict[str, Any]:
    """What decides the ids of rows of every part."""
    return {
        "data.max_length": data.max_length,
        "data.truncation": data.truncation,
        "data.append_eos": data.append_eos,
        "data.date": data.date and data.date.isoformat(),
        "data.ignore": list(data.ignore),
        "data.chat_template": data.chat_template and chat_template_digest(data.chat_template),
        "data.max_bad_rows": data.max_bad_rows or None,
        "data.function": data.function and [data.function, function_source(data.function)],
    }


def made_from(settings: TokenSource) -> dict[str, Any]:
    """What decides the ids of a part's rows; as JSON gives it back. Raises UserError for an input that is not there."""
    return {**settings.decisive(), INPUTS: settings.sizes()}


def check_made_from(settings: TokenSource, directory: Path) -> None:
    """Raise UserError when the tokens in a directory are not those that the run would be given by prepare today.

    Inputs that are no longer there are not missed: the tokens are all that training reads.
    """
    kept = _kept(directory)
    for key, value in settings.decisive().items():
        if kept.get(key) == value:
            continue
        if key == TOKENIZER:
            raise _another_tokenizer(settings.model, settings.stage, directory)
        raise UserError(
            f"the tokens in {directory} were prepared with {key}={kept.get(key)}, and the run file says {value}; run "
            f"`raydpo {settings.stage}` again."
        )
    try:
        sizes = settings.sizes()
    except UserError:  # moved away since
        return
    then = kept.get(INPUTS, {})
    for path in sorted(sizes.keys() | then.keys()):
        if sizes.get(path) != then.get(path):
            change = _change(path, sizes, then)
            raise UserError(
                f"the tokens in {directory} were prepared from other data: {path} {change}; run "
                f"`raydpo {settings.stage}` again."
            )


def check_prepared(settings: RowSettings) -> None:
    """Raise UserError where tokens that prepare has left are not this run's; nothing where there are none."""
    layout = settings.layout
    if (layout.train_tokens / MANIFEST).exists():
        check_made_from(token_source(settings, "train"), layout.train_tokens)
    if (layout.held_out_tokens / MANIFEST).exists():
        check_made_from(token_source(settings, "held_out"), layout.held_out_tokens)


def check_same_tokenizer(model: str, directory: Path) -> None:
    """Raise UserError when prepare has made the tokens in a directory with another tokenizer than the model has now."""
    if _kept(directory).get(TOKENIZER) != tokenizer_digest(model):
        raise _another_tokenizer(model, "prepare", directory)


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


def _change(path: str, now: dict[str, int], then: dict[str, int]) -> str:
    if path not in then:
        return "was not among them"
    if path not in now:
        return "is not in the run file now"
    return f"had {then[path]} bytes and has {now[path]}"


def _another_tokenizer(model: str, stage: str, directory: Path) -> UserError:
    return UserError(
        f"the tokens in {directory} were prepared with another tokenizer than {model} has now (its vocabulary, special "
        f"tokens, chat template or stop tokens have changed); run `raydpo {stage}` again, or put the former tokenizer "
        "back."
    )
