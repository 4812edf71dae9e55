"""Laws of completions of other prompts: one in every row, the last, which counts for nothing but KTO's estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.config.schema import RunFile
from raydpo.data.ingest import tokenize_chunk
from raydpo.data.lengths import is_own, length_quantiles, own_completions
from raydpo.data.limits import ModelLimits
from raydpo.data.mismatched import MISMATCHED, with_others
from raydpo.data.pairs import count_pairs
from raydpo.data.reading import Chunk
from raydpo.data.shards import Counts, TokenManifest, to_rows, to_table
from raydpo.data.tokens import TokenRow, TokenSettings, row_id
from raydpo.errors import UserError
from raydpo.stages.values import RunValues
from raydpo.workspace import objective
from raydpo.workspace.provenance import check_prepared, made_from
from tests.helpers import row_tokenizer
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=3)
ROWS = st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=6)


def pair(prompt: list[int], *completions: list[int], **columns: list[Any]) -> TokenRow:
    return TokenRow(row_id(prompt, completions), prompt, completions, columns)


@given(ROWS, st.integers(4, 6))
def test_a_row_gets_the_beginning_of_a_completion_of_another_prompt_behind_its_own(
    rows: list[tuple[list[int], list[int], list[int]]], max_length: int
) -> None:
    made = [pair(*row) for row in rows]
    for row, found in zip(made, with_others(made, max_length), strict=True):
        assert (found.prompt_ids, found.completions[:2]) == (row.prompt_ids, row.completions)
        foreign = [other.completions[0] for other in made if other.prompt_ids != row.prompt_ids]
        assert list(found.columns[MISMATCHED]) == [False, False] + [True] * bool(foreign)
        assert found.row_id == row_id(found.prompt_ids, found.completions)
        for completion in found.completions[2:]:
            assert completion in [whole[: max_length - len(row.prompt_ids)] for whole in foreign]
            assert completion


def test_it_is_the_next_row_of_another_prompt_in_a_circle() -> None:
    rows = [pair([1], [10], label=[True]), pair([1], [11], label=[False]), pair([2], [12], label=[True])]
    first, second, third = with_others(rows, 9)
    assert [row.completions for row in (first, second, third)] == [([10], [12]), ([11], [12]), ([12], [10])]
    assert [row.columns["label"] for row in (first, second, third)] == [[True, False], [False, False], [True, False]]


def test_it_is_no_completion_of_its_row_and_in_none_of_its_pairs() -> None:
    ranked = with_others([pair([1], [3], [4], [5], rank=[0, 1, 1]), pair([2], [6], [7], rank=[0, 1])], 9)
    assert count_pairs(to_table(ranked), "ranked").tolist() == [2, 1]
    assert own_completions(to_table(ranked)).tolist() == [3, 2]
    pairs = to_table(with_others([pair([1], [3], [4, 4]), pair([2], [6], [7, 7])], 9))
    assert count_pairs(pairs, "pair").tolist() == [1, 1]
    assert is_own(pairs).tolist() == [True, True, False] * 2
    lengths = {name: quantiles["max"] for name, quantiles in length_quantiles([pairs], "pair").items()}
    assert lengths == {"prompt": 1, "chosen": 1, "rejected": 2}


@pytest.mark.parametrize("positions", [None, 99])
def test_it_reaches_no_further_than_rows_may(positions: int | None) -> None:
    rows = [{"prompt": [1, 2, 3], "chosen": [4], "rejected": [5]}, {"prompt": [1], "chosen": [4] * 6, "rejected": [5]}]
    limits = [ModelLimits("/m", vocabulary=None, positions=positions)]
    settings = TokenSettings(7, "error", append_eos=False)
    table, _ = tokenize_chunk(Chunk("a", 1, rows), row_tokenizer(), settings, "pair", limits, others=True)
    assert [row.completions[-1] for row in to_rows(table)] == [[4] * 4, [4]]


def test_it_reaches_no_further_than_a_model_can_read() -> None:
    rows = [{"prompt": [1, 2, 3], "chosen": [4], "rejected": [5]}, {"prompt": [1], "chosen": [4] * 6, "rejected": [5]}]
    limits = [ModelLimits("/m", vocabulary=None, positions=7)]
    settings = TokenSettings(100, "error", append_eos=False)
    table, counts = tokenize_chunk(Chunk("a", 1, rows), row_tokenizer(), settings, "pair", limits, others=True)
    assert counts == Counts(rows_read=2, kept=2)
    assert [row.completions[-1] for row in to_rows(table)] == [[4] * 4, [4]]


def test_tokens_without_them_are_refused_by_a_loss_that_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "The film", "chosen": " is good", "rejected": " is bad"}\n')
    run = RunFile.model_validate(
        {
            "name": "a",
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(tmp_path)},
            "data": {"train": [str(tmp_path / "pairs.jsonl")]},
        }
    )
    manifest = RunValues(run).layout.train_tokens / "manifest.json"
    TokenManifest("pair", [], Counts(), made_from=made_from(RunValues(run).token_source("train"))).write(manifest)
    check_prepared(RunValues(run).rows())
    plain = objective.preference_objective(run.train)
    monkeypatch.setattr(objective, "preference_objective", lambda _: replace(plain, needs=plain.needs | {MISMATCHED}))
    with pytest.raises(UserError, match=r"completions of other prompts=False, .* says True; run `raydpo prep"):
        check_prepared(RunValues(run).rows())
