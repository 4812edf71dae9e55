"""Laws of the diagnosis: each rule finds its pattern, is silent where there is none, and no figures break it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import Decoding
from raydpo.evaluate.records import Evaluation, RankedPair, summarise
from raydpo.report.course import Metrics
from raydpo.report.diagnosis import Finding, diagnose, in_short
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit

BETA = 0.1
MAX_GRAD_NORM = 10.0
STEPS = 100
PROMPTS = 64

Row = dict[str, float]


def run(change: Callable[[int, Row], Row] = lambda step, row: row, steps: int = STEPS) -> list[Row]:
    """A run that learns as it should, but for what `change` makes of its lines."""
    rng = random.Random(0)
    lines = []
    for step in range(1, steps + 1):
        margin = 1.2 * (1 - math.exp(-(step - 1) / 30)) + rng.gauss(0, 0.05)
        row = {
            "loss": math.log(1 + math.exp(-margin)),
            "rewards/chosen": 0.4 * margin,
            "rewards/rejected": -0.6 * margin,
            "rewards/margins": margin,
            "rewards/accuracies": min(0.9, 0.5 + 0.3 * margin),
            "logps/chosen": rng.gauss(-120, 15) + 4 * margin,
            "logps/rejected": rng.gauss(-130, 15) - 6 * margin,
            "grad_norm": rng.gauss(6, 1),
            "learning_rate": 1e-5,
        }
        lines.append({"step": step, **change(step, row)})
    return lines


def evaluation(
    step: int,
    *,
    reward: float = 0.0,
    reward_per_token: float = 0.0,
    noise: float = 0.05,
    length: float = 30.0,
    kl_per_token: float = 0.05,
    cut: float = 0.1,
    right: float | None = None,
    prompts: int = PROMPTS,
) -> Evaluation:
    """Samples whose reward is `reward`, but for noise, and more by `reward_per_token` for each token beyond 30."""
    rng = random.Random(step)
    samples = []
    for number in range(prompts):
        tokens = max(2, round(rng.gauss(length, 6)))
        samples.append(
            rated(
                prompt=f"prompt {number}",
                completion="text",
                reward=reward + reward_per_token * (tokens - 30) + rng.gauss(0, noise),
                kl=kl_per_token * tokens if step else 0.0,
                length=tokens,
                finish_reason="length" if number < cut * prompts else "stop",
            )
        )
    pairs = [] if right is None else [RankedPair(number, number < right * PROMPTS) for number in range(PROMPTS)]
    return summarise(step, "policy", samples, made_from=origin(), seconds={}, pairs=pairs)


def evaluations(**of_policy: Any) -> list[Evaluation]:
    return [evaluation(0), evaluation(50), evaluation(STEPS, **of_policy)]


def found(
    metrics: Metrics = (),
    evaluations: Sequence[Evaluation] = (),
    data_counts: Mapping[str, Mapping[str, int]] | None = None,
    *,
    beta: float | None = BETA,
    max_grad_norm: float = MAX_GRAD_NORM,
) -> dict[str, Finding]:
    findings = diagnose(metrics, evaluations, data_counts or {}, beta=beta, max_grad_norm=max_grad_norm)
    return {finding.name: finding for finding in findings}


def test_a_run_that_learns_as_it_should_has_no_findings() -> None:
    counts = {"train": {"rows_read": 100, "kept": 98, "truncated_prompt": 3, "dropped_too_long": 2}}
    assert not found(run(), evaluations(reward=0.3, right=0.8), counts)


def test_a_run_without_any_figures_has_no_findings() -> None:
    assert not found()
    assert not found([{"step": step} for step in range(STEPS)])
    assert not found([{"step": step, "loss": math.log(2)} for step in range(STEPS)]), "a loss without rewards"
    assert not found([{"step": step, "rewards/margins": 0.0} for step in range(STEPS)])


def test_too_few_steps_show_no_course() -> None:
    def change(step: int, row: Row) -> Row:
        return row | {"loss": math.log(2), "rewards/accuracies": 1.0, "grad_norm": 99.0}

    assert not found(run(change, steps=9))
    assert len(found(run(change, steps=10))) == 3


def test_the_terminal_has_what_was_seen_and_what_to_try() -> None:
    findings = list(found(run(lambda step, row: row | {"grad_norm": 35.0})).values())
    _, seen, remedy = in_short(findings).splitlines()
    assert seen.startswith("- gradient always clipped: The gradient's norm was above max_grad_norm=10")
    assert remedy.startswith("  try: Set train.optimizer.max_grad_norm above the median")
    assert not in_short([])


# Chosen and rejected both fall


def lowered(nats: float) -> Callable[[int, Row], Row]:
    """Chosen loses so many nats in the course of the run, rejected twice as many."""

    def change(step: int, row: Row) -> Row:
        fall = nats * step / STEPS
        return row | {
            "rewards/chosen": -BETA * fall,
            "rewards/rejected": -BETA * 2 * fall,
            "logps/chosen": row["logps/chosen"] - fall,
            "logps/rejected": row["logps/rejected"] - 2 * fall,
        }

    return change


def without_rewards(metrics: Metrics) -> Metrics:
    """As a loss without a reference records them."""
    return [{name: value for name, value in row.items() if not name.startswith("rewards/")} for row in metrics]


def test_log_probs_that_fall_on_both_sides_are_found_and_counted_in_nats() -> None:
    finding = found(run(lowered(12.0)))["chosen and rejected both fall"]
    assert "From steps 1 to 10 to steps 91 to 100" in finding.seen
    assert "chosen completions fell by 10.8 nats, that of rejected ones by 21.6" in finding.seen
    assert "a larger beta than 0.1" in finding.remedy


def test_rejected_alone_may_fall() -> None:
    assert not found(run(lambda step, row: row | {"rewards/rejected": -0.2 * step}))


def test_without_a_reference_a_fall_must_stand_out_of_the_batches() -> None:
    name = "chosen and rejected both fall"
    assert name not in found(without_rewards(run(lowered(8.0))), beta=None), "batches differ by as much"
    assert name in found(without_rewards(run(lowered(60.0))), beta=None)


# Stuck at ln 2


@pytest.mark.parametrize(
    ("first", "last", "stuck"),
    [
        (math.log(2), math.log(2), True),
        (math.log(2), 0.6, False),
        (0.6, math.log(2), False),  # another loss, which passes ln 2 on its way
    ],
)
def test_a_loss_that_stays_at_ln2_is_found(first: float, last: float, *, stuck: bool) -> None:
    def change(step: int, row: Row) -> Row:
        return row | {"loss": first + (last - first) * step / STEPS, "rewards/margins": 0.002}

    findings = found(run(change))
    assert ("stuck at ln 2" in findings) == stuck
    if stuck:
        seen = findings["stuck at ln 2"].seen
        assert "0.6931 over steps 91 to 100" in seen
        assert "+0.0020" in seen
        assert "at most 1e-05" in seen


# Accuracy at once 1.0


@pytest.mark.parametrize(("right_from", "at_once"), [(2, True), (30, False)])
def test_pairs_that_are_ranked_rightly_at_once_are_found(right_from: int, *, at_once: bool) -> None:
    """Step 1 does not count: policy and reference tie."""

    def change(step: int, row: Row) -> Row:
        return row | {"rewards/accuracies": 1.0 if step >= right_from else 0.5}

    findings = found(run(change))
    assert ("accuracy at once 1.0" in findings) == at_once
    if at_once:
        assert "over steps 2 to 11 100.0%" in findings["accuracy at once 1.0"].seen


# The gradient is clipped


@pytest.mark.parametrize(
    ("norm", "max_grad_norm", "clipped"), [(35.0, 10.0, True), (35.0, 40.0, False), (35.0, 0.0, False)]
)
def test_a_gradient_that_is_clipped_at_every_step_is_found(norm: float, max_grad_norm: float, *, clipped: bool) -> None:
    findings = found(run(lambda step, row: row | {"grad_norm": norm}), max_grad_norm=max_grad_norm)
    assert ("gradient always clipped" in findings) == clipped
    if clipped:
        assert "max_grad_norm=10 at 100 of 100 steps (median 35)" in findings["gradient always clipped"].seen


def test_a_gradient_that_is_clipped_at_times_is_not_remarkable() -> None:
    assert not found(run(lambda step, row: row | {"grad_norm": 35.0 if step % 2 else 5.0}))


# Pairs learnt by heart


@pytest.mark.parametrize(("right", "memorised"), [(0.6, True), (0.95, False), (None, False)])
def test_an_accuracy_that_held_out_pairs_do_not_share_is_found(right: float | None, *, memorised: bool) -> None:
    def change(step: int, row: Row) -> Row:
        return row | {"rewards/accuracies": 0.5 if step < 40 else 1.0}

    findings = found(run(change), evaluations(right=right))
    assert ("pairs learnt by heart" in findings) == memorised
    if memorised:
        assert "steps 91 to 100 100.0%" in findings["pairs learnt by heart"].seen


def test_an_earlier_evaluation_that_ranked_held_out_pairs_better_is_named() -> None:
    def change(step: int, row: Row) -> Row:
        return row | {"rewards/accuracies": 0.5 if step < 40 else 1.0}

    better_before = [evaluation(0), evaluation(50, right=0.75), evaluation(STEPS, right=0.5)]
    assert "Step 50 ranked 75.0%" in found(run(change), better_before)["pairs learnt by heart"].remedy


# Length


def test_a_reward_that_length_explains_is_found() -> None:
    seen = found(evaluations=by_length())["longer, not better"].seen
    assert "step 100 completions grew by" in seen
    assert "at equal length the reward changed by" in seen


def by_length() -> list[Evaluation]:
    """Reward is length, before and after; the policy writes more."""
    return [evaluation(0, reward_per_token=0.02), evaluation(STEPS, reward_per_token=0.02, length=45)]


def test_the_reward_at_equal_length_is_what_length_does_not_explain() -> None:
    seen = found(evaluations=by_length())["longer, not better"].seen
    low, high = map(float, seen.rsplit("[", 1)[1].rstrip("].").split(", "))
    assert low < 0 < high


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param([evaluation(0), evaluation(STEPS, reward=0.3, length=45)], id="reward regardless of length"),
        pytest.param(
            [evaluation(0, reward_per_token=0.02), evaluation(STEPS, reward_per_token=0.02, reward=0.3)],
            id="reward at the same length",
        ),
        pytest.param(
            [evaluation(0, reward_per_token=0.02), evaluation(STEPS, reward_per_token=0.02, reward=1.0, length=45)],
            id="more reward than length explains",
        ),
        pytest.param(
            [evaluation(0, reward_per_token=-0.02), evaluation(STEPS, reward_per_token=-0.02, reward=2, length=45)],
            id="reward in spite of length",
        ),
        pytest.param(
            [evaluation(0, reward_per_token=0.02), evaluation(STEPS, reward_per_token=0.02, reward=-0.3, length=45)],
            id="length made good what was lost",
        ),
        pytest.param(
            [
                evaluation(0, reward_per_token=0.02, noise=0.8),
                evaluation(STEPS, reward_per_token=0.02, noise=0.8, length=90),
            ],
            id="length says little about the reward",
        ),
        pytest.param(
            [
                evaluation(0, reward_per_token=0.02),
                evaluation(STEPS, reward_per_token=0.02, length=45, prompts=PROMPTS // 2),
            ],
            id="other prompts",
        ),
        pytest.param([evaluation(STEPS, reward_per_token=0.02, length=45)], id="no reference"),
    ],
)
def test_a_reward_that_length_does_not_explain_is_left_alone(ends: list[Evaluation]) -> None:
    assert not found(evaluations=ends)


# KL, and completions that do not end


@pytest.mark.parametrize(("kl_per_token", "explodes"), [(1.4, True), (0.3, False)])
def test_a_policy_far_from_its_reference_is_found_at_its_first_step(kl_per_token: float, *, explodes: bool) -> None:
    ends = [evaluation(0), evaluation(50, kl_per_token=1.1), evaluation(STEPS, kl_per_token=kl_per_token)]
    findings = found(evaluations=ends if explodes else evaluations(kl_per_token=kl_per_token))
    assert ("KL explodes" in findings) == explodes
    if explodes:
        assert "1.40 nats a token at step 100, and above 1 since step 50" in findings["KL explodes"].seen


@pytest.mark.parametrize(
    ("before", "after", "noted"),
    [
        (0.1, 0.9, True),
        (0.95, 0.95, False),  # max_tokens is short, and was so for the reference
        (0.0, 0.4, False),
    ],
)
def test_a_policy_that_no_longer_ends_its_completions_is_found(before: float, after: float, *, noted: bool) -> None:
    findings = found(evaluations=[evaluation(0, cut=before), evaluation(STEPS, cut=after)])
    assert ("completions no longer end" in findings) == noted
    if noted:
        assert f"max_tokens={Decoding().max_tokens}" in findings["completions no longer end"].seen


# Data


@pytest.mark.parametrize(
    ("counts", "noted"),
    [
        ({"rows_read": 100, "truncated_completion": 40, "truncated_prompt": 20}, True),
        ({"rows_read": 100, "dropped_too_long": 51}, True),
        ({"rows_read": 100, "truncated_completion": 50}, False),
        ({}, False),
    ],
)
def test_rows_that_mostly_do_not_fit_are_found(counts: dict[str, int], *, noted: bool) -> None:
    findings = found(data_counts={"held_out": {"rows_read": 3}, "train": counts})
    assert ("most rows too long" in findings) == noted
    if noted:
        assert "train: " in findings["most rows too long"].seen
        assert "held_out" not in findings["most rows too long"].seen


# Whatever the figures are

NAMES = [*run(steps=1)[0]]
VALUES = st.none() | st.floats() | st.floats(-2, 2) | st.integers() | st.just(10**400) | st.just(math.log(2))
WHOLE_LINES = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, st.floats(-2, 2) | VALUES)), max_size=20)
LINES = WHOLE_LINES | st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=20)
SAMPLES = st.lists(
    st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(0, 4096), st.sampled_from(["stop", "length"])),
    min_size=2,
    max_size=8,
)


@st.composite
def any_evaluation(draw: st.DrawFn, step: int) -> Evaluation:
    samples = [
        rated(f"prompt {i}", "", reward, kl if step else 0.0, length, reason)
        for i, (reward, kl, length, reason) in enumerate(draw(SAMPLES))
    ]
    pairs = draw(st.lists(st.builds(RankedPair, st.integers(0, 3), st.booleans()), max_size=9))
    return summarise(step, "policy", samples, made_from=origin(), seconds={}, pairs=pairs)


@given(
    metrics=LINES,
    ends=st.tuples(*(st.none() | any_evaluation(step) for step in (0, 20, 40))),
    counts=st.dictionaries(
        st.text(), st.dictionaries(st.sampled_from(["rows_read", "dropped_too_long"]), st.integers())
    ),
    beta=st.none() | st.floats(1e-6, 1e6),
    max_grad_norm=st.floats(0, allow_infinity=False),
)
def test_no_figures_break_the_diagnosis(
    metrics: Metrics,
    ends: Sequence[Evaluation | None],
    counts: Mapping[str, Mapping[str, int]],
    beta: float | None,
    max_grad_norm: float,
) -> None:
    for finding in found(metrics, [e for e in ends if e], counts, beta=beta, max_grad_norm=max_grad_norm).values():
        assert finding.seen
        assert finding.means
        assert finding.remedy
