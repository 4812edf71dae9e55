"""Prompts to sample from, under the same token rule as the pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from raydpo.data.context import arguments_of
from raydpo.data.messages import Value, is_chat
from raydpo.data.paths import expand_paths
from raydpo.data.reading import read_chunks
from raydpo.data.rows import Row, prompt_fields
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import row_id, tokenize_prompt
from raydpo.data.unrendered import leaves_out
from raydpo.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A prompt as text (chat messages as the template renders them) and as token ids."""

    text: str
    ids: list[int]
    where: str  # file and row, for messages


def read_prompts(
    patterns: Sequence[str],
    column: str,
    tokenizer: RowTokenizer,
    *,
    limit: int | None,
    ignore: Sequence[str] = (),
) -> list[Prompt]:
    """The first `limit` prompts of the files, in order. UserError names file and row."""
    prompts = []
    for row, where in _rows(patterns, column, limit, ignore):
        value = row["prompt"]
        arguments = arguments_of(row)
        try:
            ids = tokenize_prompt(value, tokenizer, arguments)
            if is_chat(value):
                leaves_out(tokenizer.chat, value, arguments)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        text = value if isinstance(value, str) else tokenizer.decode(ids, skip_special_tokens=True)
        prompts.append(Prompt(text, ids, where))
    if not prompts:
        raise UserError(f"{', '.join(patterns)} holds no rows; give a file with prompts.")
    return prompts


def contents_hash(patterns: Sequence[str], column: str, *, limit: int | None, ignore: Sequence[str] = ()) -> str:
    """A name for what `read_prompts` would read, before any tokenizer has seen it. Raises UserError as it does."""
    rows = (row for row, _ in _rows(patterns, column, limit, ignore))
    return texts_hash([row["prompt"] if row.keys() == {"prompt"} else row for row in rows])


def prompts_hash(prompts: Sequence[Sequence[int]]) -> str:
    """A name for token ids of prompts in their order."""
    return row_id([], prompts).hex()


def texts_hash(texts: Sequence[Value | Row]) -> str:
    """A name for texts, lists of messages, or rows with more for a template, in their order."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


def _rows(patterns: Sequence[str], column: str, limit: int | None, ignore: Sequence[str]) -> Iterator[tuple[Row, str]]:
    """The row of each prompt, and where it stands."""
    rows = (
        (row, f"{path} row {number}")
        for path in expand_paths(patterns)
        for chunk in read_chunks(path, prompt_fields(column), 256, ignore)
        for number, row in enumerate(chunk.rows, start=chunk.first_row)
    )
    return islice(rows, limit)
