"""Laws of a rank's batches: every row of the plan comes, in its place and with its own tokens, or training ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
import torch

from raydpo.runtime.feed.rank_batches import rank_batches
from raydpo.train.step import RankBatch
from tests.models import random_rows

pytestmark = pytest.mark.unit

STEPS, ROWS = 3, 4


@dataclass(frozen=True)
class Feed:
    """A feed that delivers these rows, three in a block."""

    rows: Sequence[dict[str, Any]]

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        for begin in range(0, len(self.rows), 3):
            yield pa.Table.from_pylist(list(self.rows[begin : begin + 3]))


def planned() -> list[dict[str, Any]]:
    """What the feed brings for three steps of four rows each, two to a micro-batch."""
    return [
        {
            "step": number // ROWS,
            "micro": number % ROWS // 2,
            "expected_id": row.row_id,
            "rank_rows": ROWS,
            "step_rows": ROWS,
            "step_pairs": ROWS,
            "step_completions": 2 * ROWS,
            "step_tokens": 9,
            "epoch": (1 + number // ROWS) / STEPS,
            "num_tokens": 30 * (1 + number // ROWS),
            "ref_logps": [-1.0, -2.0],
            "row_id": row.row_id,
            "prompt_ids": row.prompt_ids,
            "completions": list(row.completions),
        }
        for number, row in enumerate(random_rows(STEPS * ROWS, seed=0))
    ]


def delivered(rows: Sequence[dict[str, Any]], first: int = 0) -> list[RankBatch]:
    feed: Any = Feed(rows)
    return list(rank_batches(feed, steps=range(first, STEPS), device=torch.device("cpu")))


def test_a_rank_batch_holds_the_planned_rows_of_its_step() -> None:
    rows = planned()
    found = delivered(rows)
    assert [rank_batch.step for rank_batch in found] == [0, 1, 2]
    ids = [[row_id for micro in rank_batch.row_ids for row_id in micro] for rank_batch in found]
    assert ids == [[row["row_id"].hex() for row in rows[i : i + ROWS]] for i in range(0, len(rows), ROWS)]
    totals = {"rows": ROWS, "pairs": ROWS, "completions": 2 * ROWS, "tokens": 9}
    assert all(rank_batch.totals == totals for rank_batch in found)
    for batch in (batch for rank_batch in found for batch in rank_batch.micro_batches):
        assert batch.columns["ref_logps"].tolist() == [-1.0, -2.0] * batch.num_rows
    assert [(rank_batch.epoch, rank_batch.num_tokens) for rank_batch in found] == [(1 / 3, 30), (2 / 3, 60), (1.0, 90)]
    assert delivered([], first=STEPS) == [], "nothing is left to do"


@pytest.mark.parametrize("kept", [0, ROWS, 2 * ROWS])
def test_a_feed_that_ends_early_is_an_error_that_names_the_step(kept: int) -> None:
    with pytest.raises(RuntimeError, match=rf"ended before step {kept // ROWS + 1} of {STEPS}"):
        delivered(planned()[:kept])


@pytest.mark.parametrize("lost", range(STEPS * ROWS))
def test_a_row_that_does_not_come_is_missed(lost: int) -> None:
    rows = planned()
    del rows[lost]
    with pytest.raises(RuntimeError, match=f"step {lost // ROWS + 1}: 3 rows came to this rank, and 4 were planned"):
        delivered(rows)


def test_a_step_out_of_turn_is_an_error() -> None:
    rows = planned()
    with pytest.raises(RuntimeError, match="delivered step 2 where step 1 was due"):
        delivered(rows[ROWS:])


def test_tokens_that_are_not_those_of_the_plan_are_an_error() -> None:
    rows = planned()
    chosen, rejected = rows[5]["completions"]
    rows[5]["completions"] = [[*chosen, 1], rejected]
    with pytest.raises(RuntimeError, match=f"step 2: .* came where row {rows[5]['row_id'].hex()} was planned"):
        delivered(rows)
