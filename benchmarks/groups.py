"""A ranked group of completions as one row, against the same group as one row for each of its pairs.

Run: python -m benchmarks.groups                  (torch and transformers only)

Both train on the same pairs and have the same loss. The group reads its prompt once and every completion once; the
pairs read them once a pair, in the packed rows in which raydpo trains on pairs. Measured are the gradient of a step and
the reference pass that comes before it. Random weights in the shape of SmolLM2-135M: speed does not depend on the
values. Figures are medians of interleaved rounds, behind one that warms up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import BUSY, DEVICE, busy_seconds, conditions
from benchmarks.models import source_ids, write_random_model
from benchmarks.passes import TOKENS_PER_MICROBATCH
from benchmarks.shapes import real_tokens
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.tokens import TokenRow, row_id
from raydpo.model.batch import Batch
from raydpo.model.load import DTYPES, load_model
from raydpo.model.score import ScoringModel
from raydpo.objective.contract import REF_LOGPS
from raydpo.objective.registry import make_objective, resolve
from raydpo.reference.scoring import score_rows

GROUP, PAIRS = "one row a group", "one row a pair"


class Contender:
    """raydpo's engine without Ray and DeepSpeed, on rows of any number of completions, best first."""

    def __init__(self, model: ScoringModel, rows: Sequence[TokenRow]) -> None:
        self._model = model
        self._rows = rows
        self._loss = make_objective(resolve(["sigmoid"])).loss
        self.tokens = real_tokens(rows)
        self.completions = sum(len(row.completions) for row in rows)
        self._pairs = sum(len(row.completions) * (len(row.completions) - 1) // 2 for row in rows)
        self._batches: list[Batch] = []

    def reference(self) -> None:
        """Score every completion of the rows, and lay out the batches of the step with the sums."""
        device = torch.device(DEVICE)
        scored, _ = score_rows(self._model, self._rows, tokens_per_microbatch=TOKENS_PER_MICROBATCH, device=device)
        sums = [[float(values.sum()) for values in of_row] for of_row in scored]
        lengths = np.asarray([real_tokens([row]) for row in self._rows])
        bound = max(TOKENS_PER_MICROBATCH, int(lengths.max()))
        [micro_batches] = split_microbatches(lengths, world_size=1, tokens_per_microbatch=bound)
        self._batches = [self._batch(members.tolist(), sums) for members in micro_batches]

    def _batch(self, members: Sequence[int], sums: Sequence[Sequence[float]]) -> Batch:
        ref_logps = torch.tensor([value for i in members for value in sums[i]])
        return Batch.from_pack(pack_rows([self._rows[i] for i in members]), {REF_LOGPS: ref_logps}, device=DEVICE)

    def gradient(self) -> float:
        """Make the gradient of the mean loss over the pairs anew; returns the loss."""
        self._model.zero_grad()
        mean = 0.0
        for batch in self._batches:
            total, *_ = self._model(batch, self._loss)
            (total / self._pairs).backward()
            mean += float(total.detach()) / self._pairs
        return mean


def make_groups(count: int, size: int, prompt: int, completion: int) -> list[TokenRow]:
    """Groups of random tokens with these lengths."""
    source = source_ids(None)
    rng = np.random.default_rng(0)

    def stretch(length: int) -> list[int]:
        start = int(rng.integers(len(source) - length))
        return source[start : start + length]

    groups = []
    for _ in range(count):
        ids = stretch(prompt)
        completions = tuple(stretch(completion) for _ in range(size))
        groups.append(TokenRow(row_id(ids, completions), ids, completions))
    return groups


def as_pairs(groups: Sequence[TokenRow]) -> list[TokenRow]:
    """Every two completions of a group as a row of their own."""
    return [
        TokenRow(row_id(group.prompt_ids, two), group.prompt_ids, two)
        for group in groups
        for two in combinations(group.completions, 2)
    ]


def measure(model: ScoringModel, groups: Sequence[TokenRow], rounds: int) -> str:
    """The table, and below it how far the losses are apart."""
    contenders = {PAIRS: Contender(model, as_pairs(groups)), GROUP: Contender(model, groups)}
    reference: dict[str, list[float]] = {name: [] for name in contenders}
    gradient: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            scoring = busy_seconds(torch.no_grad()(contender.reference))
            training = busy_seconds(_kept(contender.gradient, losses, name))
            print(f"round {turn}: {name}: {scoring:.1f} + {training:.1f} s", file=sys.stderr, flush=True)
            if turn > 0:
                reference[name].append(scoring)
                gradient[name].append(training)
    lines = [
        f"| rows | tokens | completions | {BUSY}, reference | {BUSY}, gradient | {BUSY}, both | × |",
        "|---|---|---|---|---|---|---|",
    ]
    both = {name: _median_of_sums(reference[name], gradient[name]) for name in contenders}
    for name, contender in contenders.items():
        lines.append(
            f"| {name} | {contender.tokens} | {contender.completions} | {statistics.median(reference[name]):.2f} "
            f"| {statistics.median(gradient[name]):.2f} | {both[name]:.2f} | {both[PAIRS] / both[name]:.2f} |"
        )
    lines += ["", f"mean losses differ by {abs(losses[PAIRS] - losses[GROUP]):.1e}"]
    return "\n".join(lines)


def _median_of_sums(first: Sequence[float], second: Sequence[float]) -> float:
    return statistics.median(a + b for a, b in zip(first, second, strict=True))


def _kept(work: Callable[[], float], results: dict[str, float], name: str) -> Callable[[], None]:
    def run() -> None:
        results[name] = work()

    return run


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=253, help="tokens")
    parser.add_argument("--completion", type=int, default=80, help="tokens of each")
    parser.add_argument("--size", type=int, default=4, help="completions of a group")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lm = load_model(str(write_random_model(Path(scratch) / "model")), dtype=options.dtype, device=DEVICE)
    groups = make_groups(options.groups, options.size, options.prompt, options.completion)
    print(f"\n{conditions()}: SmolLM2-135M, {options.dtype}, groups of {options.size}, ", end="")
    print(f"prompts of {options.prompt} and completions of {options.completion} tokens\n")
    print(measure(ScoringModel(lm.train()), groups, options.rounds))


if __name__ == "__main__":
    main()
