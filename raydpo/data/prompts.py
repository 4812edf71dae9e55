"""Prompts to sample from, under the same token rule as the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from raydpo.config.errors import UserError
from raydpo.data.formats import expand_paths, prompt_fields, read_chunks
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import tokenize_prompt


@dataclass(frozen=True)
class Prompt:
    """A prompt as text (chat messages as the template renders them) and as token ids."""

    text: str
    ids: list[int]


def read_prompts(patterns: Sequence[str], column: str, tokenizer: RowTokenizer, *, limit: int | None) -> list[Prompt]:
    """The first `limit` prompts of the files, in order. UserError names file and row."""
    rows = (
        (row["prompt"], f"{path} row {number}")
        for path in expand_paths(patterns)
        for chunk in read_chunks(path, prompt_fields(column), rows_per_chunk=256)
        for number, row in enumerate(chunk.rows, start=chunk.first_row)
    )
    prompts = []
    for value, where in islice(rows, limit):
        try:
            ids = tokenize_prompt(value, tokenizer)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        text = value if isinstance(value, str) else tokenizer.decode(ids, skip_special_tokens=True)
        prompts.append(Prompt(text, ids))
    return prompts
