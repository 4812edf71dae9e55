"""Judges with processes of their own: a reward function in the cluster, and a chat model that the run serves."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.cluster.processes import PYTHON, job
from tests.cluster.runfiles import REWARD, save_model, small_run, write_jsonl, write_run_file
from tests.evaluations import evaluate_in_words
from tests.helpers import tiny_tokenizer

pytestmark = pytest.mark.cluster

N = 6
PATIENCE_S = 60


def test_a_reward_function_and_a_served_model_judge_the_same_samples(inputs: Path, tmp_path: Path) -> None:
    prompts = [f"film {i}" for i in range(N)]
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    (tmp_path / "question.txt").write_text("{prompt} {first} {second}")  # the model's context is short
    judge = tmp_path / "judge"
    save_model(judge)
    tiny_tokenizer(chat=True).save_pretrained(judge)
    config = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    run = small_run(inputs, tmp_path / "out")
    run["evaluate"] = {"prompts": [str(tmp_path / "prompts.jsonl")], "reward": REWARD}
    served = {"serve": str(judge), "question": str(tmp_path / "question.txt"), "max_tokens": 8, "max_model_len": 1024}
    run["judge"] = {"judges": {"e": {"reward": REWARD}, "served": served}}
    run_file = write_run_file(tmp_path / "run.yaml", run)
    evaluate_in_words(run_file, prompts, [0, 2])

    with job(PYTHON, "-m", "raydpo", "judge", run_file) as started:
        result = started.wait().succeeded().status["result"]
        _, outliving = psutil.wait_procs(started.family(), timeout=PATIENCE_S)
        assert outliving == [], "the server outlives nobody for long"
    assert result["e"]["win_rate"][0] == 1.0, "later samples have more letters e"
    # An untrained model says nothing that is a choice, and is asked twice in each of two orders.
    assert (result["served"]["requests"], result["served"]["lacking"]) == (4 * N, 0)
    assert result["served"]["unanswered"][0] == 1.0
    assert result["served"]["win_rate"] is None
