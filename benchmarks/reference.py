"""The reference pass: raydpo's packed scorer, padded full logits and vLLM's `prompt_logprobs`, interleaved.

Run: python -m benchmarks.reference --model assets/smollm2 --dtype bfloat16

All score the same pairs with the same weights; the table says how far their log-probs are apart. Figures are medians
of interleaved rounds, behind one round that warms up.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.child import Answer, Child, Task
from benchmarks.measure import BUSY, DEVICE, Stopwatch, conditions, device_seconds, peak_memory
from benchmarks.models import source_ids, write_random_model
from benchmarks.passes import Logps, Packed, Padded
from benchmarks.shapes import SHAPES, Shape, make_pairs, real_tokens, write_pairs
from raydpo.model.flops import forward_flops, matmul_ceiling
from raydpo.model.load import DTYPES

PADDED, VLLM, PACKED = "padded, full logits", "vLLM prompt_logprobs", "raydpo, packed"


def measure(shape: Shape, dtype: str, options: argparse.Namespace, scratch: Path) -> str:
    """The table of one shape in one dtype."""
    model = options.model.absolute() if options.model else write_random_model(scratch / "model")
    rows = make_pairs(shape, options.pairs, source_ids(options.model))
    write_pairs(scratch / "pairs.jsonl", rows)
    task = Task(str(scratch / "pairs.jsonl"), str(model), str(model), dtype, scratch=str(scratch / "vllm"))
    packed, padded, vllm = Packed(model, rows, dtype=dtype), Padded(model, rows, dtype=dtype), Child("vllm_child", task)
    scorers = {PADDED: _here(padded.logps), VLLM: vllm.ask, PACKED: _here(packed.logps)}
    answers: dict[str, list[Answer]] = {name: [] for name in scorers}
    ceilings = []
    try:
        for turn in range(options.rounds + 1):
            ceilings.append(matmul_ceiling(DTYPES[dtype], DEVICE))
            for name, score in scorers.items():
                answers[name].append(score())
                print(f"round {turn}: {name} {answers[name][-1].busy:.1f} s", file=sys.stderr, flush=True)
    finally:
        vllm.close()
    busy = {name: statistics.median(a.busy for a in rounds[1:]) for name, rounds in answers.items()}
    ours = np.asarray(answers[PACKED][0].logps)
    flops = forward_flops(packed.lm, packed.bounds) or math.nan
    ceiling, tokens = statistics.median(ceilings), real_tokens(rows)
    lines = [
        f"{shape.title}, {dtype}: {len(rows)} pairs, {tokens} tokens with every prompt once",
        "",
        f"| scorer | {BUSY} | × padded | × vLLM | tokens/s | MFU | max Δ log π(y given x), nats |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seconds in busy.items():
        gap = np.abs(np.asarray(answers[name][0].logps) - ours).max()
        lines.append(
            f"| {name} | {seconds:.2f} | {busy[PADDED] / seconds:.2f} | {busy[VLLM] / seconds:.2f} "
            f"| {tokens / device_seconds(seconds):.0f} | {flops / device_seconds(seconds) / ceiling:.0%} | {gap:.1e} |"
        )
    return "\n".join(lines)


def _here(logps: Callable[[], Logps]) -> Callable[[], Answer]:
    """A scorer of this process, asked as a child is."""

    def ask() -> Answer:
        watch = Stopwatch()
        values = logps()
        spent = watch.stop()
        return Answer(spent.busy, spent.wall, peak_memory(), logps=values.tolist())

    return ask


def main() -> None:
    """Print a table for each shape and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory in Hugging Face format (default: random SmolLM2-135M)")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["mixed"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{conditions()}\n")
    for dtype in options.dtype:
        for name in options.shape:
            with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
                print(f"{measure(SHAPES[name], dtype, options, Path(scratch))}\n", flush=True)


if __name__ == "__main__":
    main()
