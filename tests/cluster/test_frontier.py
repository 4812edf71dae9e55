"""The frontier as a user meets it: killed in the middle, it goes on and computes nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.yaml12 import write_yaml
from tests.cluster.processes import PYTHON, job, raydpo
from tests.cluster.runfiles import REWARD, small_run, write_run_file

pytestmark = pytest.mark.cluster

METHODS: dict[str, Any] = {
    "dpo": {"sweep": {"train.objective.beta": [0.1]}},
    "kto": {"set": {"train.objective.loss_type": "kto"}},
}


def frontier_of(inputs: Path, directory: Path) -> Path:
    """Two trainings of two steps on pairs that are there already, one of them with completions of other prompts."""
    base = small_run(inputs, directory / "unused")
    base["train"] |= {"workers": {"count": 1}, "max_steps": 2, "zero": {"stage": 1}, "checkpoint_every": 2}
    base["sampler"] = {"max_model_len": 96, "max_num_seqs": 32, "kv_cache_gib": 1}
    prompts = [str(inputs / "prompts.jsonl")]
    base["evaluate"] = {"prompts": prompts, "limit": 8, "decoding": {"max_tokens": 8}, "reward": REWARD}
    base["best_of_n"] = {"n": [2], "samples": 16}
    run_file = write_run_file(directory / "base.yaml", base)
    tree = {"name": "both", "output_dir": str(directory / "out"), "base": str(run_file), "seeds": [0]}
    path = directory / "frontier.yaml"
    path.write_text(write_yaml(tree | {"methods": METHODS}))
    return path


def made(out: Path) -> dict[Path, int]:
    """What must not be made again, with the time it was made: samples, tokens, reference values, exports, records."""
    patterns = ("completions/**/*.parquet", "tokens/**/*", "reference/**/*", "exports/**/*.safetensors", "step-*.json")
    files = [file for pattern in patterns for file in out.rglob(pattern) if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


def test_a_killed_frontier_goes_on_and_makes_nothing_again(inputs: Path, tmp_path: Path) -> None:
    path = frontier_of(inputs, tmp_path)
    out = tmp_path / "out"
    first = out / "dpo" / "beta-0.1" / "seed-0" / "evaluations" / "step-000002.json"
    with job(PYTHON, "-m", "raydpo", "frontier", path) as started:
        started.wait_until(first.exists)
        started.kill_family()
    before = made(out)

    finished = raydpo("frontier", path).succeeded()

    after = made(out)
    assert {file: after[file] for file in before} == before
    found = json.loads((out / "frontier.json").read_text())
    assert [point["method"] for point in found["points"]] == list(METHODS)
    assert [each["n"] for each in found["best_of_n"]] == [2]
    assert finished.status["result"]["claims"] == found["claims"]
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
