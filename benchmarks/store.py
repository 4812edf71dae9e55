"""The precompute job: beside the bare scorer, by the size of its pool, by hosts, and its driver's memory by rows.

Run: python -m benchmarks.store --shards 8 --rows 1000

The bare scorer reads and scores the same token shards in one process, without Ray and without a store. Time not spent
scoring is counted for each scorer from its first unit to the end of its last: waiting for work, not loading. Hosts are
Ray nodes on this machine with one scorer each, which waits as long as scoring would take, so that more of them than
there are cores stay as fast as one. The driver's memory is its high-water mark while it finds out, in a store that
holds every row, that nothing is to be done.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.cluster_utils import Cluster
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import conditions, peak_rss
from benchmarks.shapes import SHAPES, make_pairs, real_tokens
from raydpo.config.schema import RunFile
from raydpo.data.completions import completion_ids
from raydpo.data.lengths import completion_lengths, prompt_lengths
from raydpo.data.shards import Counts, TokenManifest, read_shard, schema, to_rows, to_table, write_shard
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.reference.dataset import MANIFEST
from raydpo.reference.scoring import score_rows
from raydpo.reference.shard import SCHEMA
from raydpo.reference.store import Key, Store
from raydpo.runtime.pools import pool as pools
from raydpo.runtime.pools.pool import score_missing
from raydpo.runtime.pools.scorer import ReferenceScorer, Unit
from raydpo.stages.values import RunValues
from tests.cluster.own_ray import own_ray

VOCAB_SIZE = 2048
ROWS_PER_SHARD = 10_000  # of the data sets that only the driver reads
SHARDS_PER_HOST = 4
PACE = 50_000  # tokens per second of a scorer that only waits


@dataclass(frozen=True)
class Stint:
    """One unit of one scorer; seconds of the machine's clock."""

    scorer: int
    begin: float
    end: float
    tokens: int


class TimedScorer(ReferenceScorer):
    """Says when it worked instead of what it found."""

    def score(self, unit: Unit) -> Stint:
        """Score and commit as ever."""
        begin = time.time()
        tokens = super().score(unit).tokens
        return Stint(os.getpid(), begin, time.time(), tokens)


class PacedScorer(TimedScorer):
    """Stands for a host of its own: what it does takes time and no arithmetic."""

    def load(self) -> None:
        """Nothing."""

    def score(self, unit: Unit) -> Stint:
        """Read the unit, wait as long as scoring it would take, and commit zeros."""
        begin = time.time()
        [(path, _)] = unit
        table = read_shard(path)
        tokens = int(prompt_lengths(table).sum() + completion_lengths(table).sum())
        time.sleep(tokens / PACE)
        ids = completion_ids(table)
        self._store.sums(self._store.commit(_sums_table(ids)), ids)
        return Stint(os.getpid(), begin, time.time(), tokens)


def idle_share(stints: Sequence[Stint]) -> float:
    """Share of the scorers' time, each from its first unit to its last, in which they had none."""
    by_scorer = defaultdict(list)
    for stint in stints:
        by_scorer[stint.scorer].append(stint)
    spans = sum(max(s.end for s in own) - min(s.begin for s in own) for own in by_scorer.values())
    return 1 - sum(s.end - s.begin for s in stints) / spans


def tokens_per_second(stints: Sequence[Stint]) -> float:
    """From the first unit's beginning to the last one's end."""
    return sum(s.tokens for s in stints) / (max(s.end for s in stints) - min(s.begin for s in stints))


class Job:
    """Token shards, a model and the run file that names them."""

    def __init__(self, scratch: Path, model: Path | None, *, shards: int, pooled: int, rows: int) -> None:
        self._scratch, self._model = scratch, model or write_small_model(scratch / "model")
        self._shards = [scratch / "tokens" / f"part-{i}.arrow" for i in range(shards)]
        source = np.random.default_rng(0).integers(VOCAB_SIZE, size=4096).tolist()
        pairs = make_pairs(SHAPES["mixed"], shards * rows, source)
        for i, path in enumerate(self._shards):
            write_shard(to_table(pairs[i * rows : (i + 1) * rows]), path)
        self._pooled = self._shards[:pooled]
        self.tokens = real_tokens(pairs[: pooled * rows])

    def bare(self) -> float:
        """Tokens per second of a scorer alone, with as many threads as one of the pool."""
        torch.set_num_threads(1)
        model = ScoringModel(load_model(str(self._model), dtype="float32", device="cpu"))
        begin = time.perf_counter()
        for path in self._pooled:
            rows = to_rows(read_shard(path))
            score_rows(model, rows, tokens_per_microbatch=4096, device=torch.device("cpu"))
        return self.tokens / (time.perf_counter() - begin)

    def pooled(self, actors: int) -> list[Stint]:
        """What a pool of so many on one node does."""
        with own_ray(cpus=actors):
            return self._filled(self._pooled, actors, TimedScorer)

    def spread(self, hosts: int) -> list[Stint]:
        """What a pool does that has one paced scorer on each of so many nodes."""
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(1, hosts):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, logging_level="WARNING")
            return self._filled(self._shards[: hosts * SHARDS_PER_HOST], hosts, PacedScorer)
        finally:
            ray.shutdown()
            cluster.shutdown()

    def _filled(self, shards: Sequence[Path], actors: int, scorer: type[TimedScorer]) -> list[Stint]:
        """Fill a store of its own."""
        store = tempfile.mkdtemp(dir=self._scratch)
        pool = {"min_actors": actors, "max_actors": actors}
        run = run_of(self._scratch, str(self._model), {"store": store, "pool": pool})
        opened = RunValues(run).store()
        opened.claim()
        units = [[(str(path), np.arange(2 * read_shard(path).num_rows, dtype=np.int32))] for path in shards]
        pools.ReferenceScorer = scorer
        return [stint for _, stint in pools.ScorerPool(RunValues(run).scoring(), opened).score(units)]


def run_of(scratch: Path, model: str, reference: dict[str, object]) -> RunFile:
    """A run file in which nothing else matters."""
    settings = {"path": model, "dtype": "float32"}
    return RunFile.model_validate(
        {
            "name": "store",
            "output_dir": str(scratch),
            "model": settings,
            "data": {"train": ["none"]},
            "reference": reference,
        }
    )


def write_small_model(directory: Path) -> Path:
    """Random weights, 2 layers of width 128: units are short, which is the hard case for scheduling."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def driver_peak(scratch: Path, rows: int) -> int:
    """Bytes that a process holds at most which looks up so many rows, all of them found."""
    directory, store = scratch / "tokens", claimed_store(scratch)
    infos = []
    for number, begin in enumerate(range(0, rows, ROWS_PER_SHARD)):
        size = min(ROWS_PER_SHARD, rows - begin)
        table = _token_table(np.arange(begin, begin + size))
        infos.append(write_shard(table, directory / f"part-{number}.arrow"))
        store.commit(_sums_table(completion_ids(table)))
    TokenManifest("pair", infos, Counts(rows, rows)).write(directory / MANIFEST)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_look_up, args=(scratch, sender))
    process.start()
    sender.close()
    peak = receiver.recv()
    process.join()
    return peak


def claimed_store(scratch: Path) -> Store:
    """The store of a key that no model has."""
    store = Store(str(scratch / "store"), Key("none", "float32", fp32_head=False, attention="none", scorer_version=0))
    store.claim()
    return store


def _look_up(scratch: Path, sender: Connection) -> None:
    figures = score_missing(
        RunValues(run_of(scratch, "none", {})).scoring(), claimed_store(scratch), [scratch / "tokens"]
    )
    assert not figures["scored"]
    sender.send(peak_rss("self"))


def _token_table(numbers: NDArray[np.int64]) -> pa.Table:
    """Pairs with 16 tokens in the prompt and in each completion: the pair's number in one, the side in the other."""
    ids = pa.array([int(number).to_bytes(16, "big") for number in numbers], pa.binary(16))
    prompts = _in_lists_of(16, pa.array(np.repeat(numbers, 16).astype(np.int32)))
    completions = _in_lists_of(16, pa.array(np.tile(np.repeat([0, 1], 16), len(numbers)).astype(np.int32)))
    return pa.table([ids, prompts, _in_lists_of(2, completions)], schema=schema())


def _in_lists_of(length: int, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32)), values)


def _sums_table(ids: pa.Array) -> pa.Table:
    zeros = pa.array(np.zeros(len(ids), np.float32))
    counts = pa.array(np.full(len(ids), 16, np.int32))
    none = pa.nulls(len(ids), pa.list_(pa.float32()))
    return pa.table([ids, zeros, counts, none], schema=SCHEMA)


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory in Hugging Face format (default: a small random one)")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1000, help="of a shard")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--driver-rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 4_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
        shards = max(options.shards, SHARDS_PER_HOST * max(options.hosts))
        job = Job(Path(scratch), options.model, shards=shards, pooled=options.shards, rows=options.rows)
        print(f"{conditions()}\n\n{options.shards} shards of {options.rows} rows, {job.tokens} tokens\n")
        bare = statistics.median(job.bare() for _ in range(options.rounds))
        print(f"bare scorer: {bare:.0f} tokens/s, median of {options.rounds}\n")
        print("| pool | tokens/s | × bare | not spent scoring |\n|---|---|---|---|")
        for actors in options.actors:
            rounds = [job.pooled(actors) for _ in range(options.rounds)]
            speed, idle = (statistics.median(map(f, rounds)) for f in (tokens_per_second, idle_share))
            print(f"| {actors} | {speed:.0f} | {speed / bare:.2f} | {idle:.1%} |", flush=True)
        print("\n| hosts | tokens/s | not spent scoring |\n|---|---|---|")
        for hosts in options.hosts:
            stints = job.spread(hosts)
            print(f"| {hosts} | {tokens_per_second(stints):.0f} | {idle_share(stints):.1%} |", flush=True)
    print("\n| rows | driver's peak, MiB |\n|---|---|")
    for rows in options.driver_rows:
        with tempfile.TemporaryDirectory(prefix="raydpo-benchmark-") as scratch:
            print(f"| {rows:,} | {driver_peak(Path(scratch), rows) / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
