"""Submitting: what may be sent to a cluster, and what a shell sees of a job's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.cli import main
from raydpo.config.load import load_run_file, shipped_run_file
from raydpo.config.yaml12 import write_yaml
from raydpo.errors import UserError
from raydpo.runtime.cluster.connection import STOP_WAIT, is_killed_at_once
from raydpo.runtime.cluster.submission import LARGEST_MODULE_MIB, Submitted, check_module

pytestmark = pytest.mark.unit


def run_file(directory: Path, **changes: Any) -> Path:
    tree = {"name": "mine", "output_dir": "out", "model": {"path": "./model"}, "data": {"train": ["pairs.jsonl"]}}
    path = directory / "run.yaml"
    path.write_text(write_yaml(tree | changes))
    return path


def test_what_is_sent_reads_back_as_the_same_run_file_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    here = load_run_file(run_file(tmp_path), ["train.epochs=2"])
    (tmp_path / "sent.yaml").write_text(shipped_run_file(here))
    monkeypatch.chdir(tmp_path)
    assert load_run_file("sent.yaml") == here
    assert here.output_dir == str(tmp_path / "there" / "out")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"cluster": {"env": {"HF_TOKEN": "hunter2"}}}, "cluster.env.HF_TOKEN"),
        ({"cluster": {"env": {"STORE": "s3://me:hunter2@bucket"}}}, "cluster.env.STORE"),
        ({"model": {"path": "s3://me:hunter2@bucket/model"}}, "model.path"),
        ({"data": {"train": ["a.jsonl", "https://host/b.jsonl?token=hunter2"]}}, "data.train.1"),
    ],
)
def test_a_secret_is_not_sent_and_its_key_is_named(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    run = load_run_file(run_file(tmp_path, **changes))
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as refused:
        shipped_run_file(run)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "exit_code", "outcome"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143), ("STOPPED", 0, 143)],
)
def test_a_shell_sees_how_the_job_ended(status: str, exit_code: int | None, outcome: int) -> None:
    ended = Submitted("id", "train", "mine", "/out", status, None, "", exit_code)
    assert ended.outcome == outcome
    assert not ended.is_unfinished


@pytest.mark.parametrize(
    ("environment", "killed"),
    [
        ({}, False),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, True),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", STOP_WAIT: "900"}, False),
    ],
)
def test_a_job_knows_whether_a_stop_leaves_it_time(environment: dict[str, str], killed: bool) -> None:
    assert is_killed_at_once(environment) is killed


def test_a_module_is_a_package_of_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Python package: it has no __init__\.py"):
        check_module(tmp_path)
    (tmp_path / "__init__.py").touch()
    check_module(tmp_path)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate((LARGEST_MODULE_MIB + 1) * 2**20)
    with pytest.raises(UserError, match=r"weights\.bin with 51 MiB"):
        check_module(tmp_path)


def test_without_a_cluster_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    assert main(["submit", "train", str(run_file(tmp_path))]) == 2
    assert "no cluster is named. Set RAY_ADDRESS=host:6379" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["status", "mine"]) == 2
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    assert main(["status", "mine", "--address", "http://127.0.0.1:1"]) == 2
    assert "no dashboard of a Ray cluster answers at http://127.0.0.1:1" in capsys.readouterr().err
