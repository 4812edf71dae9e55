"""Where the time of sampling goes: starting engines, drawing, rating, keeping, and swapping weights.

Run: python jobs/assets.py assets --model tiny && python -m benchmarks.sampling

As the sample stage does it: prompts in calls of 64, each call rated by a reward process and kept in the samples table.
An engine is started once an actor; what the same engines draw afterwards by other weights pays for the swap alone. The
parts are timed one after the other, so that they add up; the stage itself draws while it rates and keeps.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import conditions
from raydpo.config.schema import Cluster, Decoding, Sampler
from raydpo.data.prompts import read_prompts
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.rollout.engine import Completion
from raydpo.runtime.cluster.connection import connect
from raydpo.runtime.pools.rewards import Group, reward_process
from raydpo.runtime.pools.sampled import sample_table
from raydpo.runtime.pools.sampling import PROMPTS_PER_CALL, Drawing, Samplers, samplers

DTYPE = "float32"
PARTS = ("start", "draw", "rate", "keep", "read", "draw by other weights")


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block under this name."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


def measure(drawing: Drawing, other: str, settings: Sampler, reward: str, scratch: Path) -> str:
    """One line of the table. other: a directory with weights of the same architecture."""
    clock = Clock()
    tokenizer = load_row_tokenizer(drawing.model)
    # Every actor has one call of them.
    first = replace(drawing, prompts=drawing.prompts[: PROMPTS_PER_CALL * settings.actors], n=1)
    with samplers(drawing.model, DTYPE, settings, tokenizer) as engines, reward_process(reward) as rewards:
        with clock("start"):
            _all(engines, first)
        with clock("draw"):
            drawn = _all(engines, drawing)
        with clock("rate"):
            for call, completions in drawn.items():
                members = zip(drawing.members(call), completions, strict=True)
                rewards.rate([Group(call, prompt.text, [each.text for each in some]) for prompt, some in members])
        table = sample_table(scratch, drawing, start_model=drawing.model, dtype=DTYPE, sampler=settings)
        with clock("keep"):
            for call, completions in drawn.items():
                table.write(drawing.request(call), completions)
        with clock("read"):
            for call in drawn:
                table.read(drawing.request(call))
        with clock("draw by other weights"):
            _all(engines, replace(drawing, model=other))
    tokens = sum(len(each.ids) for calls in drawn.values() for some in calls for each in some)
    spent = clock.seconds
    parts = " | ".join(f"{spent[name]:.2f}" for name in PARTS)
    size = sum(path.stat().st_size for path in scratch.rglob("*.parquet"))
    return f"| {settings.actors} | {tokens:,} | {parts} | {tokens / spent['draw']:,.0f} | {size / tokens:.1f} |"


def _all(engines: Samplers, drawing: Drawing) -> dict[int, list[list[Completion]]]:
    return dict(engines.draw(drawing, range(drawing.calls)))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/tiny")
    parser.add_argument("--prompts", default="assets/tiny_text/prompts_train.jsonl")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--reward", default="vader")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    prompts = read_prompts([options.prompts], "prompt", load_row_tokenizer(options.model), limit=options.limit)
    drawing = Drawing(options.model, prompts, Decoding(max_tokens=options.max_tokens), options.completions, seed=0)
    print(f"{conditions()}, {len(prompts)} prompts x {options.completions}\n")
    print(
        "| actors | tokens | start s | draw s | rate s | keep s | read s | other weights s | tokens/s | bytes a token |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with connect(Cluster(num_cpus=4, object_store_gib=0.5)):
        for actors in options.actors:
            with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
                other = str(shutil.copytree(options.model, Path(scratch) / "other"))
                settings = Sampler(actors=actors, max_model_len=128, max_num_seqs=128)
                print(measure(drawing, other, settings, options.reward, Path(scratch) / "completions"), flush=True)


if __name__ == "__main__":
    main()
