"""Laws of a run's identity: whatever decides its weights is in it, and a training is only gone on with by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.config.schema import RunFile
from raydpo.data.shards import Counts, ShardInfo, TokenManifest
from raydpo.errors import UserError
from raydpo.reference.dataset import MANIFEST
from raydpo.stages.values import RunValues
from raydpo.workspace.identity import (
    FILE,
    Identity,
    check_resumable,
    check_resumable_now,
    identity_of,
    order_of,
    read_identity,
    write_identity,
)
from tests.commits import save
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

Tree = dict[str, Any]
Make = Callable[[RunFile], Identity]


def of_train(run: RunFile, digest: str = "data") -> Identity:
    return identity_of(RunValues(run).training(), order_of(run.train, seed=run.seed, num_rows=640, digest=digest))


def of_sft(run: RunFile, digest: str = "data") -> Identity:
    assert run.sft
    return identity_of(RunValues(run).sft_training(), order_of(run.sft, seed=run.seed, num_rows=640, digest=digest))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    save_tiny_model(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "reference")
    shutil.copytree(tmp_path / "model", tmp_path / "out" / "sft" / "export")
    path = str(tmp_path / "model")
    return {
        "name": "x",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": path, "dtype": "float32"},
        "data": {"train": [path]},
        "sft": {"train": [path]},
        "reference": {"model": str(tmp_path / "reference")},
    }


def changed(tree: Tree, section: str, **values: Any) -> RunFile:
    return RunFile.model_validate(tree | {section: tree.get(section, {}) | values})


def move_a_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"global_batch_size": 32}, "global_batch_size was 64 and is 32"),
        ({"epochs": 2}, "epochs was 1 and is 2"),
        ({"tail": "drop"}, "tail was carry and is drop"),
        ({"optimizer": {"lr": 1e-5}}, "optimizer.lr was 1e-06 and is 1e-05"),
        ({"objective": {"beta": 0.2}}, "objective.beta was 0.1 and is 0.2"),
    ],
)
def test_whoever_changes_a_setting_that_decides_weights_is_told_which(tree: Tree, values: Tree, part: str) -> None:
    then, now = of_train(RunFile.model_validate(tree)), of_train(changed(tree, "train", **values))
    assert now.digest != then.digest
    assert now.differences(then) == [part]


PLAIN_DPO = {
    "loss_type": "sigmoid",
    "beta": 0.1,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
}


@pytest.mark.parametrize(
    "objective",
    [{}, {"name": "dpo"}, {"loss_type": "dpo"}, {"loss_type": ["sigmoid"]}, {"loss_type": "sigmoid", "beta": 0.1}],
)
def test_plain_dpo_is_one_training_however_a_run_file_calls_it(tree: Tree, objective: Tree) -> None:
    assert of_train(changed(tree, "train", objective=objective)).objective == PLAIN_DPO


@pytest.mark.parametrize(
    ("objective", "part"),
    [
        ({"loss_type": "ipo"}, {"loss_type": "ipo", "beta": 0.1}),
        ({"loss_type": "sft"}, {"loss_type": "sft"}),
        (
            {"f_divergence_type": "js_divergence"},
            PLAIN_DPO | {"f_divergence_type": "js_divergence"},
        ),
        ({"ld_alpha": 1.0, "use_margin": False, "use_weighting": False}, PLAIN_DPO),
        ({"ld_alpha": 0.5, "use_weighting": True}, PLAIN_DPO | {"ld_alpha": 0.5, "use_weighting": True}),
        (
            {"loss_type": ["simpo", "sft"], "loss_weights": [1.0, 0.2], "beta": 2.5},
            {
                "terms": [
                    {"weight": 1.0, "loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.5, "label_smoothing": 0.0},
                    {"weight": 0.2, "loss_type": "sft"},
                ]
            },
        ),
    ],
)
def test_the_objective_is_a_part_with_all_of_its_defaults(
    tree: Tree, tmp_path: Path, objective: Tree, part: Tree
) -> None:
    identity = of_train(changed(tree, "train", objective=objective))
    assert identity.objective == part
    write_identity(tmp_path, identity)
    assert read_identity(tmp_path) == identity


def test_a_default_that_is_written_out_is_the_same_run_and_another_value_is_not(tree: Tree) -> None:
    of_alpha = {"f_divergence_type": "alpha_divergence"}
    runs = [
        of_train(changed(tree, "train", objective=of_alpha | more))
        for more in ({}, {"f_alpha_divergence_coef": 0.5}, {"f_alpha_divergence_coef": 0.3})
    ]
    assert runs[0].digest == runs[1].digest != runs[2].digest


def test_who_reads_no_reference_does_not_rest_on_it(tree: Tree, tmp_path: Path) -> None:
    run = changed(tree, "train", objective={"loss_type": "orpo"})
    then = of_train(run)
    assert then.reference_weights is None
    move_a_weight(tmp_path / "reference")
    assert of_train(run).digest == then.digest


@pytest.mark.parametrize("make", [of_train, of_sft])
def test_seed_data_and_number_format_are_parts_of_every_training(tree: Tree, make: Callable[..., Identity]) -> None:
    then = make(RunFile.model_validate(tree))
    assert make(RunFile.model_validate(tree | {"seed": 1})).differences(then) == ["seed was 0 and is 1"]
    assert make(RunFile.model_validate(tree), "more").differences(then) == ["data_digest was data and is more"]
    [part] = make(changed(tree, "model", dtype="bfloat16")).differences(then)
    assert part == "dtype was float32 and is bfloat16"


@pytest.mark.parametrize(
    ("make", "model", "part"),
    [
        (of_train, "out/sft/export", "model_weights"),
        (of_train, "reference", "reference_weights"),
        (of_sft, "model", "model_weights"),
    ],
)
def test_weights_exchanged_under_the_same_path_are_another_run(
    tree: Tree, tmp_path: Path, make: Make, model: str, part: str
) -> None:
    then = make(RunFile.model_validate(tree))
    move_a_weight(tmp_path / model)
    [difference] = make(RunFile.model_validate(tree)).differences(then)
    assert difference.startswith(f"{part} was ")


@pytest.mark.parametrize(("schedule", "same"), [("constant", True), ("linear", False), ("cosine", False)])
def test_the_number_of_steps_counts_where_the_learning_rate_follows_it(tree: Tree, schedule: str, same: bool) -> None:
    optimizer = {"schedule": schedule}
    long, short = (of_train(changed(tree, "train", optimizer=optimizer, max_steps=steps)) for steps in (10, 5))
    assert (long.digest == short.digest) is same


def test_workers_sharding_and_micro_batches_may_change_on_the_way(tree: Tree) -> None:
    other = changed(
        tree,
        "train",
        workers={"count": 4},
        zero={"stage": 3},
        tokens_per_microbatch=9,
        checkpoint_every=1,
        activation_checkpointing=True,
    )
    assert of_train(other).digest == of_train(RunFile.model_validate(tree)).digest


def test_what_stands_behind_an_sft_that_is_another_now_is_refused(tree: Tree, tmp_path: Path) -> None:
    run = RunFile.model_validate(tree)
    layout = RunValues(run).layout
    check_resumable_now(RunValues(run).sft_training())
    TokenManifest("sft", [ShardInfo("a.arrow", 640, "sha", 9)], Counts()).write(layout.sft_tokens / MANIFEST)
    identity = of_sft(run, TokenManifest.read(layout.sft_tokens / MANIFEST).digest)
    write_identity(committed(layout.sft, identity), identity)
    check_resumable_now(RunValues(run).sft_training())
    with pytest.raises(UserError, match=r"out/sft has committed step 7 of another run: epochs was 1 and is 2\. Set"):
        check_resumable_now(RunValues(changed(tree, "sft", epochs=2)).sft_training())
    move_a_weight(tmp_path / "model")
    with pytest.raises(UserError, match="another run: model_weights was "):
        check_resumable_now(RunValues(run).sft_training())


@pytest.fixture
def identity(tree: Tree) -> Identity:
    return of_train(RunFile.model_validate(tree))


def committed(directory: Path, identity: Identity) -> Path:
    """A training's directory with a commit of step 7 by the run of that identity."""
    save(directory / "checkpoints", 7, identity=identity.digest)
    return directory


def test_a_training_goes_on_with_its_own_commits(tmp_path: Path, identity: Identity) -> None:
    check_resumable(tmp_path / "nothing yet", identity)
    check_resumable(committed(tmp_path / "train", identity), identity)


def test_the_commits_of_another_run_are_refused_with_every_part_that_changed(
    tmp_path: Path, identity: Identity
) -> None:
    directory = committed(tmp_path / "train", identity)
    write_identity(directory, identity)
    other = replace(identity, model_weights="other", optimizer=identity.optimizer | {"lr": 0.5})
    with pytest.raises(UserError) as refused:
        check_resumable(directory, other)
    said = str(refused.value)
    assert f"{directory} has committed step 7 of another run" in said
    assert "optimizer.lr was 1e-06 and is 0.5" in said
    assert f"model_weights was {identity.model_weights} and is other" in said
    assert "Set another output_dir" in said


def test_commits_of_a_raydpo_that_kept_no_identity_are_refused(tmp_path: Path, identity: Identity) -> None:
    save(tmp_path / "checkpoints", 7, identity="of old")
    with pytest.raises(UserError, match=r"an earlier raydpo began, without keeping .* which weights it started from"):
        check_resumable(tmp_path, identity)


def test_commits_that_the_kept_identity_does_not_name_are_refused(tmp_path: Path, identity: Identity) -> None:
    save(tmp_path / "checkpoints", 7, identity="from elsewhere")
    write_identity(tmp_path, identity)
    with pytest.raises(UserError, match=rf"a run that {tmp_path / FILE} does not describe"):
        check_resumable(tmp_path, identity)


def test_an_identity_is_read_as_it_was_written(tmp_path: Path, identity: Identity) -> None:
    assert read_identity(tmp_path) is None
    write_identity(tmp_path, identity)
    assert read_identity(tmp_path) == identity
    assert read_identity(tmp_path).digest == identity.digest
    assert json.loads((tmp_path / FILE).read_text()) == asdict(identity)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seed": 1, "colour": "red"}'])
def test_a_file_that_is_no_identity_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path / FILE} is damaged"):
        read_identity(tmp_path)


def test_every_part_is_in_the_digest(identity: Identity) -> None:
    others = [replace(identity, **{part.name: {"other": 1}}) for part in fields(identity)]
    assert len({identity.digest, *(other.digest for other in others)}) == len(others) + 1
    assert all(other.differences(identity) for other in others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_file(
    tree: Tree, tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    file = tmp_path / "reference" / "model.safetensors"
    weights = {name: weight.to(dtype) for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    of_train(RunFile.model_validate(tree))
    weights["model.layers.1.mlp.up_proj.weight"][-1, -1] = value
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{file}: the weight model.layers.1.mlp.up_proj.weight .*not finite"):
        of_train(RunFile.model_validate(tree))


def test_a_bound_that_is_infinite_is_no_weight(tree: Tree, tmp_path: Path) -> None:
    file = tmp_path / "reference" / "model.safetensors"
    save_file(load_file(file) | {"vision.input_min": torch.tensor(float("-inf"))}, file, {"format": "pt"})
    of_train(RunFile.model_validate(tree))


@pytest.mark.parametrize("left", [0, 5, 100, 0.5, 0.99])
def test_weights_that_are_cut_short_are_named(tree: Tree, tmp_path: Path, left: float) -> None:
    file = tmp_path / "reference" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(UserError, match=rf"{file}.*model again, whole"):
        of_train(RunFile.model_validate(tree))
