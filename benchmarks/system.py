"""The whole of raydpo as a contender: `raydpo train` or `reward` as a user runs it, by Ray Train and DeepSpeed."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from benchmarks.child import ROOT, Answer, Task
from benchmarks.measure import DEVICE, peak_rss
from benchmarks.passes import BETA, TOKENS_PER_MICROBATCH
from benchmarks.shapes import read_pairs

STEPS = 3  # of each run; the first is its warm-up
POLL_SECONDS = 2.0


class System:
    """One worker with all threads; every request is a run of its own, from the prepared tokens to the export."""

    def __init__(self, task: Task, *, zero_stage: int, stage: Literal["train", "reward"] = "train") -> None:
        self._stage = stage
        self._output = Path(task.scratch) / "run"
        self._run_file = Path(task.scratch) / "run.yaml"
        self._log = Path(task.scratch) / "log.txt"
        self._run_file.parent.mkdir(parents=True)
        self._run_file.write_text(json.dumps(self._settings(task, zero_stage)))  # JSON is YAML
        self._raydpo("prepare")
        if stage == "train":
            self._raydpo("precompute")

    def ask(self) -> Answer:
        """Train for a few steps over all pairs: the median step behind the first, and the loss of the first."""
        for name in (self._stage, "exports"):
            shutil.rmtree(self._output / name, ignore_errors=True)
        peak = self._raydpo(self._stage)
        metrics = self._output / self._stage / "metrics.jsonl"
        first, *steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        busy = "seconds" if DEVICE == "cuda" else "cpu_seconds"
        return Answer(
            busy=statistics.median(step[busy] for step in steps),
            wall=statistics.median(step["seconds"] for step in steps),
            peak=None if DEVICE == "cuda" else peak,
            loss=first["loss"],
        )

    def close(self) -> None:
        """Nothing stays up between runs."""

    def _settings(self, task: Task, zero_stage: int) -> dict[str, Any]:
        rows = read_pairs(task.pairs)
        longest = max(len(row.prompt_ids) + sum(map(len, row.completions)) for row in rows)
        threads = torch.get_num_threads()
        resources = {"cpus": threads, "gpus": 1 if DEVICE == "cuda" else 0}
        training = {
            "workers": resources,
            "epochs": STEPS,
            "global_batch_size": len(rows),
            "tokens_per_microbatch": max(TOKENS_PER_MICROBATCH, longest),
            "optimizer": {
                "name": task.optimizer,
                "lr": task.lr,
                "max_grad_norm": task.max_grad_norm,
                "warmup_steps": 0,
            },
            "zero": {"stage": zero_stage},
            "max_failures": 0,
        }
        of_policies = {
            "reference": {"model": task.reference, "pool": resources},
            # The reference has other weights on purpose.
            "train": training | {"objective": {"beta": BETA}, "step0_tolerance": 1e9},
        }
        return {
            "name": "benchmark",
            "output_dir": str(self._output),
            "model": {"path": task.policy, "dtype": task.dtype},
            "data": {"train": [task.pairs]},
            **(of_policies if self._stage == "train" else {"reward": training}),
            "cluster": {"num_cpus": threads + 2},  # for scheduling: the readers beside the worker
        }

    def _raydpo(self, stage: str) -> int:
        """Run one stage; returns the largest peak of resident memory among its processes, which is the worker's."""
        command = [sys.executable, "-m", "raydpo", stage, str(self._run_file)]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}  # a cluster of its own
        with self._log.open("a") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        watch = _PeakOfTree(process.pid)
        code = process.wait()
        peak = watch.stop()
        if code:
            raise RuntimeError(f"raydpo {stage} exited with {code}:\n{self._log.read_text()[-2000:]}")
        return peak


class _PeakOfTree:
    """Looks from time to time at a process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._root, self._peak = psutil.Process(pid), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The largest high-water mark that was seen, in bytes."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _look(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                pids = [process.pid for process in self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self._peak = max([self._peak, *map(peak_rss, pids)])
