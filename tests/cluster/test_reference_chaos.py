"""A few seeds of benchmarks/chaos_store.py; `python -m benchmarks.chaos_store --seeds 20` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos_store import VICTIMS, run_trials

pytestmark = pytest.mark.cluster


def test_whoever_is_killed_the_store_is_that_of_an_undisturbed_job_and_only_shards_in_flight_are_scored_twice(
    tmp_path: Path,
) -> None:
    trials = list(run_trials(tmp_path, seeds=3))
    assert [trial.victim for trial in trials] == list(VICTIMS[:3])
    assert all(trial.passed for trial in trials), trials
    assert all(trial.lost for trial in trials if trial.victim != "driver"), f"nobody was hit: {trials}"
