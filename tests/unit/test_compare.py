"""Laws of the comparison: what is there is shown, what is missing is named, and only like is paired with like."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.cli import main
from raydpo.config.schema import Decoding
from raydpo.errors import UserError
from raydpo.evaluate.records import Evaluation, summarise, write_evaluation
from raydpo.report.compare_page import comparison_text, write_comparison
from raydpo.report.compared import read_runs
from raydpo.report.comparison import differing_settings, why_unpaired
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script>"


def evaluation(step: int, lift: float = 0.0, count: int = 32, **parts: Any) -> Evaluation:
    samples = [
        rated(f"prompt {i}", f" completion {i}", i / count + lift, float(step > 0), 5 + i % 3, "stop")
        for i in range(count)
    ]
    return summarise(step, "policy", samples, made_from=origin(**parts), seconds={})


def make_run(
    path: Path, *, beta: float = 0.1, rewarded: bool = True, evaluations: list[Evaluation] | None = None
) -> str:
    """A run as its stages leave it."""
    (path / "train").mkdir(parents=True)
    (path / "run.yaml").write_text(f"name: {path.name}\noutput_dir: {path}\ntrain: {{objective: {{beta: {beta}}}}}\n")
    rows: list[dict[str, Any]] = [{"step": step, "loss": 0.7 - 0.01 * step} for step in range(1, 6)]
    if rewarded:
        rows = [row | {"rewards/margins": 0.1, "rewards/accuracies": 0.6} for row in rows]
    (path / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for each in [evaluation(0), evaluation(5)] if evaluations is None else evaluations:
        write_evaluation(each, path / "evaluations")
    return str(path)


def two(tmp_path: Path, after: Evaluation) -> list[str]:
    return [make_run(tmp_path / "a"), make_run(tmp_path / "b", beta=0.5, evaluations=[after])]


def test_only_settings_that_differ_are_listed_and_names_do_not_count(tmp_path: Path) -> None:
    table = differing_settings(read_runs(two(tmp_path, evaluation(5))))
    assert list(map(list, table.rows)) == [["train.objective.beta", "0.1", "0.5"]]


def test_the_paired_difference_is_of_the_same_prompts(tmp_path: Path) -> None:
    text = comparison_text(read_runs(two(tmp_path, evaluation(5, lift=0.25))))
    assert re.search(r"b +reward +\+0\.250 \[\+0\.250, \+0\.250\] +not 0", text)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"prompts": "q"}, "other prompts"),
        ({"decoding": Decoding(temperature=0.5)}, "other decoding"),
        ({"seed": 1}, "other seed"),
        ({"scorer": "vader"}, "other scorer"),
    ],
)
def test_what_was_made_otherwise_is_not_paired_and_it_is_said(parts: dict[str, Any], why: str) -> None:
    assert why_unpaired(evaluation(5), evaluation(5), "reward") == ""
    assert why_unpaired(evaluation(5), evaluation(5, **parts), "reward") == why


def test_another_reward_leaves_lengths_comparable_and_another_reference_rewards() -> None:
    assert why_unpaired(evaluation(5), evaluation(5, scorer="vader"), "length") == ""
    assert why_unpaired(evaluation(5), evaluation(5, reference="s"), "reward") == ""
    assert why_unpaired(evaluation(5), evaluation(5, reference="s"), "kl") == "other reference"


def test_fewer_prompts_under_the_same_digest_are_not_paired() -> None:
    assert why_unpaired(evaluation(5), evaluation(5, count=31), "reward") == "other prompts"


def test_the_best_evaluation_is_shown_where_it_is_not_the_last(tmp_path: Path) -> None:
    better = [evaluation(3, lift=0.5), evaluation(5)]
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", evaluations=better)])
    assert "with the highest reward" in comparison_text(runs)


def test_other_prompts_and_temperatures_have_tables_of_their_own(tmp_path: Path) -> None:
    places = two(tmp_path, evaluation(5))
    cool = {"decoding": Decoding(temperature=0.5)}
    for name, lift in (("a", 0.0), ("b", 0.25)):
        write_evaluation(evaluation(5, lift=lift, **cool), tmp_path / name / "evaluations" / "@0.5")
        news = replace(evaluation(5, prompts=name), prompt_set="news")
        write_evaluation(news, tmp_path / name / "evaluations" / "news@1.0")
    text = comparison_text(read_runs(places))
    assert "Last evaluations, own prompts at temperature 0.5" in text
    assert "Last evaluations, news prompts at temperature 1" in text
    assert re.search(r"b +reward +\+0\.250 \[\+0\.250, \+0\.250\] +not 0", text)


def test_a_run_without_rewards_or_evaluations_is_compared_all_the_same(tmp_path: Path) -> None:
    places = [make_run(tmp_path / "a"), make_run(tmp_path / "b", rewarded=False, evaluations=[])]
    runs = read_runs(places)
    assert "b has no such evaluation" in comparison_text(runs)
    write_comparison(runs, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 3
    assert "holds no evaluation" in html


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("train/metrics.jsonl", '{"step": 1, "loss": 0.7}\n{"st\n', "line 2 is no step"),
        ("train/metrics.jsonl", "", "is empty"),
        ("train/identity.json", "{", "is not JSON"),
        ("run.yaml", "[1", "cannot be read"),
        ("evaluations/step-000005.json", "{}", "is not an evaluation"),
        ("judgements/judgements.json", "[]", "holds no judgements"),
    ],
)
def test_a_damaged_file_is_named_and_hides_no_other_run(tmp_path: Path, file: str, content: str, named: str) -> None:
    places = two(tmp_path, evaluation(5))
    path = tmp_path / "b" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    runs = read_runs(places)
    [problem] = runs[1].problems
    assert file in problem
    assert named in problem
    assert not runs[0].problems
    assert problem in comparison_text(runs)


def test_a_line_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    places = two(tmp_path, evaluation(5))
    with (tmp_path / "b" / "train" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')
    run = read_runs(places)[1]
    assert run.problems == []
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5]


def test_runs_of_one_name_go_by_their_directories(tmp_path: Path) -> None:
    places = [make_run(tmp_path / "x" / "a"), make_run(tmp_path / "y" / "a")]
    assert [run.name for run in read_runs(places)] == places


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(["a"], "at least two"), (["a", "a"], "named twice"), (["a", "absent"], "absent does not exist")],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, names: list[str], complaint: str) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(UserError, match=complaint):
        read_runs([str(tmp_path / name) for name in names])


def test_sampled_text_is_shown_as_text(tmp_path: Path) -> None:
    after = evaluation(5)
    hostile = replace(after, samples=[replace(after.samples[0], completion=HOSTILE), *after.samples[1:]])
    write_comparison(read_runs(two(tmp_path, hostile)), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    sources = re.findall(r"(?:src|href)\s*=\s*\"([^\"]+)", html)
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_command_takes_directories_and_run_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = two(tmp_path, evaluation(5))
    run_file = tmp_path / "b.yaml"
    run_file.write_text(f"name: b\noutput_dir: {places[1]}\nmodel: {{path: m}}\ndata: {{train: [pairs.jsonl]}}\n")
    page = tmp_path / "page.html"
    assert main(["compare", places[0], str(run_file), "--page", str(page)]) == 0
    assert "train.objective.beta" in capsys.readouterr().out
    assert page.exists()
    assert main(["compare", places[0]]) == 2


def test_a_comparison_loads_neither_torch_nor_ray() -> None:
    script = "import sys, raydpo.report.compare_page, raydpo.report.compared; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(answer.stdout.split()) & {"torch", "ray", "transformers", "vllm"}
