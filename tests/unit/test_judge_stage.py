"""The judge stage on an endpoint of our own making: whole runs of it, those that fail and those that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.cli import main
from raydpo.evaluate.judgements import read_judgements
from tests.endpoint import QUESTION, endpoint
from tests.evaluations import evaluate_in_words

pytestmark = pytest.mark.unit

N = 12
Judge = Callable[..., tuple[int, dict[str, Any], str, str]]


def prefers_longer(prompt: str, first: str, second: str) -> str:
    return f"It says more.\nChoice: {'A' if len(first) > len(second) else 'B'}"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def evaluated(run_file: Path) -> Path:
    """A run whose reference and whose steps 2 and 4 were evaluated; step by step its samples are longer."""
    directory = run_file.parent
    prompts = [{"prompt": f"film {i}", "chosen": " is good, and long as well, longer than most"} for i in range(N)]
    write_lines(directory / "prompts.jsonl", prompts)
    (directory / "question.txt").write_text(QUESTION)
    with run_file.open("a") as file:
        file.write(
            f"evaluate: {{prompts: [{directory}/prompts.jsonl], scorer: length}}\n"
            f"judge:\n  judges:\n    mine: {{model: planted, question: {directory}/question.txt, retries: 0}}\n"
        )
    evaluate_in_words(run_file, [row["prompt"] for row in prompts], [0, 2, 4])
    return run_file


@pytest.fixture
def judge(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Runs the stage; gives the exit code, the status line, and what it printed before that and on stderr."""

    def run(*overrides: str) -> tuple[int, dict[str, Any], str, str]:
        code = main(["judge", str(evaluated), *overrides])
        captured = capsys.readouterr()
        *printed, status = captured.out.splitlines()
        return code, json.loads(status), "\n".join(printed), captured.err

    return run


def test_every_step_is_compared_with_the_reference_and_a_second_run_asks_nothing(judge: Judge, evaluated: Path) -> None:
    with endpoint(prefers_longer) as asked:
        where = f"judge.judges.mine.base_url={asked.base_url}"
        code, status, printed, _ = judge(where)
        assert code == 0
        assert len(asked.messages) == 2 * 2 * N
        found = status["result"]["mine"]
        assert (found["step"], found["against"], found["win_rate"][0], found["requests"]) == (4, "reference", 1.0, 48)
        assert "Win rate against reference" in printed
        path = evaluated.parent / "out" / "judgements" / "judgements.json"
        first = path.read_bytes()
        assert judge(where)[0] == 0
        assert len(asked.messages) == 2 * 2 * N
    assert path.read_bytes() == first
    assert [contest.subject.step for contest in read_judgements(path).contests] == [2, 4]


def test_the_preferred_answer_is_a_rival_of_the_reference_too(judge: Judge) -> None:
    with endpoint(prefers_longer) as asked:
        where = f"judge.judges.mine.base_url={asked.base_url}"
        code, status, printed, _ = judge(where, "judge.against=chosen")
    assert code == 0
    assert status["result"]["mine"]["win_rate"][0] == 0.0
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("mine")][:3] == ["0", "2", "4"]


def test_another_run_is_a_rival_with_its_last_step(judge: Judge, evaluated: Path) -> None:
    other = evaluated.parent / "out"  # a run against itself: its last step ties with itself
    with endpoint(prefers_longer) as asked:
        where = f"judge.judges.mine.base_url={asked.base_url}"
        code, status, _, _ = judge(where, f"judge.against={other}", "judge.steps=last")
        assert asked.messages == []
    assert code == 0
    assert (status["result"]["mine"]["against"], status["result"]["mine"]["win_rate"][0]) == (f"{other} step 4", 0.5)


def test_other_prompts_and_temperatures_are_judged_where_the_section_names_them(judge: Judge, evaluated: Path) -> None:
    news = evaluated.parent / "news.jsonl"
    write_lines(news, [{"text": f"film {i}", "chosen": " is brief"} for i in range(N)])
    sampled = [f"evaluate.sets={{news: {{prompts: [{news}], column: text}}}}", "evaluate.temperatures=[0.25, 0.5]"]
    evaluate_in_words(evaluated, [f"film {i}" for i in range(N)], [0, 2, 4], sampled)
    with endpoint(prefers_longer) as asked:
        sampled.append(f"judge.judges.mine.base_url={asked.base_url}")
        chosen = ["judge.against=chosen", "judge.steps=last"]
        code, status, printed, _ = judge(*sampled, *chosen, "judge.sets=[news]", "judge.temperatures=[0.25]")
        own = judge(*sampled, *chosen)[1]["result"]["mine"]
    assert code == 0
    found = status["result"]["mine"]
    assert (found["step"], found["win_rate"][0]) == (4, 0.0), "the own prompts have longer answers"
    rates = {place: rate[0] for place, rate in found["elsewhere"].items()}
    assert rates == {"@0.25": 0.0, "news@1.0": 1.0, "news@0.25": 1.0}
    assert "temperature" in printed
    assert "elsewhere" not in own


def test_judges_are_compared_with_each_other_and_with_people(judge: Judge, evaluated: Path) -> None:
    labels = evaluated.parent / "labels.jsonl"
    row = {"prompt": "film", "first": "long and good", "second": "brief"}
    write_lines(
        labels,
        [row | {"prompt": f"film {i}", "label": "first" if i < 6 else "second"} for i in range(8)]
        + [row | {"prompt": "film 0", "label": "second"}],
    )
    with endpoint(prefers_longer) as asked:
        settings = f"{{model: planted, base_url: '{asked.base_url}', question: {evaluated.parent}/question.txt}}"
        code, _, printed, _ = judge(f"judge.judges={{a: {settings}, b: {settings}}}", f"judge.labels=[{labels}]")
    assert code == 0
    found = {
        (each.a, each.b): each.found
        for each in read_judgements(evaluated.parent / "out/judgements/judgements.json").agreements
    }
    assert found.keys() == {("a", "b"), ("a", "labels"), ("b", "labels"), ("labels", "labels")}
    with_people = found["a", "labels"].share
    among_people = found["labels", "labels"].share
    assert with_people and with_people.mean == pytest.approx(6 / 9)
    assert among_people and (among_people.mean, among_people.n) == (0.0, 1)
    assert "Agreement" in printed


def test_a_rejected_key_is_one_message_at_once(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-wrong")
    with endpoint(lambda *texts: 401) as asked:
        where = f"judge.judges.mine.base_url={asked.base_url}"
        code, status, _, err = judge(where, "judge.judges.mine.api_key_env=MY_KEY")
        assert len(asked.messages) <= 8
    assert code == 2
    assert "rejects the key in MY_KEY (401" in status["error"]
    assert "sk-wrong" not in err + json.dumps(status)
    assert err.count("rejects the key") == 1


def test_a_spent_budget_ends_cleanly_and_the_next_run_goes_on(judge: Judge) -> None:
    with endpoint(prefers_longer) as asked:
        where = f"judge.judges.mine.base_url={asked.base_url}"
        code, status, _, err = judge(where, "judge.judges.mine.budget.requests=20")
        assert code == 0
        assert len(asked.messages) == 20
        assert status["result"]["mine"]["lacking"] == 24 - 10
        assert "no room for another request after 20 requests" in err
        _, status, _, _ = judge(where)
        assert len(asked.messages) == 48
    assert status["result"]["mine"]["lacking"] == 0


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["judge.judges.mine.question=summery"], "'summery' is none of summary, concise_summary, dialogue"),
        (["judge.judges.mine.api_key_env=NOT_SET_ANYWHERE"], "the environment has no NOT_SET_ANYWHERE"),
        (["judge.against=/nowhere"], "/nowhere has no evaluations"),
        (["judge.against=chosen", "judge.column=summary"], "has no column 'summary'"),
        (["judge.labels=[/nowhere.jsonl]"], "/nowhere.jsonl matches no file"),
        (["judge.judges={x: {reward: vadr}}"], "did you mean 'vader'"),
        (["judge.judges={x: {}}"], "one of reward, model and serve; this one has none"),
        (["judge.judges={x: {reward: length, model: m}}"], "this one has reward, model"),
        (["judge.judges={x: {model: m, budget: {cost: 1.0}}}"], "budget.cost needs prices.input and prices.output"),
        (["judge.limit=1"], "1 prompts that step 2 and reference share give no interval"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, overrides: list[str], complaint: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    with endpoint(prefers_longer) as asked:
        code, status, _, _ = judge(f"judge.judges.mine.base_url={asked.base_url}", *overrides)
        assert asked.messages == []
    assert code == 2
    assert complaint in status["error"]


def test_a_key_in_the_place_of_its_name_is_not_shown(judge: Judge) -> None:
    code, status, _, err = judge("judge.judges.mine.api_key_env=sk-abcDEF")
    assert code == 2
    assert "judge.judges.mine.api_key_env" in status["error"]
    assert "sk-abcDEF" not in err + json.dumps(status)


def test_a_run_without_evaluations_has_nothing_to_judge(judge: Judge, evaluated: Path) -> None:
    for path in (evaluated.parent / "out" / "evaluations").glob("step-00000[24].json"):
        path.unlink()
    code, status, _, _ = judge("judge.judges.mine.base_url=http://127.0.0.1:9/v1")
    assert code == 2
    assert "run `raydpo evaluate` first" in status["error"]
