"""Laws of what evaluations are kept under: a figure of something else is never shown as one of this run file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from raydpo import stages
from raydpo.config.schema import RunFile
from raydpo.data.shards import Counts, ShardInfo, TokenManifest
from raydpo.errors import UserError
from raydpo.evaluate.records import Evaluation, read_record, summarise, write_evaluation
from raydpo.reference.dataset import MANIFEST
from raydpo.runtime.pools.sampling import check_sampling
from raydpo.stages.inputs import check_inputs
from raydpo.stages.values import RunValues
from raydpo.train.mark import mark_export
from raydpo.workspace.asked import OriginsToday, origin_of, records_everywhere
from raydpo.workspace.identity import identity_now
from tests.evaluations import rated
from tests.models import save_tiny_model, tiny_llama

pytestmark = pytest.mark.unit


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    save_tiny_model(tmp_path / "model")
    write_prompts(tmp_path, "a film", "a story")
    return {
        "name": "x",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"train": ["pairs.jsonl"]},
        "evaluate": {"prompts": [str(tmp_path / "prompts.jsonl")], "reward": "length"},
    }


def write_prompts(directory: Path, *texts: str) -> None:
    (directory / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def move_weights(model: Path) -> None:
    lm = tiny_llama(vocab_size=json.loads((model / "config.json").read_text())["vocab_size"])
    with torch.no_grad():
        lm.model.norm.weight += 0.1
    lm.save_pretrained(model)


def evaluated(tree: dict[str, Any], *steps: int) -> None:
    """Leave records of the reference and of exports, as the evaluate stage does."""
    run = RunFile.model_validate(tree)
    layout = RunValues(run).layout
    for step in steps:
        model = layout.export(step) if step else Path(layout.reference_model)
        if step:
            shutil.copytree(run.model.path, model)
            if identity := identity_now(RunValues(run).training()):
                mark_export(model, identity=identity.digest, step=step)
        samples = [rated(prompt, "!", 1.0, 0.0, 1, "stop") for prompt in ("a film", "a story")]
        found: Evaluation = summarise(
            step, str(model), samples, made_from=origin_of(RunValues(run).evaluations(), str(model)), seconds={}
        )
        write_evaluation(found, layout.evaluations)


def left_out(tree: dict[str, Any]) -> dict[int, list[str]]:
    return OriginsToday(RunValues(RunFile.model_validate(tree)).evaluations()).records().left_out


def test_every_set_at_every_temperature_has_records_of_its_own(tree: dict[str, Any], tmp_path: Path) -> None:
    evaluated(tree, 0, 5)
    news = tmp_path / "news.jsonl"
    news.write_text('{"text": "a film"}\n{"text": "a story"}\n')
    sets = {"news": {"prompts": [str(news)], "column": "text"}}
    tree["evaluate"] |= {"sets": sets, "temperatures": [0.5, 1.0]}
    asked = RunValues(RunFile.model_validate(tree)).evaluations()
    everywhere = asked.everywhere()
    assert [(each.prompt_set, each.folder) for each in everywhere] == [
        ("", ""),
        ("", "@0.5"),
        ("news", "news@1.0"),
        ("news", "news@0.5"),
    ]
    assert left_out(tree) == {}, "what was measured on the own prompts still counts"
    for each in everywhere[1:]:
        samples = [rated(prompt, "!", 1.0, 0.0, 1, "stop") for prompt in ("a film", "a story")]
        made_from = origin_of(each, asked.layout.reference_model)
        found = summarise(0, "m", samples, made_from=made_from, seconds={}, prompt_set=each.prompt_set)
        write_evaluation(found, each.directory)
        assert read_record(each.directory, 0, made_from) == found
    assert [len(each.valid) for each in records_everywhere(asked)] == [2, 1, 1, 1]
    news.write_text('{"text": "a film"}\n{"text": "another story"}\n')
    found = records_everywhere(asked)
    assert [each.left_out for each in found] == [{}, {}, {0: ["prompts"]}, {0: ["prompts"]}]
    assert "left out (news prompts at temperature 0.5)" in found[-1].notice()


def test_what_has_not_changed_is_not_left_out(tree: dict[str, Any], tmp_path: Path) -> None:
    evaluated(tree, 0, 5)
    cheaper = {"actors": 3, "cpus": 2, "max_num_seqs": 4, "max_model_len": 600}
    tree |= {"sampler": cheaper, "train": {"objective": {"beta": 0.5}}}
    tree["evaluate"]["samples_in_report"] = 3
    shutil.move(tmp_path / "prompts.jsonl", tmp_path / "elsewhere.jsonl")
    tree["evaluate"]["prompts"] = [str(tmp_path / "elsewhere.jsonl")]
    shutil.move(tmp_path / "model", tmp_path / "moved")
    tree["model"]["path"] = str(tmp_path / "moved")
    assert left_out(tree) == {}


@pytest.mark.parametrize(
    ("section", "change", "parts"),
    [
        ("model", {"dtype": "bfloat16"}, ["dtype"]),
        ("model", {"fp32_head": True}, ["fp32_head"]),
        ("sampler", {"gpus": 1}, ["sampler_device"]),
        ("evaluate", {"pool": {"gpus": 0.5}}, ["device"]),
        ("data", {"date": "2026-11-27"}, ["date"]),
        ("evaluate", {"decoding": {"temperature": 0.5}}, ["decoding"]),
        ("evaluate", {"decoding": {"max_tokens": 5}}, ["decoding"]),
        ("evaluate", {"limit": 1}, ["prompts"]),
        ("evaluate", {"reward": "tests.cluster.rewards:takes_long"}, ["scorer", "scorer_source"]),
    ],
)
def test_another_setting_that_decides_a_figure_is_named(
    tree: dict[str, Any], section: str, change: dict[str, Any], parts: list[str]
) -> None:
    evaluated(tree, 0, 5)
    tree[section] = tree.get(section, {}) | change
    assert left_out(tree) == {0: parts, 5: parts}


def test_another_seed_is_named(tree: dict[str, Any]) -> None:
    evaluated(tree, 0)
    assert left_out(tree | {"seed": 1}) == {0: ["seed"]}


def test_prompts_that_changed_in_the_same_file_are_named(tree: dict[str, Any], tmp_path: Path) -> None:
    evaluated(tree, 0)
    write_prompts(tmp_path, "a film", "another story")
    assert left_out(tree) == {0: ["prompts"]}


def test_reference_answers_that_came_or_changed_are_named(tree: dict[str, Any], tmp_path: Path) -> None:
    def answer(*texts: str) -> None:
        rows = zip(("a film", "a story"), texts, strict=True)
        lines = [json.dumps({"prompt": prompt, "summary": text}) + "\n" for prompt, text in rows]
        (tmp_path / "prompts.jsonl").write_text("".join(lines))

    answer("good", "bad")
    evaluated(tree, 0)
    tree["evaluate"]["reference_column"] = "summary"
    assert left_out(tree) == {0: ["answers"]}
    evaluated(tree, 0)
    assert left_out(tree) == {}
    answer("good", "worse")
    assert left_out(tree) == {0: ["answers"]}
    tree["evaluate"]["reference_column"] = "sumary"
    with pytest.raises(UserError, match="has no column 'sumary'"):
        check_inputs(RunFile.model_validate(tree), "evaluate")


def test_weights_that_changed_in_the_same_directory_are_named(tree: dict[str, Any], tmp_path: Path) -> None:
    evaluated(tree, 0, 5)
    move_weights(RunValues(RunFile.model_validate(tree)).layout.export(5))
    assert left_out(tree) == {5: ["weights"]}
    move_weights(tmp_path / "model")
    assert left_out(tree) == {0: ["weights", "reference"], 5: ["weights", "reference"]}


def test_a_tokenizer_that_changed_in_the_same_directory_is_named(tree: dict[str, Any], tmp_path: Path) -> None:
    evaluated(tree, 0)
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_by_the_test": 1}))
    assert left_out(tree) == {0: ["tokenizer"]}


def test_figures_of_another_training_are_named_whether_its_exports_stay_or_not(tree: dict[str, Any]) -> None:
    layout = RunValues(RunFile.model_validate(tree)).layout
    TokenManifest("pair", [ShardInfo("a.arrow", 640, "sha", 9)], Counts()).write(layout.train_tokens / MANIFEST)
    evaluated(tree, 0, 5)
    assert left_out(tree) == {}
    other = tree | {"train": {"objective": {"beta": 0.5}}}
    assert left_out(other) == {5: ["training"]}
    shutil.rmtree(layout.exports)
    assert left_out(tree) == {}
    assert left_out(other) == {5: ["training"]}


def test_held_out_pairs_that_came_later_are_named(tree: dict[str, Any]) -> None:
    evaluated(tree, 0)
    tree["data"]["held_out_fraction"] = 0.5
    assert left_out(tree) == {}, "there are no tokens to tell"
    leave_held_out_tokens(tree)
    assert left_out(tree) == {0: ["held_out"]}


def leave_held_out_tokens(tree: dict[str, Any]) -> None:
    directory = RunValues(RunFile.model_validate(tree)).layout.held_out_tokens
    TokenManifest("pair", [], Counts()).write(directory / MANIFEST)


def test_what_has_gone_since_is_not_held_against_the_records(tree: dict[str, Any], tmp_path: Path) -> None:
    leave_held_out_tokens(tree)
    tree["data"]["held_out_fraction"] = 0.5
    evaluated(tree, 0, 5)
    layout = RunValues(RunFile.model_validate(tree)).layout
    for directory in (tmp_path / "model", layout.exports, layout.root / "tokens"):
        shutil.rmtree(directory)
    (tmp_path / "prompts.jsonl").unlink()
    assert left_out(tree) == {}
    tree["evaluate"]["reward"] = "vader"
    assert left_out(tree) == {0: ["scorer"], 5: ["scorer"]}


def test_without_an_evaluate_section_the_records_still_show_what_was_measured(tree: dict[str, Any]) -> None:
    evaluated(tree, 0, 5)
    del tree["evaluate"]
    assert left_out(tree) == {}


def test_an_evaluation_cannot_begin_without_knowing_what_it_is_made_from(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").unlink()
    with pytest.raises(UserError, match=r"prompts\.jsonl"):
        origin_of(RunValues(RunFile.model_validate(tree)).evaluations(), str(tmp_path / "model"))


def test_a_report_needs_no_model_and_says_what_it_leaves_out(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(tree, 0, 5)
    output = tmp_path / "out"
    shutil.rmtree(tmp_path / "model")
    (output / "train").mkdir()
    rewards = {f"rewards/{name}": 0.0 for name in ("chosen", "rejected", "margins", "accuracies")}
    (output / "train" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.69, **rewards}))
    (output / "timings.json").write_text('{"stages": {"train": 1.0}}')
    run = RunFile.model_validate(tree)
    (output / "run.yaml").write_text(run.model_dump_json())
    check_inputs(run, "report")
    stages.report(run)
    assert "policy, step 5" in capsys.readouterr().out
    stages.report(run.model_copy(update={"seed": 1}))
    told = capsys.readouterr().out
    assert "policy, step 5" not in told
    assert "step 0 (seed); step 5 (seed)" in told


def test_a_single_prompt_is_refused_before_an_engine_starts(tree: dict[str, Any], tmp_path: Path) -> None:
    run = RunFile.model_validate(tree)
    check_sampling(run.model.path, run.data, run.sampler, [run.evaluate])
    tree["evaluate"]["limit"] = 1
    with pytest.raises(UserError, match=r"evaluate.prompts: 1 prompts, of which 1 differ, give no interval"):
        check_sampling(run.model.path, run.data, run.sampler, [None, RunFile.model_validate(tree).evaluate])
    del tree["evaluate"]["limit"]
    tree["evaluate"]["sets"] = {"few": {"prompts": tree["evaluate"]["prompts"], "limit": 1}}
    with pytest.raises(UserError, match=r"evaluate.sets.few.prompts: 1 prompts, of which 1 differ, give no interval"):
        check_sampling(run.model.path, run.data, run.sampler, [RunFile.model_validate(tree).evaluate])
