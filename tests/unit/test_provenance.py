"""Tokens are used only for the run that they were made for: whatever decided their ids stands beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo import stages
from raydpo.cli import main
from raydpo.config.schema import RunFile
from raydpo.data.shards import Counts, TokenManifest
from raydpo.errors import UserError
from raydpo.model.tokenizer_files import tokenizer_digest
from raydpo.stages.values import RunValues
from raydpo.workspace.provenance import check_made_from, check_same_tokenizer, made_from
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs")
    save_tiny_model(path / "model")
    return path


@pytest.fixture
def prepared(inputs: Path, tmp_path: Path) -> RunFile:
    """A run whose tokens are prepared; there are none, since only the manifest is asked."""
    shutil.copytree(inputs / "model", tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "The film", "chosen": " is good", "rejected": " is bad"}\n')
    run = run_of(tmp_path)
    TokenManifest("pair", [], Counts(), made_from=made_from(RunValues(run).token_source("train"))).write(
        tokens(run) / "manifest.json"
    )
    return run


def run_of(folder: Path, **data: Any) -> RunFile:
    return RunFile.model_validate(
        {
            "name": "small",
            "output_dir": str(folder / "out"),
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "data": {"train": [str(folder / "*.jsonl")], **data},
        }
    )


def write_run_file(folder: Path, *, max_length: int) -> Path:
    path = folder / "run.yaml"
    path.write_text(
        f"name: small\noutput_dir: {folder}/out\nmodel: {{path: {folder}/model}}\n"
        f"data: {{train: [{folder}/pairs.jsonl], max_length: {max_length}}}\n"
    )
    return path


def tokens(run: RunFile) -> Path:
    return Path(run.output_dir) / "tokens/train"


def test_the_run_that_prepared_them_may_use_them_wherever_its_model_stands(prepared: RunFile, tmp_path: Path) -> None:
    check_made_from(RunValues(prepared).token_source("train"), tokens(prepared))
    shutil.move(tmp_path / "model", tmp_path / "moved")
    moved = prepared.model_copy(update={"model": prepared.model.model_copy(update={"path": str(tmp_path / "moved")})})
    check_made_from(RunValues(moved).token_source("train"), tokens(prepared))


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 64},
        {"truncation": "drop"},
        {"append_eos": False},
        {"date": "2026-01-31"},
        {"columns": {"prompt": "question"}},
        {"held_out_fraction": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_setting_is_named_with_both_values(prepared: RunFile, tmp_path: Path, change: dict[str, Any]) -> None:
    [key] = change
    message = rf"were prepared with data\.{key}=.*, and the run file says .*; run `raydpo prepare` again"
    with pytest.raises(UserError, match=message):
        check_made_from(RunValues(run_of(tmp_path, **change)).token_source("train"), tokens(prepared))


def _edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        tree = json.loads((model / name).read_text()) if (model / name).exists() else {}
        (model / name).write_text(json.dumps({**tree, **changes}))

    return edit


def _new_token(model: Path) -> None:
    tree = json.loads((model / "tokenizer.json").read_text())
    tree["added_tokens"][0]["content"] += "x"
    (model / "tokenizer.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    "change",
    [
        _new_token,
        _edit("tokenizer_config.json", eos_token="x"),
        _edit("generation_config.json", eos_token_id=[1, 7]),
        lambda model: (model / "chat_template.jinja").write_text("{{ messages }}"),
    ],
    ids=["token", "special token", "stop tokens", "template"],
)
def test_a_changed_tokenizer_is_noticed(prepared: RunFile, tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(tmp_path / "model")
    said = r"were prepared with another tokenizer than .*/model has now"
    with pytest.raises(UserError, match=said):
        check_made_from(RunValues(prepared).token_source("train"), tokens(prepared))
    with pytest.raises(UserError, match=said):
        check_same_tokenizer(prepared.model.path, tokens(prepared))


def test_where_a_tokenizer_was_saved_does_not_change_its_name(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    before = tokenizer_digest(str(tmp_path))
    _edit("tokenizer_config.json", name_or_path="/elsewhere")(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert tokenizer_digest(str(tmp_path)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_text(file.read_text() * 2), r"pairs.jsonl had 68 bytes and has 136"),
        (lambda file: file.with_name("more.jsonl").write_text("{}\n"), "more.jsonl was not among them"),
        (lambda file: os.rename(file, file.with_name("a.jsonl")), r"a.jsonl was not among them"),
    ],
)
def test_other_data_are_noticed(
    prepared: RunFile, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=rf"were prepared from other data: .*{message}; run `raydpo prepare` again"):
        check_made_from(RunValues(prepared).token_source("train"), tokens(prepared))


def test_data_that_are_gone_are_not_missed(prepared: RunFile, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").unlink()
    check_made_from(RunValues(prepared).token_source("train"), tokens(prepared))


def test_a_manifest_of_an_earlier_raydpo_says_what_to_do(prepared: RunFile) -> None:
    TokenManifest("pair", [], Counts()).write(tokens(prepared) / "manifest.json")
    with pytest.raises(UserError, match=r"does not say what the tokens were made from.*; run `raydpo prepare` again"):
        check_made_from(RunValues(prepared).token_source("train"), tokens(prepared))


def test_the_held_out_part_of_the_same_files_may_be_used_as_the_train_part(prepared: RunFile) -> None:
    check_made_from(RunValues(prepared).token_source("held_out"), tokens(prepared))


@pytest.mark.parametrize("stage", ["precompute", "train"])
def test_a_stage_refuses_tokens_of_another_length_before_it_starts(
    stage: str, prepared: RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, stage, lambda run: pytest.fail("it has started"))
    assert main([stage, str(write_run_file(tmp_path, max_length=9))]) == 2
    assert "were prepared with data.max_length=1024, and the run file says 9" in capsys.readouterr().err


def test_values_are_not_imported_for_tokens_of_another_length(
    prepared: RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run_file(tmp_path, max_length=9)
    assert main(["reference", "import", str(run_file), str(tmp_path / "pairs.jsonl")]) == 2
    assert "were prepared with data.max_length=1024, and the run file says 9" in capsys.readouterr().err
