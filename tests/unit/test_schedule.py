"""Laws of the learning rate."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.train.schedule import learning_rate

pytestmark = pytest.mark.unit

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: list[Schedule] = ["constant", "linear", "cosine"]
PEAK = 5e-7


def _rates(warmup_steps: int, num_steps: int, schedule: Schedule) -> list[float]:
    return [
        learning_rate(step, peak=PEAK, warmup_steps=warmup_steps, num_steps=num_steps, schedule=schedule)
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(warmup_steps=st.integers(0, 50), steps_behind=st.integers(1, 50))
def test_the_rate_rises_to_its_peak_and_never_above(schedule: Schedule, warmup_steps: int, steps_behind: int) -> None:
    rates = _rates(warmup_steps, warmup_steps + steps_behind, schedule)
    top = max(0, warmup_steps - 1)
    assert rates[top] == PEAK == max(rates)
    assert min(rates) > 0
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_climbs_in_equal_steps_from_the_first(schedule: Schedule) -> None:
    assert _rates(4, 10, schedule)[:4] == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK])


def test_constant_stays() -> None:
    assert set(_rates(3, 100, "constant")[3:]) == {PEAK}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_decay_passes_half_the_peak_half_way_and_ends_near_zero(schedule: Schedule) -> None:
    rates = _rates(10, 210, schedule)
    assert rates[110] == pytest.approx(PEAK / 2)
    assert rates[-1] < PEAK / 199


def test_cosine_starts_and_ends_flatter_than_linear() -> None:
    linear, cosine = _rates(0, 100, "linear"), _rates(0, 100, "cosine")
    assert all(curved > straight for straight, curved in zip(linear[1:50], cosine[1:50], strict=True))
    assert all(curved < straight for straight, curved in zip(linear[51:], cosine[51:], strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_longer_than_the_run_only_climbs(schedule: Schedule) -> None:
    assert _rates(8, 4, schedule) == pytest.approx([PEAK * k / 8 for k in (1, 2, 3, 4)])
