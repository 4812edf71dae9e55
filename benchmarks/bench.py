"""The engine against the usual way, interleaved in one process: packed rows with one prompt, or padded sequences.

Run: python -m benchmarks.bench                   (torch and transformers only)

A training step's gradient and a reference pass, in the two layouts of benchmarks/passes.py. Random weights in the
shape of SmolLM2-135M: speed does not depend on the values. Figures are medians of interleaved rounds; MFU is over the
least arithmetic (raydpo.model.flops) and the matrix product measured in the same rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import BUSY, DEVICE, busy_seconds, conditions, device_seconds
from benchmarks.models import source_ids, write_random_model
from benchmarks.passes import Packed, Padded
from benchmarks.shapes import SHAPES, Shape, make_pairs
from raydpo.model.flops import forward_flops, matmul_ceiling
from raydpo.model.load import DTYPES


def measure(model: Path, shape: Shape, dtype: str, *, pairs: int, rounds: int) -> str:
    """One line of the table."""
    rows = make_pairs(shape, pairs, source_ids(None))
    packed, padded = Packed(model, rows, dtype=dtype), Padded(model, rows, dtype=dtype)
    works: dict[str, Callable[[], object]] = {
        "packed": packed.gradient,
        "padded": padded.gradient,
        "packed reference": packed.logps,
        "padded reference": padded.logps,
    }
    gap = abs(packed.gradient() - padded.gradient())  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in works}
    ceilings = []
    for _ in range(rounds):
        ceilings.append(matmul_ceiling(DTYPES[dtype], DEVICE))
        for name, work in works.items():
            times[name].append(busy_seconds(work))
    busy = {name: statistics.median(values) for name, values in times.items()}
    flops = 3 * (forward_flops(packed.lm, packed.bounds) or math.nan)
    mfu = flops / device_seconds(busy["packed"]) / statistics.median(ceilings)
    return (
        f"| {dtype} | {shape.title} | {busy['padded']:.1f} / {busy['packed']:.1f} "
        f"| {busy['padded'] / busy['packed']:.2f} | {mfu:.0%} "
        f"| {busy['padded reference'] / busy['packed reference']:.2f} | {gap:.1e} |"
    )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    print(f"{conditions()}, {options.pairs} pairs, {options.rounds} rounds\n")
    print(f"| dtype | shape | step: padded / packed {BUSY} | ratio | MFU | reference ratio | Δ loss |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
        model = write_random_model(Path(scratch))
        for dtype in options.dtype:
            for name in options.shape:
                print(measure(model, SHAPES[name], dtype, pairs=options.pairs, rounds=options.rounds), flush=True)


if __name__ == "__main__":
    main()
