"""Prompts to sample from, under the same token rule as the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from raydpo.config.errors import UserError
from raydpo.data.formats import prompt_fields, read_chunks
from raydpo.data.paths import expand_paths
from raydpo.data.tokens import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A prompt as text (chat messages as the template renders them) and as token ids."""

    text: str
    ids: list[int]


def read_prompts(
    patterns: Sequence[str],
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None,
    ignore: Sequence[str] = (),
) -> list[Prompt]:
    """The first `limit` prompts of the files, in order. UserError names file and row."""
    rows = (
        row["prompt"]
        for path in expand_paths(patterns)
        for chunk in read_chunks(path, prompt_fields(column), 256, ignore)
        for row in chunk.rows
    )
    prompts = []
    for value in islice(rows, limit):
        ids = tokenize_prompt(value, tokenizer)
        text = value if isinstance(value, str) else tokenizer.decode(ids, skip_special_tokens=True)
        prompts.append(Prompt(text, ids))
    if not prompts:
        raise UserError(f"{', '.join(patterns)} holds no rows; give a file with prompts.")
    return prompts
