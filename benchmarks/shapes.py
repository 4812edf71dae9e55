"""The pairs that every benchmark measures, and how many tokens they are.

Legend: P prompt tokens, C tokens of both completions, summed over pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydpo.data.tokens import TokenRow, row_id

TRAINER_BATCH = 8  # pairs: the per-device batch size that the transformers Trainer, and with it TRL, starts from
SMALL_BATCH = 4  # pairs: half of it, so that all activations of a padded batch fit in 16 GB; it also pads less


@dataclass(frozen=True)
class Shape:
    """Bounds of lengths in tokens, both inclusive; lengths are uniform between them."""

    title: str
    prompt: tuple[int, int]
    completion: tuple[int, int]


SHAPES = {
    "long-prompt": Shape("prompt >> completion", (128, 384), (16, 48)),
    "equal": Shape("prompt = completion", (48, 144), (48, 144)),
    "long-completion": Shape("prompt << completion", (8, 24), (64, 192)),
    "mixed": Shape("mixed", (120, 400), (21, 151)),
}


def draw_lengths(shape: Shape, count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Tokens of prompt, chosen and rejected of each pair, shape [count, 3]; equal arguments give equal lengths."""
    rng = np.random.default_rng(seed)
    bounds = np.asarray([shape.prompt, shape.completion, shape.completion])
    return rng.integers(bounds[:, 0], bounds[:, 1], size=(count, 3), endpoint=True)


def make_pairs(shape: Shape, count: int, source: Sequence[int]) -> list[TokenRow]:
    """Pairs of the shape's lengths whose prompts and completions are stretches of `source`, a text as token ids."""
    rng = np.random.default_rng(0)
    rows = []
    for lengths in draw_lengths(shape, count):
        starts = [int(rng.integers(len(source) - length)) for length in lengths]
        prompt, chosen, rejected = (list(source[a : a + n]) for a, n in zip(starts, lengths.tolist(), strict=True))
        rows.append(TokenRow(row_id(prompt, (chosen, rejected)), prompt, (chosen, rejected)))
    return rows


def real_tokens(rows: Sequence[TokenRow]) -> int:
    """P + C: every prompt once."""
    return sum(len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows)


def repeated_tokens(rows: Sequence[TokenRow]) -> int:
    """2P + C: every prompt once for each of its completions."""
    return sum(len(row.prompt_ids) + len(completion) for row in rows for completion in row.completions)


def write_pairs(path: Path, rows: Sequence[TokenRow]) -> None:
    """As token ids, in the form that a run file's data.train takes."""
    with path.open("w") as stream:
        for row in rows:
            chosen, rejected = row.completions
            ids = {"prompt_ids": row.prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}
            stream.write(json.dumps(ids) + "\n")


def read_pairs(path: str) -> list[TokenRow]:
    """What write_pairs wrote."""
    rows = []
    for line in Path(path).read_text().splitlines():
        ids = json.loads(line)
        completions = (ids["chosen_ids"], ids["rejected_ids"])
        rows.append(TokenRow(row_id(ids["prompt_ids"], completions), ids["prompt_ids"], completions))
    return rows
