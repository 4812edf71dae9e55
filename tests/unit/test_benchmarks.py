"""Laws of the benchmarks: what is compared must be the same thing, and the ratios must mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from benchmarks.balance import RANKS, equal_rows, planned, waiting
from benchmarks.child import Answer, Child, Task
from benchmarks.comparison import BEST, DEFAULTS, ENGINE, REWARD, REWARD_PASSES, SYSTEM, TOLERANCE, Comparison
from benchmarks.groups import Contender, as_pairs
from benchmarks.held_out import table
from benchmarks.models import write_classifier, write_other_weights
from benchmarks.passes import Packed, Padded
from benchmarks.shapes import (
    SHAPES,
    Shape,
    draw_lengths,
    make_pairs,
    read_pairs,
    real_tokens,
    repeated_tokens,
    write_pairs,
)
from raydpo.evaluate.reward_model import RewardedPairs
from raydpo.model.rate import rate_rows
from raydpo.model.reward_head import RewardModel
from raydpo.model.reward_model import own_rewards, start_reward_model
from raydpo.model.score import ScoringModel
from tests.helpers import tiny_tokenizer
from tests.models import VOCAB_SIZE, make_batch, random_rows, tiny_llama

pytestmark = pytest.mark.unit

SHORT = Shape("short", (1, 9), (1, 7))
SOURCE = np.random.default_rng(0).integers(VOCAB_SIZE, size=500).tolist()
NAMES = (DEFAULTS, BEST, ENGINE, SYSTEM)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def _comparison(busy: dict[str, float], *, padded: int = 1000, dtype: str = "float32") -> Comparison:
    """Of 300 tokens, 600 with prompts repeated, that every step of TRL padded to `padded`."""
    answers = {name: [Answer(seconds, seconds, 2**30, 0.6, padded_tokens=padded)] for name, seconds in busy.items()}
    return Comparison(
        shape="a shape",
        dtype=dtype,
        pairs=4,
        tokens=300,
        repeated_tokens=600,
        step_flops=1e9,
        ceiling=1e12,
        answers=answers,
        first_losses=dict.fromkeys(busy, 0.6),
    )


@pytest.mark.parametrize("name", SHAPES)
@given(count=st.integers(1, 50), seed=st.integers(0, 99))
def test_lengths_stay_within_the_shape(name: str, count: int, seed: int) -> None:
    shape = SHAPES[name]
    lengths = draw_lengths(shape, count, seed=seed)
    for column, (least, most) in zip(lengths.T, (shape.prompt, shape.completion, shape.completion), strict=True):
        assert len(column) == count
        assert least <= column.min() <= column.max() <= most


def test_pairs_are_stretches_of_the_source_and_the_same_every_time() -> None:
    text = " ".join(map(str, SOURCE))
    pairs = make_pairs(SHORT, 6, SOURCE)
    assert all(" ".join(map(str, part)) in text for row in pairs for part in (row.prompt_ids, *row.completions))
    assert pairs == make_pairs(SHORT, 6, SOURCE)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = make_pairs(SHORT, 5, SOURCE)
    write_pairs(tmp_path / "pairs.jsonl", rows)
    assert read_pairs(str(tmp_path / "pairs.jsonl")) == rows


@given(seed=st.integers(0, 99))
def test_sharing_saves_reading_each_prompt_a_second_time(seed: int) -> None:
    rows = random_rows(5, seed=seed)
    assert repeated_tokens(rows) - real_tokens(rows) == sum(len(row.prompt_ids) for row in rows)


def test_packed_and_padded_compute_the_same_loss_and_log_probs(model: Path) -> None:
    rows = random_rows(11, seed=0)  # more than one padded batch
    packed, padded = Packed(model, rows, dtype="float32"), Padded(model, rows, dtype="float32")
    np.testing.assert_allclose(packed.logps(), padded.logps(), atol=1e-4)
    assert packed.gradient() == pytest.approx(padded.gradient(), abs=1e-5)


def test_a_gradient_does_not_add_to_the_one_before(model: Path) -> None:
    packed = Packed(model, random_rows(3, seed=1), dtype="float32")
    packed.gradient()
    once = [weight.grad.clone() for weight in packed.lm.parameters()]
    packed.gradient()
    assert all(weight.grad.equal(before) for weight, before in zip(packed.lm.parameters(), once, strict=True))


def test_the_reference_has_other_weights_so_that_the_first_loss_is_not_log_two(model: Path, tmp_path: Path) -> None:
    other = write_other_weights(model, tmp_path / "reference", dtype="float32")
    policy, moved = (AutoModelForCausalLM.from_pretrained(path) for path in (model, other))
    assert all(not a.equal(b) for a, b in zip(policy.parameters(), moved.parameters(), strict=True))
    rows = random_rows(6, seed=2)
    ref_logps = Packed(other, rows, dtype="float32").logps()
    loss = Packed(model, rows, dtype="float32", ref_logps=ref_logps).gradient()
    assert abs(loss - np.log(2)) > 10 * TOLERANCE


def test_a_group_and_its_pair_rows_are_the_same_pairs() -> None:
    groups = random_rows(3, seed=1, completions=4)
    model = ScoringModel(tiny_llama())
    as_group, as_rows = Contender(model, groups), Contender(model, as_pairs(groups))
    found = []
    for contender in (as_group, as_rows):
        contender.reference()
        found.append((contender.gradient(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (loss, gradient), (expected_loss, expected_gradient) = found
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    assert (as_group.completions, as_rows.completions) == (12, 36)
    assert as_group.tokens < as_rows.tokens


def test_the_limit_is_reached_when_both_use_the_machine_equally_well() -> None:
    kappa, rho, pi = 5 / 3, 600 / 300, 1000 / 600
    comparison = _comparison({DEFAULTS: kappa * rho * pi, BEST: rho * pi, ENGINE: 1.0, SYSTEM: 2.0})
    assert comparison.factors(DEFAULTS) == pytest.approx((kappa, rho, pi))
    assert comparison.factors(BEST) == pytest.approx((1, rho, pi))
    assert comparison.markdown().count(f"{ENGINE} reaches 100%, {SYSTEM} reaches 50%") == 2


def test_without_a_reference_trl_has_one_pass_less() -> None:
    kappa, rho, pi = 4 / 3, 600 / 300, 1000 / 600
    found = _comparison({DEFAULTS: kappa * rho * pi, BEST: rho * pi, REWARD: 1.0})
    comparison = replace(found, passes=REWARD_PASSES)
    assert comparison.factors(DEFAULTS) == pytest.approx((kappa, rho, pi))
    assert comparison.markdown().count(f"{REWARD} reaches 100%") == 2


def test_others_start_from_the_reward_model_that_a_run_starts_from(model: Path, tmp_path: Path) -> None:
    rows = random_rows(4, seed=5)
    start = write_classifier(model, tmp_path / "start", dtype="float32")
    ours = RewardModel(start_reward_model(str(model), dtype="float32", heads=1, seed=0))
    expected = rate_rows(ours, rows, tokens_per_microbatch=64)
    torch.testing.assert_close(own_rewards(start, make_batch(rows), dtype="float32")[:, None], expected)


def test_a_reward_is_above_the_first_one_by_the_pairs_that_it_alone_gets_right() -> None:
    first = RewardedPairs(
        prompts=range(4),
        better=np.array([[1.0], [1.0], [0.0], [0.0]]),
        worse=np.array([[0.0], [0.0], [1.0], [1.0]]),
        better_tokens=np.array([1.0, 1.0, 2.0, 1.0]),
        worse_tokens=np.array([2.0, 2.0, 1.0, 2.0]),
        sources=["all"] * 4,
    )
    second = replace(first, better=np.ones((4, 1)), worse=np.zeros((4, 1)))
    head, _, _, _, one, other = table({"a": first, "b": second}).splitlines()
    assert head.startswith("4 pairs of 4 prompts; shorter wins: 0.750 [")
    assert one.startswith("| a | 0.500 [")
    assert other.split(" | ")[1:4] == [
        "1.000 [0.283, 1.000]",
        "0.250 [-0.546, 1.046]",
        "0.500 [-0.419, 1.419]",
    ]


def test_mfu_is_one_at_the_ceiling() -> None:
    slow = _comparison(dict.fromkeys(NAMES, 1.0))
    assert replace(slow, ceiling=slow.ceiling * slow.mfu(ENGINE)).mfu(ENGINE) == pytest.approx(1)


def test_float32_contenders_that_disagree_are_an_error_that_names_them() -> None:
    comparison = _comparison(dict.fromkeys(NAMES, 1.0))
    comparison.check()
    apart = replace(comparison, first_losses={**comparison.first_losses, BEST: 0.6 + 2 * TOLERANCE})
    with pytest.raises(ArithmeticError, match=f"{BEST} 0.6000"):
        apart.check()
    replace(apart, dtype="bfloat16").check()  # rounding alone moves it by more


def test_a_loss_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ArithmeticError):
        replace(_comparison(dict.fromkeys(NAMES, 1.0)), first_losses=dict.fromkeys(NAMES, float("nan"))).check()


def test_a_child_steps_on_every_request(model: Path, tmp_path: Path) -> None:
    rows = random_rows(3, seed=3)
    write_pairs(tmp_path / "pairs.jsonl", rows)
    task = Task(str(tmp_path / "pairs.jsonl"), str(model), str(model), "float32", str(tmp_path / "own"), lr=1e-4)
    child = Child("engine_child", task)
    try:
        first, second = child.ask(), child.ask()
    finally:
        child.close()
    assert first.loss == pytest.approx(np.log(2), abs=1e-6)
    assert second.loss < first.loss
    assert first.busy > 0 and first.peak


def test_a_child_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = Child("no_such_contender", Task("", "", "", "float32", str(tmp_path)))
    with pytest.raises(RuntimeError, match="No module named"):
        child.ask()


@pytest.mark.parametrize("ranks", RANKS)
def test_nobody_waits_when_all_rows_are_alike(ranks: int) -> None:
    assert waiting([np.ones(16)], [equal_rows(16, ranks)]) == 1


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_shares_tokens_to_three_percent_and_better_than_equal_rows(name: str, ranks: int) -> None:
    steps = [draw_lengths(SHAPES[name], 64, seed=seed).sum(axis=1) for seed in range(5)]
    ours = waiting(steps, [planned(step, ranks, tokens_per_microbatch=4096) for step in steps])
    assert ours <= 1.03
    assert ours < waiting(steps, [equal_rows(64, ranks)] * len(steps))
