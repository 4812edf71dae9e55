"""The key of a reference store: it changes with what changes a number, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.config.load import load_run_file
from raydpo.config.yaml12 import write_yaml
from raydpo.model import version
from raydpo.reference.store import Key
from raydpo.stages.values import RunValues
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_tiny_model(path)
    return path


def key_of(directory: Path, model: Path, *overrides: str) -> Key:
    tree: dict[str, Any] = {
        "name": "small",
        "output_dir": "out",
        "model": {"path": str(model)},
        "data": {"train": ["x"]},
    }
    (directory / "run.yaml").write_text(write_yaml(tree))
    return RunValues(load_run_file(directory / "run.yaml", overrides)).store().key


UNRELATED = [
    "name=other",
    "output_dir=elsewhere",
    "seed=7",
    "data.train=[y]",
    "data.max_length=32",
    "train.objective.beta=0.5",
    "train.objective.label_smoothing=0.1",
    "train.optimizer.lr=1e-3",
    "train.optimizer.name=adamw",
    "train.global_batch_size=8",
    "train.tokens_per_microbatch=99",
    "train.epochs=9",
    "train.zero.stage=3",
    "train.workers.count=4",
    "reference.tokens_per_batch=77",
    "reference.keep_token_logps=false",
    "reference.pool={min_actors: 2, max_actors: 3, cpus: 2}",
    "reference.store=/elsewhere",
]


@pytest.mark.parametrize("override", UNRELATED)
def test_what_moves_no_number_leaves_the_key(override: str, model: Path, tmp_path: Path) -> None:
    assert key_of(tmp_path, model, override) == key_of(tmp_path, model)


def test_a_moved_and_renamed_model_keeps_its_key(model: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(model, tmp_path / "somewhere" / "else")
    assert key_of(tmp_path, moved) == key_of(tmp_path, model)
    assert key_of(tmp_path, tmp_path, f"reference.model={moved}") == key_of(tmp_path, model)


@pytest.mark.parametrize("override", ["model.dtype=float32", "model.fp32_head=true"])
def test_another_number_format_is_another_key(override: str, model: Path, tmp_path: Path) -> None:
    assert key_of(tmp_path, model, override).digest != key_of(tmp_path, model).digest


def test_one_changed_weight_is_another_key(model: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(model, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    name = sorted(weights)[0]
    flat = weights[name].flatten()
    flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))
    weights[name] = flat.view_as(weights[name])
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert key_of(tmp_path, changed).digest != key_of(tmp_path, model).digest


def test_another_version_of_the_scorer_is_another_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(tmp_path, model)
    monkeypatch.setattr(version, "VERSION", version.VERSION + 1)
    assert key_of(tmp_path, model).digest != before.digest
