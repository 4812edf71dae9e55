"""Laws of the samples table: what was drawn is found by what was asked, whole, and is never drawn again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydpo.config.schema import Decoding, Sampler
from raydpo.data.prompts import Prompt
from raydpo.errors import UserError
from raydpo.rollout.engine import Completion
from raydpo.rollout.samples import Request, SampleTable
from raydpo.runtime.pools.sampled import sampled
from raydpo.runtime.pools.sampling import PROMPTS_PER_CALL, Drawing, Samplers

pytestmark = pytest.mark.unit

DRAWN_BY = {"weights": "abc", "decoding": Decoding().named(), "dtype": "float32"}
REQUEST = Request(((1, 2), (3,)), 2, 7)
ANSWERS = [
    [Completion([4, 5], " é", "stop", (-0.1, -0.25)), Completion([6], "", "length")],
    [Completion([7], "b", "stop", (-1.0,)), Completion([8, 9], "c\n", "stop")],
]

completions = st.builds(
    Completion,
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.sampled_from(["stop", "length"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(answers=st.lists(st.lists(completions, min_size=3, max_size=3), min_size=1, max_size=4))
def test_what_was_drawn_is_read_as_it_was(answers: list[list[Completion]], tmp_path: Path) -> None:
    table = SampleTable(tmp_path, DRAWN_BY)
    request = Request(tuple((i,) for i in range(len(answers))), 3, 0)
    table.write(request, answers)
    assert table.read(request) == answers


def test_log_probs_come_back_to_the_last_bit_and_only_where_they_were_asked_for(tmp_path: Path) -> None:
    table = SampleTable(tmp_path, DRAWN_BY)
    table.write(REQUEST, ANSWERS)
    assert SampleTable(tmp_path, DRAWN_BY).read(REQUEST) == ANSWERS


@pytest.mark.parametrize("other", [{"prompts": ((1, 2), (4,))}, {"n": 3}, {"seed": 8}])
def test_another_request_is_not_answered(other: dict[str, Any], tmp_path: Path) -> None:
    table = SampleTable(tmp_path, DRAWN_BY)
    table.write(REQUEST, ANSWERS)
    assert table.has(REQUEST)
    assert not table.has(replace(REQUEST, **other))


@pytest.mark.parametrize("other", [{"weights": "abd"}, {"decoding": Decoding(top_k=5).named()}, {"dtype": "bfloat16"}])
def test_what_something_else_drew_is_not_found(other: dict[str, Any], tmp_path: Path) -> None:
    SampleTable(tmp_path, DRAWN_BY).write(REQUEST, ANSWERS)
    assert not SampleTable(tmp_path, DRAWN_BY | other).has(REQUEST)


def test_a_file_says_of_each_completion_where_it_comes_from(tmp_path: Path) -> None:
    SampleTable(tmp_path, DRAWN_BY).write(REQUEST, ANSWERS)
    [path] = tmp_path.rglob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    assert [row["seed"] for row in rows] == [7, 8, 9, 10]
    assert [row["prompt_ids"] for row in rows] == [[1, 2], [1, 2], [3], [3]]
    assert {row["weights"] for row in rows} == {"abc"}
    assert {row["decoding"] for row in rows} == {'{"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}'}


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file_is_named(size: int, tmp_path: Path) -> None:
    table = SampleTable(tmp_path, DRAWN_BY)
    table.write(REQUEST, ANSWERS)
    [path] = tmp_path.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        table.read(REQUEST)


def test_top_k_is_in_the_name_of_samples_only_where_it_is_set() -> None:
    assert "top_k" not in Decoding().named()
    assert Decoding(top_k=3).named() == Decoding().named() | {"top_k": 3}


class Counting(Samplers):
    """Samplers that answer a call with its own seed, the last of the calls first, and remember what they were asked."""

    def __init__(self, dies_after: int | None = None) -> None:
        super().__init__([], Sampler())
        self.asked: list[int] = []
        self._dies_after = dies_after

    def draw(self, drawing: Drawing, calls: Iterable[int]) -> Iterator[tuple[int, list[list[Completion]]]]:
        for done, call in enumerate(reversed(list(calls))):
            if done == self._dies_after:
                raise KeyboardInterrupt
            self.asked.append(call)
            request = drawing.request(call)
            yield (
                call,
                [
                    [Completion([request.seed + i * request.n + j], "", "stop", (-1.0,)) for j in range(request.n)]
                    for i in range(len(request.prompts))
                ],
            )


def drawing(prompts: int, n: int = 2) -> Drawing:
    return Drawing("/m", [Prompt(str(i), [i], f"row {i}") for i in range(prompts)], Decoding(), n, seed=5)


def all_of(engines: Samplers, asked: Drawing, table: SampleTable) -> list[int]:
    calls = sampled(engines, asked, table, lambda prompts, drawn: None)
    return [completion.ids[0] for call in calls for answers in call for completion in answers]


def test_a_drawing_has_one_seed_after_the_other_whatever_order_its_calls_come_in(tmp_path: Path) -> None:
    asked = drawing(2 * PROMPTS_PER_CALL + 3)
    seeds = all_of(Counting(), asked, SampleTable(tmp_path, DRAWN_BY))
    assert seeds == list(range(5, 5 + 2 * len(asked.prompts)))


def test_what_a_killed_driver_had_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    asked = drawing(3 * PROMPTS_PER_CALL)
    table = SampleTable(tmp_path, DRAWN_BY)
    with pytest.raises(KeyboardInterrupt):
        all_of(Counting(dies_after=2), asked, table)
    rest = Counting()
    seeds = all_of(rest, asked, table)
    assert rest.asked == [0]
    assert seeds == all_of(Counting(), asked, SampleTable(tmp_path / "other", DRAWN_BY))


def test_more_prompts_draw_only_those_of_the_calls_that_are_new(tmp_path: Path) -> None:
    table = SampleTable(tmp_path, DRAWN_BY)
    few = all_of(Counting(), drawing(PROMPTS_PER_CALL), table)
    engines = Counting()
    many = all_of(engines, drawing(2 * PROMPTS_PER_CALL), table)
    assert engines.asked == [1]
    assert many[: len(few)] == few


def test_completions_that_are_not_confirmed_are_not_kept(tmp_path: Path) -> None:
    def refuse(prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> None:
        assert len(prompts) == len(drawn) == 3
        raise UserError("other weights")

    with pytest.raises(UserError, match="other weights"):
        list(sampled(Counting(), drawing(3), SampleTable(tmp_path, DRAWN_BY), refuse))
    assert not list(tmp_path.rglob("*"))


def test_what_was_confirmed_when_it_was_drawn_is_not_confirmed_again(tmp_path: Path) -> None:
    table = SampleTable(tmp_path, DRAWN_BY)
    asked: list[int] = []
    for _ in range(2):
        list(sampled(Counting(), drawing(3), table, lambda prompts, drawn: asked.append(len(drawn))))
    assert asked == [3]
