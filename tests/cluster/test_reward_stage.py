"""`raydpo reward` as its users run it: what it leaves, and what it does when it is started again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.model.reward_card import read_card
from raydpo.model.reward_model import load_reward_model, own_rewards
from raydpo.model.tokenizer import load_tokenizer
from raydpo.storage.files import whole_lines
from tests.cluster.classify import vllm_rewards
from tests.cluster.outputs import CLOCK
from tests.cluster.processes import raydpo
from tests.cluster.runfiles import small_run, write_run_file
from tests.models import make_batch

pytestmark = pytest.mark.cluster

STEPS, HEADS, BEGUN = 6, 2, 3
WEIGHTS = ("model.safetensors", "ensemble/heads.safetensors")


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a run whose one stage is the reward model's: two workers under ZeRO-3."""
    directory = tmp_path_factory.mktemp("reward")
    raydpo("reward", run_file(inputs, directory)).succeeded()
    return directory / "out"


def run_file(inputs: Path, directory: Path) -> Path:
    run = small_run(inputs, directory / "out")
    run["data"] |= {"held_out_fraction": 0.25, "train": [str(path) for path in two_files(inputs)]}
    run["reward"] = run["train"] | {"heads": HEADS, "max_steps": STEPS, "keep_last": STEPS, "zero": {"stage": 3}}
    return write_run_file(directory / "run.yaml", run)


def two_files(inputs: Path) -> list[Path]:
    """The pairs of the inputs, in two files."""
    lines = (inputs / "pairs.jsonl").read_text().splitlines(keepends=True)
    first, second = inputs / "first.jsonl", inputs / "second.jsonl"
    first.write_text("".join(lines[::2]))
    second.write_text("".join(lines[1::2]))
    return [first, second]


def recorded(output_dir: Path) -> list[dict[str, Any]]:
    """Every step's figures, but for how long it took."""
    lines = map(json.loads, whole_lines(output_dir / "reward" / "metrics.jsonl"))
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def weights(output_dir: Path) -> list[bytes]:
    return [(output_dir / "reward" / "export" / name).read_bytes() for name in WEIGHTS]


def held_out(output_dir: Path) -> list[TokenRow]:
    shards = sorted((output_dir / "tokens" / "held_out").glob("*.arrow"))
    return [row for path in shards for row in to_rows(read_shard(path))]


def test_every_step_is_recorded_with_the_figures_of_pairs_and_heads(trained: Path) -> None:
    steps = recorded(trained)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    wanted = {"loss", "rewards/margins", "rewards/accuracies", "rewards/disagreement", "grad_norm"}
    assert all(wanted <= step.keys() for step in steps)
    assert not [name for step in steps for name in step if name.startswith("logps/")], "a reward model has no log-probs"


def test_transformers_gives_the_accuracy_and_the_rewards_that_are_on_record(inputs: Path, trained: Path) -> None:
    rows = held_out(trained)
    export = trained / "reward" / "export"
    rewards = own_rewards(export, make_batch(rows), dtype="float32")
    ours = load_reward_model(str(export), dtype="float32").rewards(make_batch(rows))
    torch.testing.assert_close(rewards, ours, rtol=1e-5, atol=1e-5)
    chosen, rejected = rewards.view(-1, 2).T
    found = json.loads((trained / "reward" / "evaluation.json").read_text())
    assert found["pairs"] == len(rows) > 0
    assert found["accuracy"]["mean"] == pytest.approx(float((chosen > rejected).float().mean()))
    of = found["by_source"]
    prompts = {path.name: {json.loads(line)["prompt"] for line in path.open()} for path in two_files(inputs)}
    tokenizer = load_tokenizer(str(export))
    texts = [tokenizer.decode(row.prompt_ids, skip_special_tokens=True) for row in rows]
    for name, own in prompts.items():
        here = torch.tensor([text in own for text in texts])
        assert of[name]["pairs"] == here.sum() > 0
        assert of[name]["accuracy"]["mean"] == pytest.approx(float((chosen > rejected)[here].float().mean()))
    card = read_card(str(export))
    assert (card.heads, card.step) == (HEADS, STEPS)
    assert card.held_out is not None
    assert card.held_out.accuracy == found["accuracy"]["mean"]
    assert card.held_out.mean == pytest.approx(float(np.mean(rewards.numpy())), abs=1e-5)


def test_vllm_classifies_with_the_rewards_of_transformers(trained: Path, tmp_path: Path) -> None:
    rows = held_out(trained)
    export = trained / "reward" / "export"
    texts = [row.prompt_ids + completion for row in rows for completion in row.completions]
    rewards = own_rewards(export, make_batch(rows), dtype="float32")
    torch.testing.assert_close(torch.tensor(vllm_rewards(export, texts, tmp_path)), rewards, rtol=1e-4, atol=1e-4)


def test_a_run_that_was_cut_off_goes_on_bitwise_as_an_undisturbed_one(
    inputs: Path, trained: Path, tmp_path: Path
) -> None:
    output_dir = shutil.copytree(trained, tmp_path / "out")
    for step in range(BEGUN + 1, STEPS + 1):
        shutil.rmtree(next((output_dir / "reward" / "checkpoints").glob(f"step-{step:06d}*")))
    shutil.rmtree(output_dir / "reward" / "export")
    (output_dir / "reward" / "evaluation.json").unlink()
    done = raydpo("reward", run_file(inputs, tmp_path)).succeeded()
    assert f"goes on after step {BEGUN}" in done.stdout
    assert recorded(output_dir) == recorded(trained)
    assert weights(output_dir) == weights(trained)
    name = Path("reward") / "evaluation.json"
    ours, theirs = (json.loads((where / name).read_text()) for where in (output_dir, trained))
    assert ours["accuracy"] == theirs["accuracy"]


def test_a_finished_stage_trains_and_measures_nothing_again_and_exports_its_last_commit(
    inputs: Path, trained: Path, tmp_path: Path
) -> None:
    output_dir = shutil.copytree(trained, tmp_path / "out")
    shutil.rmtree(output_dir / "reward" / "export")
    kept = [output_dir / "reward" / name for name in ("evaluation.json", "metrics.jsonl")]
    before = [path.stat().st_mtime_ns for path in kept]
    done = raydpo("reward", run_file(inputs, tmp_path)).succeeded()
    assert f"reward: all {STEPS} steps are done already" in done.stdout
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert weights(output_dir) == weights(trained)
    assert read_card(str(output_dir / "reward" / "export")) == read_card(str(trained / "reward" / "export"))
