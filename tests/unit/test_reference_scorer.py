"""A scorer and its store, without a pool: every completion is scored once, beside whatever it is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.config.schema import RunFile
from raydpo.reference.dataset import Dataset, open_dataset
from raydpo.reference.store import Store
from raydpo.runtime.pools.scorer import ReferenceScorer
from raydpo.stages.values import RunValues
from tests.prepared import PAIRS, prepare, prepared_run
from tests.stores import files_of

pytestmark = pytest.mark.unit

# Prompt 0 has three completions in three pairs, as a ranked list gives them; the last one is on another prompt.
BETTER = PAIRS[0] | {"rejected": " is better"}
WORSE = PAIRS[0] | {"chosen": " is better"}
SHARED = [PAIRS[0], BETTER, WORSE, PAIRS[1]]


@pytest.fixture
def run(model: Path, tmp_path: Path) -> RunFile:
    run = prepared_run(model, tmp_path, str(tmp_path / "store"))
    prepare(run, SHARED)
    return run


def scorer_of(run: RunFile) -> tuple[ReferenceScorer, Store]:
    store = RunValues(run).store()
    store.claim()
    scorer = ReferenceScorer(RunValues(run).scoring(), store)
    scorer.load()
    return scorer, store


def rows_of(run: RunFile) -> Dataset:
    return open_dataset(Path(run.output_dir) / "tokens/train")


def score(scorer: ReferenceScorer, dataset: Dataset, completions: np.ndarray) -> np.ndarray:
    """As precompute does it, a token shard at a time."""
    return np.concatenate([np.zeros(0), *(scorer.score([piece]).sums for piece in dataset.where(completions))])


def test_a_completion_that_stands_in_several_rows_and_shards_is_scored_once(run: RunFile) -> None:
    scorer, store = scorer_of(run)
    dataset = rows_of(run)
    missing = np.flatnonzero(store.missing(dataset.completion_ids))
    assert len(missing) == 5
    sums = score(scorer, dataset, missing)
    assert np.array_equal(store.lookup(dataset.completion_ids.take(pa.array(missing))), sums)
    assert not store.missing(dataset.completion_ids).any()
    assert sum(marker.completions for marker in store._directory.markers()) == 5


def test_a_row_of_which_one_completion_is_known_is_scored_for_the_other_with_the_same_value(
    run: RunFile, tmp_path: Path
) -> None:
    scorer, store = scorer_of(run)
    dataset = rows_of(run)
    first, second = np.asarray([0, 7]), np.asarray([1, 3, 6])  # of the rows 0 and 3; of the rows 0, 1 and 3
    for part in (first, second):
        score(scorer, dataset, part)
    assert not store.missing(dataset.completion_ids).any()
    settings = run.reference.model_copy(update={"store": str(tmp_path / "at once")})
    scorer, at_once = scorer_of(run.model_copy(update={"reference": settings}))
    score(scorer, dataset, np.asarray([0, 1, 3, 6, 7]))
    ids = dataset.completion_ids
    np.testing.assert_allclose(store.lookup(ids), at_once.lookup(ids), rtol=2e-6)


@pytest.mark.parametrize("done", [(), (0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_job_that_ends_after_any_units_and_goes_on_leaves_the_files_of_one_that_was_not_disturbed(
    run: RunFile, tmp_path: Path, done: tuple[int, ...]
) -> None:
    """Three token shards that have completions in common; whatever is done counts, and the rest is asked anew."""
    prepare(run, [*SHARED[:3], BETTER, WORSE, PAIRS[1], PAIRS[2], WORSE, PAIRS[3]])
    dataset = rows_of(run)
    files = []
    for name, first in (("undisturbed", ()), ("disturbed", done)):
        settings = run.reference.model_copy(update={"store": str(tmp_path / name)})
        scorer, store = scorer_of(run.model_copy(update={"reference": settings}))
        units = dataset.where(np.flatnonzero(store.missing(dataset.completion_ids)))
        assert len(units) == 3
        for number in first:
            scorer.score([units[number]])
        score(scorer, dataset, np.flatnonzero(store.missing(dataset.completion_ids)))
        files.append(files_of(str(tmp_path / name), store.key))
    assert files[0] == files[1]


def test_a_unit_that_is_in_the_store_is_read_and_not_scored(run: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, _ = scorer_of(run)
    [unit, _] = [[piece] for piece in rows_of(run).where(np.asarray([0, 1, 6]))]
    found = scorer.score(unit)
    monkeypatch.setattr(scorer._model, "score", lambda *_, **__: pytest.fail("scored again"))
    again = scorer.score(unit)
    assert np.array_equal(again.sums, found.sums)
    assert (found.tokens > 0, again.tokens) == (True, 0)


def test_the_index_names_every_completion_of_the_data_set_where_it_lies(run: RunFile) -> None:
    dataset = rows_of(run)
    ids = dataset.completion_ids.to_pylist()
    assert (ids[0], ids[1], ids[3]) == (ids[2], ids[5], ids[4])
    assert dataset.begins.tolist() == [0, 2, 4, 6, 8]
    [(first, of_first), (second, of_second)] = dataset.where(np.asarray([1, 4, 7]))
    assert [Path(path).name for path in (first, second)] == ["part-0.arrow", "part-3.arrow"]
    assert (of_first.tolist(), of_second.tolist()) == ([1, 4], [1])
