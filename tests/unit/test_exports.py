"""Laws of exports on the disk: a training takes its own and no others, and nothing is replaced that is no export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.config.schema import RunFile, Timeouts, Training
from raydpo.data.shards import Counts, ShardInfo, TokenManifest
from raydpo.errors import UserError
from raydpo.objective.registry import make_objective, resolve
from raydpo.reference.dataset import MANIFEST
from raydpo.runtime.trainer.exports import check_room_for_exports
from raydpo.stages.values import RunValues
from raydpo.train.checkpoint.retention import Retention
from raydpo.train.mark import MARK, check_replaceable, mark_export, read_mark, remove_export
from raydpo.workspace.exports import exports_of_run, own_exports
from raydpo.workspace.identity import identity_now, write_identity
from raydpo.workspace.job import Job
from raydpo.workspace.layout import Layout
from raydpo.workspace.lock import Claim
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit


def export(directory: Path, *, identity: str = "mine", step: int) -> Path:
    """An export as training leaves it, without a model."""
    (directory / "additional_chat_templates").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "additional_chat_templates/tool.jinja"):
        (directory / name).write_text(name)
    mark_export(directory, identity=identity, step=step)
    return directory


def test_only_whole_exports_with_the_runs_own_mark_are_its_own(tmp_path: Path) -> None:
    mine = {step: export(tmp_path / f"step-{step:06d}", step=step) for step in (2, 4)}
    export(tmp_path / "step-000006", identity="another", step=6)
    (export(tmp_path / "step-000008", step=8) / MARK).unlink()
    (export(tmp_path / "step-000010", step=10) / "model.safetensors").unlink()
    (export(tmp_path / "step-000012", step=12) / MARK).write_text("{")
    (tmp_path / "step-of-mine").mkdir()
    assert own_exports(tmp_path, "mine") == mine
    assert own_exports(tmp_path / "absent", "mine") == {}


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    save_tiny_model(tmp_path / "model")
    tree: dict[str, Any] = {
        "name": "x",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"train": [str(tmp_path / "pairs.jsonl")]},
    }
    return RunFile.model_validate(tree)


def prepared(run: RunFile, sha256: str) -> str:
    """Leave a manifest, as prepare does; the digest of the identity that training has then."""
    TokenManifest("pair", [ShardInfo("a.arrow", 640, sha256, 9)], Counts()).write(
        RunValues(run).layout.train_tokens / MANIFEST
    )
    identity = identity_now(RunValues(run).training())
    assert identity
    return identity.digest


def test_exports_of_other_data_are_left_out_aloud(run: RunFile, capsys: pytest.CaptureFixture[str]) -> None:
    layout = RunValues(run).layout
    before = export(layout.export(10), identity=prepared(run, "before"), step=10)
    assert exports_of_run(RunValues(run).layout.exports, RunValues(run).training()) == {10: before}
    assert capsys.readouterr().out == ""
    after = export(layout.export(20), identity=prepared(run, "after"), step=20)
    unmarked = layout.exports / "step-000030"
    unmarked.mkdir()
    assert exports_of_run(RunValues(run).layout.exports, RunValues(run).training()) == {20: after}
    assert capsys.readouterr().out.splitlines() == [
        f"{before} is left out: it is of other data, settings or weights",
        f"{unmarked} is left out: it is without a whole {MARK}, of unknown origin",
    ]


def test_without_tokens_the_trainings_own_word_counts(run: RunFile) -> None:
    layout = RunValues(run).layout
    assert identity_now(RunValues(run).training()) is None
    mine = export(layout.export(10), identity=prepared(run, "mine"), step=10)
    identity = identity_now(RunValues(run).training())
    assert identity
    (layout.train_tokens / MANIFEST).unlink()
    assert exports_of_run(RunValues(run).layout.exports, RunValues(run).training()) == {}, (
        "nothing says what was trained"
    )
    write_identity(layout.train, identity)
    assert exports_of_run(RunValues(run).layout.exports, RunValues(run).training()) == {10: mine}


def test_an_export_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    remove_export(tmp_path / "absent")
    remove_export(export(tmp_path / "whole", step=2))
    damaged = export(tmp_path / "damaged", step=2)
    (damaged / "config.json").unlink()
    remove_export(damaged)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("notes", ["notes.txt", "additional_chat_templates/notes.txt"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_file_that_is_no_exports_is_named_and_stays(tmp_path: Path, notes: str, marked: bool) -> None:
    directory = export(tmp_path / "step-000002", step=2)
    (directory / notes).write_text("mine")
    if not marked:
        (directory / MARK).unlink()
    files, named = sorted(directory.rglob("*")), notes if marked else "additional_chat_templates/"
    for refuse in (check_replaceable, remove_export):
        with pytest.raises(UserError, match=f"{directory} is where an export goes, and holds {named}"):
            refuse(directory)
    assert sorted(directory.rglob("*")) == files


def job(layout: Layout) -> Job:
    """A training of six steps that exports every second one."""
    return Job(
        model="model",
        dtype="float32",
        fp32_head=False,
        training=Training(),
        objective=make_objective(resolve(["sigmoid"], beta=0.1)),
        num_steps=6,
        identity="mine",
        directory=layout.train,
        claim=Claim(layout.root, "token"),
        timeouts=Timeouts(),
        retention=Retention(1),
        export=layout.export,
        evaluated=False,
        evaluate_every=2,
        step0_tolerance=None,
        confirm_imported=None,
    )


def test_a_foreign_file_counts_where_an_export_is_still_to_come(run: RunFile) -> None:
    layout = RunValues(run).layout
    for step in (1, 4):
        layout.export(step).mkdir(parents=True)
        (layout.export(step) / "notes.txt").write_text("mine")
    check_room_for_exports(job(layout), done=4)
    with pytest.raises(UserError, match=f"{layout.export(4)} is where an export goes, and holds notes.txt"):
        check_room_for_exports(job(layout), done=3)


def test_a_removal_that_is_killed_can_be_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, unlink = export(tmp_path / "step-000002", step=2), Path.unlink
    left = iter([True, True, False])

    def killed_at_the_third(path: Path, **options: Any) -> None:
        if not next(left):
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            remove_export(directory)
    assert read_mark(directory) is None, "half an export is none"
    remove_export(directory)
    assert not directory.exists()
