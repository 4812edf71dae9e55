"""How evenly a step's work is shared by ranks: raydpo's micro-batches, and equal numbers of rows.

Run: python -m benchmarks.balance                 (seconds; RAYDPO_DATA=DIR adds preference data found there)

Printed is Σ largest / Σ mean over steps, the time of a group that waits for its slowest rank over the time of one
that never waits. Work is counted in tokens, which raydpo balances, and in the arithmetic of SmolLM2-135M on them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from benchmarks.models import smollm_config
from benchmarks.shapes import SHAPES, draw_lengths
from raydpo.data.order import split_microbatches
from raydpo.model.flops import forward_flops

RANKS = (2, 4, 8)
FIELDS = ("prompt", "chosen", "rejected")
CHARACTERS_PER_TOKEN = 4  # of English text, about; only ratios are printed
LONGEST = 1024  # tokens of a row

Ints = NDArray[np.int64]
Shares = list[Ints]  # for each rank, its rows


def mixtures(pairs: int) -> Iterator[tuple[str, Ints]]:
    """Names and lengths [pairs, 3] in tokens of prompt, chosen and rejected; of files, those with enough pairs."""
    for shape in SHAPES.values():
        yield shape.title, draw_lengths(shape, pairs)
    if directory := os.environ.get("RAYDPO_DATA"):
        for path in sorted(Path(directory).glob("*.jsonl.gz")):
            if len(lengths := _read_lengths(path)) >= pairs:
                yield path.name.removesuffix(".jsonl.gz"), lengths[:pairs]


def _read_lengths(path: Path) -> Ints:
    """Of the pairs that are not too long; none where the rows are not text pairs."""
    with gzip.open(path, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    if not rows or not all(isinstance(rows[0].get(name), str) for name in FIELDS):
        return np.empty((0, len(FIELDS)), dtype=np.int64)
    lengths = np.asarray([[len(row[name]) // CHARACTERS_PER_TOKEN + 1 for name in FIELDS] for row in rows])
    return lengths[lengths.sum(axis=1) <= LONGEST]


def equal_rows(count: int, ranks: int) -> Shares:
    """As many rows for every rank, in the order in which they come."""
    return np.split(np.arange(count), ranks)


def planned(tokens: Ints, ranks: int, *, tokens_per_microbatch: int) -> Shares:
    """What raydpo gives every rank."""
    by_rank = split_microbatches(tokens, world_size=ranks, tokens_per_microbatch=tokens_per_microbatch)
    return [np.concatenate(batches) for batches in by_rank]


def waiting(work: Sequence[NDArray[np.float64]], shares: Sequence[Shares]) -> float:
    """Σ largest / Σ mean: work[k] of each row of step k, shares[k] the rows of each rank."""
    loads = np.asarray([[values[rows].sum() for rows in ranks] for values, ranks in zip(work, shares, strict=True)])
    return float(loads.max(axis=1).sum() / loads.mean(axis=1).sum())


def operations(lengths: Ints) -> NDArray[np.float64]:
    """Of a forward pass over each pair."""
    with torch.device("meta"):
        lm = LlamaForCausalLM(smollm_config())
    ends = np.cumsum(lengths, axis=1).tolist()
    return np.asarray([forward_flops(lm, ((0, *row),)) for row in ends], dtype=np.float64)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--global-batch", type=int, default=64, metavar="PAIRS", help="a multiple of 8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budget", type=int, default=4096, metavar="TOKENS", help="of a micro-batch")
    options = parser.parse_args()
    size = options.global_batch
    if size < 1 or size % max(RANKS):
        parser.error(f"--global-batch {size} does not divide by {max(RANKS)} ranks; take a multiple of {max(RANKS)}.")
    print("| lengths | ranks | equal rows: tokens | arithmetic | raydpo: tokens | arithmetic |")
    print("|---|---|---|---|---|---|")
    for title, lengths in mixtures(size * options.steps):
        steps = range(len(lengths) // size)
        tokens, work = lengths.sum(axis=1), operations(lengths)
        tokens_of = [tokens[k * size : (k + 1) * size] for k in steps]
        work_of = [work[k * size : (k + 1) * size] for k in steps]
        for ranks in RANKS:
            rows = [equal_rows(size, ranks) for _ in steps]
            ours = [planned(step, ranks, tokens_per_microbatch=options.budget) for step in tokens_of]
            ratios = [waiting(of, shares) for shares in (rows, ours) for of in (tokens_of, work_of)]
            print(f"| {title} | {ranks} | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
