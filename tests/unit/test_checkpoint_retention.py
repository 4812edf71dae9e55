"""Which commits stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.train.checkpoint.retention import Retention

pytestmark = pytest.mark.unit

STEPS = st.sets(st.integers(1, 60), min_size=1)


@given(STEPS, st.integers(1, 5))
def test_the_newest_stay(steps: set[int], last: int) -> None:
    assert Retention(last).kept(steps) == set(sorted(steps)[-last:])


@given(STEPS, st.integers(1, 20))
def test_multiples_stay_for_good(steps: set[int], every: int) -> None:
    kept = Retention(1, every).kept(steps)
    assert kept == {max(steps)} | {step for step in steps if step % every == 0}


@given(STEPS, st.dictionaries(st.integers(0, 60), st.floats(-5, 5)), st.integers(1, 10))
def test_the_best_evaluated_one_stays(steps: set[int], scores: dict[int, float], evaluated_every: int) -> None:
    kept = Retention(1, None, lambda: scores, evaluated_every).kept(steps)
    measured = steps & scores.keys()
    assert not measured or max(scores[step] for step in measured) in {scores[step] for step in measured & kept}


@given(STEPS, st.dictionaries(st.integers(0, 60), st.floats(-5, 5)), st.integers(1, 10), st.integers(1, 10))
def test_the_highest_step_stays_whatever_is_asked_for(
    steps: set[int], scores: dict[int, float], every: int, evaluated_every: int
) -> None:
    assert max(steps) in Retention(1, every, lambda: scores, evaluated_every).kept(steps) <= steps


def test_a_commit_waits_for_its_evaluation_until_a_later_one_is_in() -> None:
    scores = {0: 0.2, 10: 0.3}
    retention = Retention(1, None, lambda: scores, evaluated_every=10)
    assert retention.kept({10, 15, 20, 30, 35}) == {10, 20, 30, 35}
    scores[30] = 0.4  # that of step 20 has failed
    assert retention.kept({10, 15, 20, 30, 35}) == {30, 35}
