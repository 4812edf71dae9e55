"""Laws of waiting: what comes is passed on unchanged, and what does not come is named."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.train.patience import Whereabouts, named, within

pytestmark = pytest.mark.unit


@given(st.lists(st.one_of(st.none(), st.integers())))
def test_waiting_changes_neither_the_items_nor_their_order(items: list[int | None]) -> None:
    assert list(within(items, 10, Whereabouts(0))) == items


def test_an_item_that_does_not_come_is_an_error_that_names_rank_and_place() -> None:
    never = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        never.wait()

    place, seen = Whereabouts(3), []
    with pytest.raises(TimeoutError, match=r"rank 3, waiting for the rows of step 2: nothing came for 0\.2 s"):  # noqa: PT012
        for item in within(slow(), 0.2, place):
            seen.append(item)
            place.at = "waiting for the rows of step 2"
    assert seen == [1]
    never.set()


def test_an_error_of_the_source_is_raised_where_the_items_are_used() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("row 7 is not the one planned")

    items = within(broken(), 10, Whereabouts(0))
    assert next(items) == 1
    with pytest.raises(ValueError, match="row 7"):
        next(items)


@pytest.mark.parametrize(
    "says",
    [
        "[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",  # gloo
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)",
    ],
)
def test_a_collective_that_runs_out_of_time_names_rank_and_place(says: str) -> None:
    place = Whereabouts(1)
    place.at = "step 17"
    with pytest.raises(TimeoutError, match="rank 1, step 17: another rank is late") as caught, named(place):
        raise RuntimeError(says)
    assert says in str(caught.value)


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of memory") as caught, named(Whereabouts(0)):
        raise RuntimeError("out of memory")
    assert type(caught.value) is RuntimeError
