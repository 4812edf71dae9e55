"""The whole pipeline as its users run it: `raydpo run` and what it leaves."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydpo.config.load import load_run_file
from raydpo.data.completions import completion_ids
from raydpo.data.shards import TokenManifest, read_shard, to_rows
from raydpo.evaluate.records import Evaluation
from raydpo.report.best_of_n import read_best_of_n
from raydpo.stages.values import RunValues
from raydpo.track.say import MARK
from raydpo.workspace.asked import OriginsToday
from tests.cluster.conftest import Run
from tests.cluster.greedy import transformers_greedy, vllm_greedy
from tests.cluster.processes import CHECKOUT, raydpo
from tests.cluster.runfiles import NUM_PAIRS, NUM_PROMPTS, REWARD, small_run, write_jsonl, write_run_file

pytestmark = pytest.mark.cluster

METRICS = {
    "epoch",
    "num_tokens",
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "rows_per_second",
    "mfu",
}
DATA = Path(os.environ.get("RAYDPO_DATA", CHECKOUT.parent / "shared" / "data"))
HH = DATA / "hh_helpful-base_test.jsonl.gz"


def metrics_of(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "train" / "metrics.jsonl").read_text().splitlines()]


def evaluations_of(run: Run) -> list[Evaluation]:
    records = OriginsToday(RunValues(load_run_file(run.run_file)).evaluations()).records()
    assert records.left_out == {}
    return records.valid


def test_the_last_line_is_the_status_and_result_json_holds_the_same(whole: Run) -> None:
    status = whole.job.status
    assert (status["status"], status["stage"], status["name"]) == ("succeeded", "run", "whole")
    assert json.loads((whole.output_dir / "result.json").read_text()) == status
    assert list(status["result"]) == [
        "sft",
        "sample",
        "prepare",
        "precompute",
        "train",
        "evaluate",
        "bestofn",
        "report",
    ]


def test_the_terminal_shows_our_lines_and_the_log_file_everything(whole: Run) -> None:
    log = (whole.output_dir / "logs" / "run.log").read_text().splitlines()
    ours = [line.partition(MARK)[2] for line in log if MARK in line]
    *shown, _ = whole.job.stdout.splitlines()  # the last is the status
    shown += whole.job.stderr.splitlines()
    assert shown
    assert set(shown) <= set(ours)
    assert any("pid=" in line for line in log if MARK not in line), "no worker has printed anything else: no test"
    assert any("pid=" in line for line in log if MARK in line), "no worker has said anything: no test"
    assert not [line for line in log if "\x1b[" in line]


def test_the_cluster_of_a_job_is_gone_with_it(whole: Run) -> None:
    assert whole.temporary_directories, "it never had a cluster: no test"
    assert not [path for path in whole.temporary_directories if path.exists()]
    assert whole.left_over == []


def test_the_first_loss_is_log_two_and_the_step_zero_law_is_on_record(whole: Run) -> None:
    assert metrics_of(whole.output_dir)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    law = json.loads((whole.output_dir / "train" / "step0.json").read_text())
    assert 0 <= law["max_abs_delta_logp"] < 1e-3


def test_every_step_is_recorded_once_with_every_metric(whole: Run) -> None:
    metrics = metrics_of(whole.output_dir)
    assert [row["step"] for row in metrics] == list(range(1, 11))
    assert all(row.keys() >= METRICS for row in metrics)
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_the_best_of_n_of_the_reference_keeps_its_bound_and_selects_what_is_better(whole: Run) -> None:
    found = read_best_of_n(whole.output_dir / "best_of_n.json")
    assert found
    assert (found.prompts, found.samples) == (24, 20)
    means = [found.reference.mean]
    for row in found.selections[:2]:
        assert row.selected_by == REWARD
        assert 0 < row.kl.mean <= row.kl_bound
        means.append(row.reward.mean)
    assert means == sorted(set(means))
    tables = [pq.read_table(path) for path in (whole.output_dir / "completions").rglob("*.parquet")]
    drawn = sum(table.num_rows for table in tables)
    blocks = [table["completion_ids"].to_pylist() for table in tables if table.num_rows == 24 * 16]
    assert blocks[0] != blocks[1], "the second block draws the first one's completions again"
    assert drawn == NUM_PROMPTS * 4 + 4 * 24 + 2 * 24 * 16, "samples, evaluations of four models, two blocks of 16"


def test_reference_and_checkpoints_are_evaluated_and_only_the_policy_has_moved(whole: Run) -> None:
    evaluations = evaluations_of(whole)
    assert [evaluation.step for evaluation in evaluations] == [0, 4, 8, 10]
    reference, *policies = evaluations
    assert set(reference.column("kl")) == {0.0}
    assert "pair_accuracy" not in reference.measures
    for policy in policies:
        assert any(policy.column("kl"))
        assert "pair_accuracy" in policy.measures
    for evaluation in evaluations:
        assert len(evaluation.samples) == 24
        for interval in evaluation.measures.values():
            assert interval.low <= interval.mean <= interval.high


def test_a_reward_is_what_the_scorer_of_the_run_file_says(whole: Run) -> None:
    for evaluation in evaluations_of(whole):
        assert evaluation.column("reward") == [s.completion.count("e") for s in evaluation.samples]


def test_the_report_needs_nothing_but_itself(whole: Run) -> None:
    html = (whole.output_dir / "report.html").read_text()
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html)
    assert sum(link.startswith("data:image/png;base64,") for link in links) == 7
    assert not [link for link in links if not link.startswith(("data:", "#"))]
    assert len(list((whole.output_dir / "figures").glob("*.png"))) == 7


def test_greedy_output_of_the_export_is_the_same_in_transformers_and_vllm(whole: Run) -> None:
    export = Path(whole.job.status["result"]["train"]["export"])
    completions = transformers_greedy(export)
    assert vllm_greedy(export) == completions
    assert len({tuple(completion) for completion in completions}) > 1, "one answer to every prompt proves little"


def test_another_beta_finds_every_reference_value_in_a_shared_store(small: Run, inputs: Path, tmp_path: Path) -> None:
    sweep = small_run(inputs, tmp_path / "out")
    sweep["reference"]["store"] = str(small.output_dir / "reference")
    sweep["train"] |= {"objective": {"beta": 0.5}, "max_steps": 4}
    result = raydpo("run", write_run_file(tmp_path / "run.yaml", sweep)).succeeded().status["result"]
    assert (result["precompute"]["scored"], result["precompute"]["found"]) == (0, 2 * NUM_PAIRS)
    assert not (tmp_path / "out" / "reference").exists()
    other, before = metrics_of(tmp_path / "out"), metrics_of(small.output_dir)
    assert other[0]["logps/chosen"] == before[0]["logps/chosen"]
    assert other[3]["rewards/margins"] != before[3]["rewards/margins"]


def test_a_loss_that_reads_no_reference_trains_without_one(inputs: Path, tmp_path: Path) -> None:
    run = small_run(inputs, tmp_path / "out")
    run["train"] |= {"objective": {"loss_type": "preferred_ft"}, "max_steps": 2}
    result = raydpo("run", write_run_file(tmp_path / "run.yaml", run)).succeeded().status["result"]
    assert "precompute" not in result
    assert not (tmp_path / "out" / "reference").exists()
    assert not (tmp_path / "out" / "train" / "step0.json").exists()
    assert not [name for name in metrics_of(tmp_path / "out")[0] if name.startswith("rewards/")]
    assert "loss preferred_ft" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_single_completions_with_labels_are_trained_on_and_reported(inputs: Path, tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in (inputs / "pairs.jsonl").read_text().splitlines()]
    labels = {"chosen": True, "rejected": False}
    rows = [
        {"prompt": pair["prompt"], "completion": pair[name], "label": label}
        for pair in pairs
        for name, label in labels.items()
    ]
    run = small_run(inputs, tmp_path / "out")
    run["data"] |= {"train": [str(write_jsonl(tmp_path / "labels.jsonl", rows))], "format": "unpaired"}
    run["train"] |= {"objective": {"loss_type": "kto"}, "max_steps": 3}
    result = raydpo("run", write_run_file(tmp_path / "run.yaml", run)).succeeded().status["result"]
    assert result["prepare"]["train"]["kept"] == 2 * NUM_PAIRS
    assert result["precompute"]["completions"] == 4 * NUM_PAIRS, "its own and one of another prompt"
    first, *_ = metrics_of(tmp_path / "out")
    assert first["loss"] == pytest.approx(0.5, abs=1e-4), "while policy and reference are the same"
    assert first["kl"] == pytest.approx(0.0, abs=1e-3)
    assert "loss kto" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_all_samples_of_a_prompt_are_one_row_and_are_scored_once(whole: Run) -> None:
    directories = [whole.output_dir / "tokens" / side for side in ("train", "held_out")]
    manifests = [TokenManifest.read(directory / "manifest.json") for directory in directories]
    assert {(manifest.kind, *manifest.columns) for manifest in manifests} == {("ranked", "rank")}
    rows = [row for directory in directories for path in directory.glob("*.arrow") for row in to_rows(read_shard(path))]
    completions = {(tuple(row.prompt_ids), tuple(ids)) for row in rows for ids in row.completions}
    result = whole.job.status["result"]
    assert result["precompute"]["scored"] == len(completions)
    assert result["sample"]["pairs"] > len(rows) > 0


def test_precompute_again_scores_nothing_and_train_again_changes_nothing(small: Run) -> None:
    metrics = (small.output_dir / "train" / "metrics.jsonl").read_bytes()
    again = raydpo("precompute", small.run_file).succeeded().status["result"]
    assert (again["completions"], again["scored"], again["found"]) == (2 * NUM_PAIRS, 0, 2 * NUM_PAIRS)
    assert "all 48 steps are done already" in raydpo("train", small.run_file).succeeded().stdout
    assert (small.output_dir / "train" / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.skipif(not HH.is_file(), reason=f"{HH.name} is not there; set RAYDPO_DATA to the folder that has it")
def test_real_preference_data_becomes_tokens_and_reference_values(inputs: Path, tmp_path: Path) -> None:
    import gzip

    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        first = [next(lines) for _ in range(200)]
    (tmp_path / "hh.jsonl").write_text("".join(first), encoding="utf-8")
    run = small_run(inputs, tmp_path / "out")
    run["data"] |= {"train": [str(tmp_path / "hh.jsonl")], "max_length": 256, "truncation": "drop"}
    run["train"]["tokens_per_microbatch"] = 512  # two completions of such a length, behind their prompt
    run_file = write_run_file(tmp_path / "run.yaml", run)
    counts = raydpo("prepare", run_file).succeeded().status["result"]["train"]
    assert counts["rows_read"] == 200
    assert counts["kept"] + counts["dropped_too_long"] + counts["identical"] == 200
    scored = raydpo("precompute", run_file).succeeded().status["result"]
    assert scored["completions"] == 2 * counts["kept"] > 40
    shards = (tmp_path / "out" / "tokens/train").glob("*.arrow")
    different = {name for path in shards for name in completion_ids(read_shard(path)).to_pylist()}
    assert scored["scored"] == len(different)
