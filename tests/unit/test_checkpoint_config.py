"""What the run file says of checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config.load import load_run_file
from raydpo.errors import UserError
from raydpo.evaluate.origin import Origin
from raydpo.evaluate.records import summarise, write_evaluation
from raydpo.runtime.trainer.driver import checkpoint_retention
from raydpo.stages.values import RunValues
from raydpo.workspace.asked import OriginsToday
from raydpo.workspace.identity import Identity, write_identity
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit

EVALUATED = ["evaluate.prompts=[prompts.jsonl]", "train.checkpoint_every=10", "train.evaluate_every=20"]
BEST = "train.keep_best=reward"
IDENTITY = Identity(
    data_digest="d",
    seed=0,
    global_batch_size=8,
    epochs=1,
    tail="carry",
    schedule_steps=None,
    objective={},
    optimizer={},
    dtype="float32",
    fp32_head=False,
    model_weights="w",
    reference_weights="w",
)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: small\noutput_dir: {tmp_path / 'out'}\nmodel: {{path: model}}\ndata: {{train: [pairs.jsonl]}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([BEST], "train.keep_best=reward needs an evaluate section"),
        ([BEST, *EVALUATED, "train.evaluate_every=null"], "set train.evaluate_every to a multiple"),
        ([BEST, *EVALUATED, "train.evaluate_every=15"], "train.checkpoint_every=10"),
        (["train.keep_best=pair_accuracy", *EVALUATED], "needs data.held_out or data.held_out_fraction"),
        (["train.keep_best=kl"], "'reward' or 'pair_accuracy'"),
    ],
)
def test_the_best_checkpoint_is_kept_only_where_it_is_measured(
    overrides: list[str], named: str, run_file: Path
) -> None:
    with pytest.raises(UserError) as refused:
        load_run_file(run_file, overrides)
    assert named in str(refused.value)


def test_a_number_of_workers_that_does_not_divide_the_batch_is_answered_with_those_that_do(run_file: Path) -> None:
    with pytest.raises(UserError, match=r"with 1, 2, 3, 4, 6, 12 workers"):
        load_run_file(run_file, ["train.global_batch_size=12", "train.workers.count=5"])


def test_the_best_is_taken_from_the_records_that_answer_the_run_file(run_file: Path, tmp_path: Path) -> None:
    asked = [BEST, *EVALUATED, f"output_dir={tmp_path}"]
    run = load_run_file(run_file, asked)
    layout = RunValues(run).layout
    write_identity(layout.train, IDENTITY)  # as there are no tokens to tell it from
    retention = checkpoint_retention(run.train, RunValues(run).evaluations())
    assert retention.kept({10, 20, 40, 45, 50}) == {20, 40, 45, 50}, "none is in yet"
    today, mine = vars(origin()) | OriginsToday(RunValues(run).evaluations()).of(0), IDENTITY.digest
    for step, reward, training in ((20, 0.5, mine), (40, 0.2, mine), (60, 0.9, "another run's")):
        samples = [rated(str(sign), "c", reward + sign * 0.1, 0.1, 1, "stop") for sign in (-1, 1)]
        found = summarise(step, "model", samples, made_from=Origin(**today | {"training": training}), seconds={})
        write_evaluation(found, layout.evaluations)
    assert retention.kept({10, 20, 40, 45, 50}) == {20, 45, 50}
    by_length = load_run_file(run_file, [*asked, "evaluate.scorer=length"])
    other = checkpoint_retention(by_length.train, RunValues(by_length).evaluations())
    assert other.kept({10, 20, 40, 45, 50}) == {20, 40, 45, 50}, "these are another scorer's"
