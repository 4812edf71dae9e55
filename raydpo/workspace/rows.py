"""What the rows of a run are, as its run file says, and whether a loss can learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raydpo.config.schema import Data, Reward, Sample, Sft, Train
from raydpo.config.schema.data import Columns
from raydpo.data.detecting import first_values_of, read_as, rows_of_files
from raydpo.data.formats import FOR_SFT
from raydpo.data.formats.contract import has
from raydpo.data.own import OwnColumns, OwnFunction
from raydpo.data.paths import expand_paths
from raydpo.data.rows import RowFormat, row_format, sft_fields
from raydpo.errors import UserError
from raydpo.workspace.layout import Layout

if TYPE_CHECKING:
    from raydpo.data.shards import TokenManifest
    from raydpo.objective.contract import Objective


@dataclass(frozen=True)
class RowSettings:
    """What a run file says of its preference rows: whence they come, where their tokens lie, who learns from them."""

    layout: Layout
    data: Data
    sample: Sample | None  # the stage that makes the rows; None: files give them
    train: Train
    train_is_said: bool  # else nobody has said how the rows are to be trained on


@dataclass(frozen=True)
class SftRows:
    """What a run file says of the rows of its sft stage."""

    layout: Layout
    data: Data
    sft: Sft
    model: str  # whose tokenizer it is, and who learns from them


def given_rows(data: Data, files: Sequence[str] | None = None) -> RowFormat:
    """The rows of files that the run file names, those to train on if no others are given.

    Where it names neither a format nor columns, the first rows tell. UserError where the files are not there.
    """
    files = data.train if files is None else files
    function = OwnFunction(data.function) if data.function else None
    if data.columns == Columns() and files:
        return rows_of_files(expand_paths(files), data.format, data.ignore, function)
    name = data.format or "pairs"
    columns = {key: getattr(data.columns, key) for key in data.columns.read_by(name)}
    named = {key: text for key, text in columns.items() if text}
    if function is None and "system" not in named and not any("{" in text for text in named.values()):
        return row_format(name, named)
    rows = row_format(name, {"margin": "margin"} if "margin" in named else {})
    return replace(rows, convert=OwnColumns(named, function))


def given_sft_rows(sft: Sft, ignore: Sequence[str]) -> RowFormat:
    """The rows of the sft stage: its columns, or a conversation or an instruction where there are none of that name.

    UserError where the files are not there.
    """
    own = RowFormat("sft", "sft", sft_fields(sft.prompt, sft.completion))
    if (sft.prompt, sft.completion) != ("prompt", "completion"):
        return own
    values, place = first_values_of(expand_paths(sft.train), ignore)
    if has(values, "completion") or has(values, "completion_ids"):
        return own
    found = next((each for each in FOR_SFT.values() if each.matches(values)), None)
    return read_as(found, values, place) if found else own


def training_rows(data: Data, sample: Sample | None) -> RowFormat:
    """The rows that training reads: those of the run file's own files, or those that the sample stage writes."""
    if sample is None:
        return given_rows(data)
    return row_format("ranked" if sample.pairs == "all" else "pairs")


def check_format(rows: RowFormat, objective: Objective) -> None:
    """Raise UserError where rows of a format lack what a loss reads. Needs nothing but the run file."""
    if objective.mean_over == "pairs" and rows.kind == "unpaired":
        raise UserError(
            "train.objective.loss_type compares completions of one prompt, and rows of data.format=unpaired have one "
            "each; choose a loss of single completions, such as kto or bco, or give pairs."
        )
    if "rank" in objective.needs and rows.kind == "unpaired":
        raise UserError(
            "train.objective.loss_type needs completions in order, and rows of data.format=unpaired have one each; set "
            "data.format: ranked."
        )
    if "margin" in objective.needs and "margin" not in rows.columns:
        raise UserError(
            "train.objective asks for the margin of every pair, and the rows have none; name their column in "
            "data.columns.margin, with data.format: pairs."
        )


def check_rewarded(rows: RowFormat, reward: Reward) -> None:
    """Raise UserError where rows of a format lack what a reward model learns from. Needs nothing but the run file."""
    if rows.kind == "unpaired":
        raise UserError(
            "a reward model is trained on which of two completions of a prompt is better, and rows of "
            "data.format=unpaired have one each; give pairs (data.format: pairs) or ranked rows (data.format: ranked)."
        )
    if reward.use_margin and "margin" not in rows.columns:
        raise UserError(
            "reward.use_margin asks for the margin of every pair, and the rows have none; name their column in "
            "data.columns.margin, with data.format: pairs, or leave use_margin out."
        )


def refuse_ties(tokens: TokenManifest, objective: Objective) -> None:
    """Raise UserError where a loss reads a whole order, and prepared rows have ties in theirs."""
    if "rank" in objective.needs and tokens.counts.with_ties:
        raise UserError(
            f"train.objective.loss_type reads the order of all completions of a row, and {tokens.counts.with_ties} of "
            f"{tokens.rows} rows have two completions of one rank; give every completion a rank of its own, or choose "
            "a loss on pairs, for which a tie is no pair."
        )
