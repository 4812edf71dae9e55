"""The section `data`: preference data and how it becomes tokens."""

from __future__ import annotations

import datetime
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydpo.config.schema.section import Directory, Location, NonNegativeInt, PositiveInt, Section


def columns_of(text: str) -> list[str]:
    """The columns that a text in braces names; without braces it is one itself. ValueError for other braces."""
    parts = list(Formatter().parse(text))
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion or set(name) & set(".[]")):
            raise ValueError(f"data.columns has {text!r}; in braces stands the name of a column, as in {{topic}}")
    return [name for _, name, _, _ in parts if name] or [text]


class Columns(Section):
    """What the input files call their columns; data.format says which of them are read.

    With braces it is a text of several columns, such as "{topic}: {question}".
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str | None = None  # a system message before the prompt; "system" is read where there are messages
    margin: str | None = None  # of pairs, where they have one: how far apart the completions are
    completion: str = "completion"
    label: str = "label"  # true or false: whether the completion is wanted
    completions: str = "completions"
    ranks: str = "ranks"  # one whole number a completion, 1 is the best, equal ones are ties
    scores: str = "scores"  # or one number a completion, the higher the better
    source: str | None = None  # of rows that say where they come from: the accuracy of a reward model is told by it

    def read_by(self, rows: str | None) -> list[str]:
        """Keys of the columns that rows of a format have, by data.format; of other people's formats there are none.

        Columns that are named for rows without a format are those of pairs.
        """
        of = _COLUMNS_OF.get(rows or "pairs")
        return [] if of is None else ["prompt", "system", *of]


_COLUMNS_OF = {
    "pairs": ("chosen", "rejected", "margin", "source"),
    "unpaired": ("completion", "label", "source"),
    "ranked": ("completions", "ranks", "scores", "source"),
}
Share = Annotated[float, Field(gt=0, lt=1)]
Format = Literal[
    "pairs",
    "unpaired",
    "ranked",
    "nemo",
    "nectar",
    "ultrafeedback",
    "argilla",
    "reward_bench",
    "alpaca_kto",
    "alpaca",
    "sharegpt_kto",
    "sharegpt",
    "ms_swift",
    "ms_swift_kto",
    "axolotl",
    "openrlhf",
    "openrlhf_kto",
    "hh",
    "implicit",
]


class Data(Section):
    """Preference data and how it becomes tokens."""

    train: list[Location] = []  # .jsonl, .jsonl.gz, .parquet, or globs; empty when the sample stage makes the rows
    held_out: list[Location] = []  # rows never trained on, for pair accuracy
    held_out_fraction: float = Field(0.0, ge=0, lt=1)  # or: this share of the prompts, chosen by their hash
    format: Format | None = None  # what a row of these files is, see docs/data.md; else their first rows tell
    columns: Columns = Columns()
    function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")  # package.module:function, row → row, before all else
    ignore: list[str] = []  # columns, and keys of chat messages, that mean something and are left out knowingly
    max_length: PositiveInt = 1024  # tokens of prompt plus the longer completion
    max_bad_rows: NonNegativeInt | Share = 0  # rows, or a share of them, that may be bad: they go to a side file
    truncation: Literal["error", "drop", "truncate_prompt_left", "truncate_completion"] = "error"
    append_eos: bool = True
    chat_template: Directory | None = None  # a file with the template of messages, instead of the tokenizer's own
    date: datetime.date | None = None  # for chat templates that print today's date, which are refused without it
    rows_per_shard: PositiveInt = 1000

    @model_validator(mode="after")
    def _one_held_out_rule(self) -> Data:
        if self.held_out and self.held_out_fraction:
            raise ValueError("held_out and held_out_fraction exclude each other; keep one")
        return self

    @model_validator(mode="after")
    def _nothing_that_is_read_is_ignored(self) -> Data:
        said = [getattr(self.columns, key) or "" for key in self.columns.read_by(self.format)]
        read = {name for text in said for name in columns_of(text)} | {"role", "content"}
        both = sorted(read.intersection(self.ignore))
        if both:
            raise ValueError(f"data.ignore names {', '.join(both)}, which is read; take it out of the list")
        return self

    @model_validator(mode="after")
    def _columns_or_a_format_of_its_own(self) -> Data:
        if self.columns != Columns() and not self.columns.read_by(self.format):
            raise ValueError(
                f"data.columns renames columns, and rows of data.format={self.format} have those of their format; "
                "remove it, or the format"
            )
        return self

    @model_validator(mode="after")
    def _columns_that_are_named_are_read(self) -> Data:
        named = {key for key, value in self.columns if value != getattr(Columns(), key)}
        unread = sorted(named.difference(self.columns.read_by(self.format)))
        if unread:
            format = self.format or "pairs"
            raise ValueError(
                f"data.columns.{unread[0]} is set, and rows of data.format={format} have no such column; remove it, or "
                "set the format that has it"
            )
        return self
