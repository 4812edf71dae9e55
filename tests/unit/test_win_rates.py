"""Laws of win rates, of what length explains, and of what judges are worth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.errors import UserError
from raydpo.evaluate.agreement import agreement, position_bias, sign_test
from raydpo.evaluate.judgements import (
    Contest,
    Judged,
    Judgements,
    JudgeRecord,
    Outcome,
    Said,
    Subject,
    agreement_of_orders,
    between_judges,
    bias_of,
    read_judgements,
    unanswered_of,
    win_rate,
    write_judgements,
)
from raydpo.evaluate.length_control import length_controlled_win_rate
from raydpo.evaluate.stats import share_interval
from raydpo.report.win_rates import judge_table, judge_tables

pytestmark = pytest.mark.unit

OUTCOMES = st.sampled_from(["win", "tie", "loss", None])


def judged(outcome: Outcome | None, prompt: str = "p", longer_by: int = 0, *, arrived: bool = True) -> Judged:
    place = {"win": "first", "loss": "second", "tie": "tie", None: None}[outcome]
    said = Said(place, outcome, "words")  # type: ignore[arg-type]  # a mapping has no literal values
    return Judged(prompt, longer_by, outcome, arrived, [said, said])


def planted(n: int, theta: float, phi: float) -> tuple[list[float], list[float]]:
    """Outcomes and length differences of n comparisons, with the win rate at equal length planted."""
    rng = np.random.default_rng(0)
    longer = rng.normal(20, 40, n)
    p = 1 / (1 + np.exp(-(theta + phi * np.tanh(longer / longer.std()))))
    return (rng.random(n) < p).astype(float).tolist(), longer.tolist()


@given(st.lists(OUTCOMES, min_size=1, max_size=40))
def test_every_comparison_is_counted_once_and_ties_count_half(outcomes: list[Outcome | None]) -> None:
    found = win_rate([judged(outcome, f"p{i}") for i, outcome in enumerate(outcomes)])
    assert found.wins + found.ties + found.losses + found.unanswered == len(outcomes)
    decided = found.wins + found.ties + found.losses
    if decided:
        assert found.rate and found.rate.mean == pytest.approx((found.wins + found.ties / 2) / decided)
        assert 0 <= found.rate.low <= found.rate.mean <= found.rate.high <= 1
    else:
        assert found.rate is None


def test_what_has_not_arrived_is_lacking_and_not_unanswered() -> None:
    found = win_rate([judged("win", "a"), judged(None, "b", arrived=False), judged(None, "c")])
    assert (found.lacking, found.unanswered) == (1, 1)
    assert unanswered_of([judged("win", "a"), judged(None, "b", arrived=False), judged(None, "c")]) == share_interval(
        [False, False, True, True], ["a", "a", "c", "c"]
    )


def test_ties_give_no_narrower_an_interval_than_as_many_wins_and_losses() -> None:
    halves = share_interval([0.5] * 40)
    decided = share_interval([1, 0] * 20)
    assert halves.mean == decided.mean == 0.5
    # Both count as forty trials, but for k / (k - 1) in the variance that the second has.
    assert halves.high - halves.low > 0.98 * (decided.high - decided.low)


@pytest.mark.parametrize("theta", [-1.0, 0.0, 0.7])
def test_the_win_rate_at_equal_length_is_the_planted_one(theta: float) -> None:
    outcomes, longer = planted(4000, theta, 2.0)
    found = length_controlled_win_rate(outcomes, longer, range(4000))
    truth = 1 / (1 + math.exp(-theta))
    assert found.low < truth < found.high
    assert found.high - found.low < 0.08
    assert abs(np.mean(outcomes) - truth) > 0.05, "the plain win rate is another one"


def test_a_judge_that_follows_length_alone_leaves_one_half() -> None:
    rng = np.random.default_rng(1)
    longer = rng.normal(0, 40, 2000) + 30
    outcomes = (rng.random(2000) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    found = length_controlled_win_rate(outcomes.tolist(), longer.tolist(), range(2000))
    assert found.low < 0.5 < found.high
    assert outcomes.mean() > 0.7


def test_without_differences_of_length_it_is_the_win_rate_up_to_the_penalty() -> None:
    found = length_controlled_win_rate([1.0] * 30 + [0.0] * 10, [5.0] * 40, range(40))
    assert found.mean == pytest.approx(30.5 / 41)  # Firth's penalty adds half a win and half a loss


@pytest.mark.parametrize("always", [0.0, 0.5, 1.0])
def test_a_side_that_always_wins_has_a_finite_fit(always: float) -> None:
    found = length_controlled_win_rate([always] * 20, np.linspace(-9, 9, 20).tolist(), range(20))
    assert 0 < found.low < found.mean < found.high < 1


def test_length_that_decides_everything_has_a_finite_fit() -> None:
    longer = np.linspace(-10, 10, 40)
    found = length_controlled_win_rate((longer > 0).astype(float).tolist(), longer.tolist(), range(40))
    assert found.mean == pytest.approx(0.5, abs=1e-6)
    assert 0 < found.low < 0.5 < found.high < 1


def test_repeated_answers_of_a_prompt_make_no_narrower_an_interval() -> None:
    outcomes, longer = planted(100, 0.7, 1.0)
    once = length_controlled_win_rate(outcomes, longer, range(100))
    thrice = length_controlled_win_rate(outcomes * 3, longer * 3, list(range(100)) * 3)
    assert thrice.high - thrice.low > 0.9 * (once.high - once.low)


def test_swapping_the_sides_mirrors_the_win_rate() -> None:
    outcomes, longer = planted(200, 0.7, 1.0)
    one = length_controlled_win_rate(outcomes, longer, range(200))
    other = length_controlled_win_rate([1 - y for y in outcomes], [-x for x in longer], range(200))
    assert (other.mean, other.low, other.high) == pytest.approx((1 - one.mean, 1 - one.high, 1 - one.low))


def test_kappa_as_worked_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: o = .7, e = .5 * .6 + .5 * .4 = .5, kappa = .4
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = agreement(a, b, range(50))
    assert found.kappa == pytest.approx(0.4)
    assert found.share and found.share.mean == 0.7


def test_agreement_leaves_out_what_one_left_unanswered_and_tells_ties_apart() -> None:
    found = agreement(["win", "tie", None, "loss", "win"], ["win", "win", "win", None, "loss"], range(5))
    assert found.share and (found.share.mean, found.share.n) == (pytest.approx(1 / 3), 3)
    assert found.decided and (found.decided.mean, found.decided.n) == (0.5, 2)


def test_agreement_over_nothing_is_not_measured() -> None:
    found = agreement([None], ["win"], ["p"])
    assert (found.share, found.kappa, found.decided) == (None, None, None)
    assert agreement(["win"] * 3, ["win"] * 3, range(3)).kappa is None, "chance alone would agree as well"


def test_the_sign_test_as_worked_by_hand() -> None:
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(0, 0) == sign_test(3, 3) == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_knows_no_side(above: int, below: int) -> None:
    assert sign_test(above, below) == sign_test(below, above) <= 1


def test_a_judge_that_contradicts_itself_only_to_one_side_is_biased() -> None:
    found = position_bias([["first", "first"]] * 10 + [["first", "second"]] * 10, range(20))
    assert found.first and found.first.mean == 0.75
    assert found.chance == 2 / 2**10
    even = position_bias([["first", "first"], ["second", "second"]] * 10, range(20))
    assert even.first and (even.first.mean, even.chance) == (0.5, 1)
    assert position_bias([["tie", None]], ["p"]).first is None


def test_judgements_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [judged("win", "a", 3), judged(None, "b"), judged("tie", "c", -2)]
    written = judgements_of(rows)
    path = tmp_path / "below" / "judgements.json"
    write_judgements(written, path)
    assert read_judgements(path) == written
    path.write_text(path.read_text().replace('"version": 1', '"version": 0'))
    assert read_judgements(path) == Judgements()
    path.write_text("{")
    with pytest.raises(UserError, match=r"judgements\.json holds no judgements"):
        read_judgements(path)
    assert read_judgements(tmp_path / "absent.json") == Judgements()


def judgements_of(rows: list[Judged], **subject: object) -> Judgements:
    where = Subject(**({"step": 7, "temperature": 1.0, "weights": "w", "against": "reference"} | subject))  # type: ignore[arg-type]  # of any kind
    record = JudgeRecord(
        "mine", "planted", None, bias_of(rows), agreement_of_orders(rows), unanswered_of(rows), 0, 6, 60, 12, 0.5
    )
    return Judgements([Contest("mine", where, win_rate(rows), rows)], [record])


def test_the_table_says_who_won_and_what_the_judge_is_worth() -> None:
    text = judge_table(judgements_of([judged("win", f"p{i}") for i in range(3)] + [judged("loss", "p4")]))
    assert "Win rate against reference" in text
    assert "0.750" in text and "orders agree" in text
    assert "temperature" not in text, "all have the same"


def test_the_report_leaves_out_what_was_judged_of_other_weights() -> None:
    assert judge_tables(judgements_of([judged("win", "a"), judged("win", "b")]), []) == []
    assert judge_tables(Judgements()) == []


def test_two_judges_agree_where_their_outcomes_do() -> None:
    a = judgements_of([judged("win", "a"), judged("tie", "b"), judged("win", "c")]).contests
    b = judgements_of([judged("win", "a"), judged("loss", "b"), judged(None, "c")]).contests
    found = between_judges(a, b)
    assert found.share and (found.share.mean, found.share.n) == (0.5, 2)
