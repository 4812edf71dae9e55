"""Laws of what the bestofn stage says: its table, its file, its place in the report, and what its section refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raydpo.config.schema import Decoding, RunFile
from raydpo.errors import UserError
from raydpo.evaluate.records import Records
from raydpo.report.best_of_n import (
    VERSION,
    BestOfNRecord,
    best_of_n_table,
    draws_from_the_same,
    optimum_in_words,
    read_best_of_n,
    tabulate,
    write_best_of_n,
)
from raydpo.report.page import write_report
from tests.unit.test_report import evaluation, make_output

pytestmark = pytest.mark.unit

# What an evaluation of tests.evaluations.origin() would have been asked.
MADE_FROM = {
    "weights": "r",
    "contents": "p",
    "decoding": Decoding().named(),
    "rewards": {"length": "s"},
    "record_version": VERSION,
}


def record(samples: int = 64, **made_from: Any) -> BestOfNRecord:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(32, samples))
    rewards = {"length": true, "noisy": true + rng.normal(size=true.shape), "<b>none</b>": np.zeros_like(true)}
    prompts = [str(i // 2) for i in range(32)]  # each prompt twice
    return tabulate(
        rewards,
        prompts,
        true_reward="length",
        selecting=list(rewards),
        ns=[16, 4],
        made_from=MADE_FROM | made_from,
    )


def test_rows_stand_by_reward_and_rising_n_under_their_bound() -> None:
    found = record()
    assert [(row.selected_by, row.n) for row in found.selections[:4]] == [
        ("length", 4),
        ("length", 16),
        ("noisy", 4),
        ("noisy", 16),
    ]
    for row in found.selections:
        assert row.kl.mean <= row.kl_shown_at_most + 1e-12 <= row.kl_bound
        assert row.kl.groups == row.reward.groups == 16


def test_a_better_reward_selects_better_and_one_that_says_nothing_stays_at_the_reference() -> None:
    by_name = {(row.selected_by, row.n): row for row in record().selections}
    assert by_name["length", 16].reward.mean > by_name["noisy", 16].reward.mean > by_name["noisy", 4].reward.mean
    nothing = by_name["<b>none</b>", 16]
    assert nothing.reward.mean == pytest.approx(record().reference.mean)
    assert nothing.kl.mean == pytest.approx(0)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = record()
    write_best_of_n(found, tmp_path / "x.json")
    assert read_best_of_n(tmp_path / "x.json") == found
    assert read_best_of_n(tmp_path / "none.json") is None


def test_a_record_of_another_version_does_not_count_and_another_file_is_named(tmp_path: Path) -> None:
    write_best_of_n(replace(record(), made_from={"record_version": 0}), tmp_path / "old.json")
    assert read_best_of_n(tmp_path / "old.json") is None
    (tmp_path / "other.json").write_text('{"made_from": {"record_version": 1}}')
    with pytest.raises(UserError, match=r"other.json is not what bestofn writes"):
        read_best_of_n(tmp_path / "other.json")


def test_the_table_says_where_the_optimum_ends_or_that_it_does_not_show() -> None:
    assert re.search(r"^length +16 +1\.835 +1\.8\d\d \[", best_of_n_table(record()), re.MULTILINE)
    assert "to a KL of" in optimum_in_words(record())
    assert "does not show" in optimum_in_words(replace(record(), optimum=[]))


def test_the_report_shows_it_with_hostile_names_escaped(tmp_path: Path) -> None:
    output = make_output(tmp_path)
    records = Records([evaluation(0), evaluation(50)], {})
    assert "Best-of-N" not in write_report(output, records).read_text(encoding="utf-8")
    write_best_of_n(record(), output / "best_of_n.json")
    html = write_report(output, records).read_text(encoding="utf-8")
    assert "<h2>Best-of-N</h2>" in html
    assert "<b>none" not in html
    assert (output / "figures" / "best_of_n.png").exists()


@pytest.mark.parametrize(
    "other", [{"weights": "x"}, {"contents": "x"}, {"decoding": {"temperature": 0.5}}, {"rewards": {"length": "x"}}]
)
def test_policies_stand_beside_it_only_where_the_same_was_asked_of_them(other: dict[str, Any]) -> None:
    assert draws_from_the_same(record(), evaluation(50))
    assert not draws_from_the_same(record(**other), evaluation(50))


def run_file(section: dict[str, Any], **evaluate: Any) -> RunFile:
    tree = {
        "name": "x",
        "output_dir": "/o",
        "model": {"path": "/m", "dtype": "float32"},
        "data": {"train": ["/pairs.jsonl"]},
        "evaluate": {"prompts": ["/prompts.jsonl"], **evaluate},
        "best_of_n": section,
    }
    return RunFile.model_validate(tree)


def test_the_largest_n_says_how_many_samples_are_drawn() -> None:
    asked = run_file({"n": [4, 32]}).best_of_n
    assert asked
    assert asked.samples_per_prompt == 32


@pytest.mark.parametrize(
    ("section", "evaluate", "says"),
    [
        ({"n": [4, 64], "samples": 63}, {}, r"best_of_n.samples=63 hold no best of 64"),
        ({"n": [129]}, {}, r"less than or equal to 128"),
        ({"n": []}, {}, r"at least 1 item"),
        ({}, {"decoding": {"temperature": 0}}, r"temperature=0 gives best_of_n the same completion again and again"),
    ],
)
def test_what_cannot_be_had_is_refused_where_the_run_file_is_read(
    section: dict[str, Any], evaluate: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        run_file(section, **evaluate)


def test_without_an_evaluate_section_there_is_no_true_reward() -> None:
    tree = run_file({}).model_dump()
    del tree["evaluate"]
    with pytest.raises(ValidationError, match="best_of_n needs an evaluate section"):
        RunFile.model_validate(tree)
