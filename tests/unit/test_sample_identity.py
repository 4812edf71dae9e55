"""Laws of what samples are kept under: whatever decides which completions are drawn is in their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.schema import RunFile
from raydpo.runtime.pairing import drawing_of, drawn_from
from raydpo.stages.values import RunValues
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    save_tiny_model(tmp_path / "model")
    write_prompts(tmp_path, "a film", "a story")
    return {
        "name": "x",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "sample": {"prompts": [str(tmp_path / "prompts.jsonl")]},
    }


def write_prompts(directory: Path, *texts: str) -> None:
    (directory / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def name_of(tree: dict[str, Any]) -> dict[str, Any]:
    run = RunFile.model_validate(tree)
    settings = RunValues(run).sampling()
    return drawn_from(settings, drawing_of(settings))


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"dtype": "bfloat16"}),
        ("sampler", {"max_model_len": 64 + 1}),
        ("sampler", {"gpus": 1}),
        ("sample", {"decoding": {"temperature": 0.5}}),
        ("sample", {"decoding": {"top_p": 0.5}}),
        ("sample", {"decoding": {"top_k": 5}}),
        ("sample", {"decoding": {"max_tokens": 5}}),
        ("sample", {"completions_per_prompt": 5}),
        ("sample", {"limit": 1}),
    ],
)
def test_another_setting_that_decides_completions_is_another_name(
    run: dict[str, Any], section: str, change: dict[str, Any]
) -> None:
    other = run | {section: run.get(section, {}) | change}
    assert name_of(run) == name_of(run)
    assert name_of(other) != name_of(run)


def test_another_seed_is_another_name(run: dict[str, Any]) -> None:
    assert name_of(run | {"seed": 1}) != name_of(run)


def test_prompts_that_changed_in_the_same_file_are_another_name(run: dict[str, Any], tmp_path: Path) -> None:
    before = name_of(run)
    write_prompts(tmp_path, "a film", "another story")
    assert name_of(run) != before
    write_prompts(tmp_path, "a film", "a story")
    assert name_of(run) == before


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json"])
def test_what_turns_ids_into_text_and_ends_them_is_in_the_name(run: dict[str, Any], tmp_path: Path, file: str) -> None:
    before = name_of(run)
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_by_the_test": 1}))
    assert name_of(run) != before


def test_what_decides_no_completion_is_not_in_the_name(run: dict[str, Any], tmp_path: Path) -> None:
    cheaper = run | {"sampler": {"actors": 3, "cpus": 2, "max_num_seqs": 4}, "output_dir": str(tmp_path / "elsewhere")}
    scored = run | {"sample": run["sample"] | {"reward": "length", "pairs": "best_worst"}}
    assert name_of(cheaper) == name_of(scored) == name_of(run)
