"""Laws of the sample stage: what is drawn is kept, a reward function's fault is named, and nothing hangs."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.cluster.processes import PYTHON, job, raydpo
from tests.cluster.runfiles import NUM_PROMPTS, whole_run, write_run_file
from tests.helpers import tiny_tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.alone]

PADDING = 64  # rows of the vocabulary that the tokenizer does not know, a sixth of all


def sampling_run(inputs: Path, output_dir: Path, scorer: str) -> dict[str, Any]:
    """Stages that sample from a model whose vocabulary is padded."""
    path = output_dir.parent / "padded"
    config = AutoConfig.from_pretrained(inputs / "model")
    config.vocab_size += PADDING
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    run = whole_run(inputs, output_dir)
    del run["sft"]
    run["model"]["path"] = str(path)
    for section in ("sample", "evaluate"):
        run[section]["reward"] = f"tests.cluster.rewards:{scorer}"
    return run


def test_a_reward_function_that_breaks_late_costs_no_samples(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path / "run.yaml", sampling_run(inputs, tmp_path / "out", "breaks_late"))
    mended = tmp_path / "mended"
    environment = {"RAYDPO_TEST_MENDED": str(mended)}
    broken = raydpo("sample", run_file, env=environment)
    assert broken.exit_code == 2
    for words in ("breaks_late' raised ConnectionError: the judge is away", "rewards.py:", "at prompt 41, '40 "):
        assert words in broken.status["error"]
    [drawn] = (tmp_path / "out" / "completions").rglob("*.parquet")
    written = drawn.stat().st_mtime_ns

    mended.touch()
    result = raydpo("sample", run_file, env=environment).succeeded().status["result"]
    assert drawn.stat().st_mtime_ns == written
    assert result["prompts"] == NUM_PROMPTS
    ids = pq.read_table(drawn)["completion_ids"].to_pylist()
    assert max(map(max, ids)) < len(tiny_tokenizer()), "an id that no text has"
    prepared = raydpo("prepare", run_file).succeeded().status["result"]
    assert prepared["train"]["rows_read"] > 0


@pytest.mark.parametrize("stage", ["sample", "evaluate"])
def test_a_reward_function_that_never_returns_does_not_outlive_a_sigterm(
    stage: str, inputs: Path, tmp_path: Path
) -> None:
    run_file = write_run_file(tmp_path / "run.yaml", sampling_run(inputs, tmp_path / "out", "never_returns"))
    entered = tmp_path / "entered"
    with job(PYTHON, "-m", "raydpo", stage, run_file, env={"RAYDPO_TEST_MENDED": str(entered)}) as started:
        started.wait_until(entered.exists)
        asked = time.monotonic()
        started.process.send_signal(signal.SIGTERM)
        answer = started.wait()
        assert time.monotonic() - asked < 30
        assert answer.exit_code == 128 + signal.SIGTERM
        assert not started.family()
