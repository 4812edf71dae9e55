"""precompute under fire: a scorer, the driver or a node is killed, or a node is stopped, at a random moment.

Run: python -m benchmarks.chaos_store --seeds 20

Each trial fills a store of its own on a cluster of three nodes with one CPU each, with a pool of two. Victims take
turns, so that the node that dies leaves as many CPUs as the pool's maximum. The store must come out byte-identical to
the one that nobody disturbed; no shard that was there may be written again; at most the shards in flight are scored
twice. A driver that was killed is started again with the same command.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from raydpo.config.schema import RunFile
from raydpo.data.shards import Counts, TokenManifest, to_table, write_shard
from raydpo.reference.dataset import MANIFEST, open_dataset
from raydpo.runtime.pools.scorer import ReferenceScorer
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import made_from
from tests.cluster.local import first_port, local_cluster
from tests.cluster.processes import PYTHON, job, raydpo
from tests.cluster.runfiles import save_model, small_run, write_run_file
from tests.models import random_rows

VICTIMS = ("scorer", "driver", "node", "stopped node")
POOL = 2
SHARDS, ROWS_PER_SHARD = 48, 8


@dataclass(frozen=True)
class Trial:
    """What was done to a job and what became of it."""

    seed: int
    victim: str
    shards: int  # that were finished when it happened
    seconds: float  # from then until the store was whole
    lost: int  # scorers that the surviving driver saw go
    retried: int  # units that it handed out twice
    rewritten: int  # shards that were finished, and written again all the same
    identical: bool

    @property
    def passed(self) -> bool:
        """Whether it ended as it should."""
        return self.identical and not self.rewritten and self.retried <= POOL


class Cluster:
    """Three nodes as processes. The head is node 0 and stays, for a job ends with its head."""

    def __init__(self, state: Path, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._pids = [pid for pid, _ in json.loads(state.read_text())["processes"]]

    def strike(self, victim: str, rng: random.Random) -> bool:
        """Do it to one of those that score; False when none is there to be hit."""
        scoring = [node for node in self._pids if _scorers(node)]
        if victim == "scorer":
            found = [scorer for node in scoring for scorer in _scorers(node)]
            if found:
                rng.choice(found).kill()
            return bool(found)
        nodes = [node for node in scoring if node != self._pids[0]]
        if not nodes:
            return False
        for process in _family(rng.choice(nodes)):
            process.suspend() if victim == "stopped node" else process.kill()
        return True

    def bury(self) -> None:
        """Kill the stopped nodes, so that taking the cluster down does not wait for them."""
        for node in self._pids:
            if any(process.status() == psutil.STATUS_STOPPED for process in _family(node)):
                for process in _family(node):
                    process.kill()


def _family(pid: int) -> list[psutil.Process]:
    try:
        node = psutil.Process(pid)
        family = [node, *node.children(recursive=True)]
        return [process for process in family if process.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def _scorers(node: int) -> list[psutil.Process]:
    return [process for process in _family(node) if "ray::ReferenceScorer" in " ".join(process.cmdline())]


class Trials:
    """The undisturbed store, and the trials that are compared with it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, undisturbed = scratch, scratch / "undisturbed"
        save_model(scratch / "model")
        self._tokens = undisturbed / "tokens" / "train"
        (scratch / "pairs.jsonl").write_text("{}\n")  # stands for the input; its rows are made up below
        run = RunFile.model_validate(self._run("undisturbed"))
        write_tokens(self._tokens, run)
        store = RunValues(run).store()
        store.claim()
        scorer, dataset = ReferenceScorer(RunValues(run).scoring(), store), open_dataset(self._tokens)
        scorer.load()
        for piece in dataset.where(np.flatnonzero(store.missing(dataset.completion_ids))):
            scorer.score([piece])
        self._expected = _content(undisturbed)

    def run(self, seed: int, victim: str, cluster: Cluster) -> Trial:
        """One trial. AssertionError when the job fails or is not done in time."""
        rng, name = random.Random(seed), f"seed-{seed}"
        out, at_least = self._scratch / name, rng.randrange(1, SHARDS // 2)
        run_file = write_run_file(self._scratch / f"{name}.yaml", self._run(name))
        shutil.copytree(self._tokens, out / "tokens" / "train")
        with job(PYTHON, "-m", "raydpo", "precompute", run_file, env=cluster.environment) as started:
            started.wait_until(lambda: len(_finished(out)) >= at_least)
            if victim == "driver":
                started.process.kill()
            else:
                started.wait_until(lambda: cluster.strike(victim, rng))
            before, begin = _finished(out), time.monotonic()
            finished = started.wait()
        if victim == "driver":
            finished = raydpo("precompute", run_file, env=cluster.environment)
        result = finished.succeeded().status["result"]
        after = _finished(out)
        return Trial(
            seed=seed,
            victim=victim,
            shards=len(before),
            seconds=time.monotonic() - begin,
            lost=result["lost"],
            retried=result["retried"],
            rewritten=sum(after.get(shard) != written for shard, written in before.items()),
            identical=_content(out) == self._expected,
        )

    def _run(self, name: str) -> dict[str, Any]:
        run = small_run(self._scratch, self._scratch / name)
        run["reference"]["pool"]["max_actors"] = POOL
        return run


def write_tokens(directory: Path, run: RunFile) -> None:
    """Rows as prepare leaves them."""
    rows = random_rows(SHARDS * ROWS_PER_SHARD, seed=0)
    infos = [
        write_shard(to_table(rows[begin : begin + ROWS_PER_SHARD]), directory / f"part-{begin:05d}.arrow")
        for begin in range(0, len(rows), ROWS_PER_SHARD)
    ]
    counts = Counts(len(rows), len(rows))
    TokenManifest("pair", infos, counts, made_from=made_from(RunValues(run).token_source("train"))).write(
        directory / MANIFEST
    )


def _finished(out: Path) -> dict[str, int]:
    """Shards with a marker, and when the marker was written."""
    markers = (out / "reference").glob("*/*.json")
    return {marker.stem: marker.stat().st_mtime_ns for marker in markers if marker.stem != "key"}


def _content(out: Path) -> dict[str, bytes]:
    """All that counts: what a killed writer left under another name does not."""
    files = (out / "reference").glob("*/[!.]*")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@contextmanager
def three_nodes(scratch: Path, number: int) -> Iterator[Cluster]:
    """A cluster on loopback, each node with a temporary directory of its own."""
    directory = scratch / f"cluster-{number}"
    directory.mkdir()
    with local_cluster(directory, "--raylets", "2", "--cpus", "1", port=first_port(8)) as environment:
        cluster = Cluster(directory / "local" / ".state" / "cluster.json", environment)
        try:
            yield cluster
        finally:
            cluster.bury()


def run_trials(scratch: Path, seeds: int) -> Iterator[Trial]:
    """Trials as they end; a cluster serves one of each kind, since the last two kinds use up its nodes."""
    trials = Trials(scratch)
    for first in range(0, seeds, len(VICTIMS)):
        with three_nodes(scratch, first) as cluster:
            for seed, victim in zip(range(first, seeds), VICTIMS, strict=False):
                yield trials.run(seed, victim, cluster)


def main() -> None:
    """Print the table; exit code 1 when a trial did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever runs out of patience leaves no cluster behind
    print(f"{SHARDS} shards, a pool of {POOL}\n")
    print("| seed | victim | shards finished | s to the end | lost | retried | rewritten | byte-identical |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="raydpo-chaos-") as scratch:
        for t in run_trials(Path(scratch), seeds):
            failed += not t.passed
            print(
                f"| {t.seed} | {t.victim} | {t.shards} | {t.seconds:.0f} | {t.lost} | {t.retried} | {t.rewritten} "
                f"| {'yes' if t.identical else 'NO'} |",
                flush=True,
            )
    print(f"\n{seeds - failed} of {seeds} passed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
