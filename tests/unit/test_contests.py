"""Laws of contests: a sample stands against another completion of its own prompt, or against none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.schema import Decoding
from raydpo.data.answers import LabelledPair, read_answers, read_labels
from raydpo.errors import UserError
from raydpo.evaluate.contests import against_answers, against_samples
from raydpo.evaluate.records import Evaluation, summarise
from tests.evaluations import origin, rated

pytestmark = pytest.mark.unit


def evaluation(step: int, completions: dict[str, str] | list[tuple[str, str]], **parts: Any) -> Evaluation:
    pairs = completions.items() if isinstance(completions, dict) else completions
    samples = [rated(prompt, text, 0.0, 0.0, 1, "stop") for prompt, text in pairs]
    return summarise(step, "m", samples, made_from=origin(**parts), seconds={})


def texts(entries: Any) -> list[list[tuple[str, str, str]]]:
    return [[(each.prompt, each.sample, each.other) for each in entry.texts] for entry in entries]


def test_samples_meet_those_of_the_same_prompt_whatever_their_place() -> None:
    before = evaluation(0, {"p": "p0", "q": "q0", "r": "r0"})
    after = evaluation(5, {"r": "r5", "p": "p5", "new": "n5"})
    [entry] = against_samples([after], [before], "reference", None)
    assert texts([entry]) == [[("r", "r5", "r0"), ("p", "p5", "p0")]]
    assert (entry.subject.step, entry.subject.against) == (5, "reference")


def test_a_prompt_that_comes_twice_meets_its_namesakes_in_their_order() -> None:
    before = evaluation(0, [("p", "one"), ("q", "two"), ("p", "three")])
    after = evaluation(5, [("p", "a"), ("p", "b"), ("q", "c")])
    assert texts(against_samples([after], [before], "reference", None)) == [
        [("p", "a", "one"), ("p", "b", "three"), ("q", "c", "two")]
    ]


def test_samples_of_another_temperature_are_not_met() -> None:
    before = evaluation(0, {"p": "p0", "q": "q0"}, decoding=Decoding(temperature=0.5))
    after = evaluation(5, {"p": "p5", "q": "q5"})
    assert against_samples([after], [before], "reference", None) == []


def test_samples_of_another_set_of_prompts_are_not_met() -> None:
    before = replace(evaluation(0, {"p": "p0", "q": "q0"}), prompt_set="news")
    after = evaluation(5, {"p": "p5", "q": "q5"})
    assert against_samples([after], [before], "reference", None) == []
    [entry] = against_samples([replace(after, prompt_set="news")], [before], "reference", None)
    assert entry.subject.prompt_set == "news"


def test_less_than_two_prompts_are_refused_and_a_limit_takes_the_first() -> None:
    before = evaluation(0, {"p": "p0", "q": "q0", "r": "r0"})
    after = evaluation(5, {"p": "p5", "q": "q5", "r": "r5"})
    assert len(texts(against_samples([after], [before], "reference", 2))[0]) == 2
    with pytest.raises(UserError, match="1 prompts that step 5 and reference share give no interval"):
        against_samples([after], [before], "reference", 1)


def test_answers_stand_against_the_samples_in_order(tmp_path: Path) -> None:
    after = evaluation(5, {"p": "p5", "q": "q5"})
    assert texts(against_answers([after], {"": ["one", "two"]}, None)) == [[("p", "p5", "one"), ("q", "q5", "two")]]
    with pytest.raises(UserError, match="evaluated on 2 prompts and there are 1 answers"):
        against_answers([after], {"": ["one"]}, None)


def rows(path: Path, *lines: dict[str, Any]) -> list[str]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(path)]


def test_answers_are_text_or_the_last_message(tmp_path: Path) -> None:
    chat = [{"role": "assistant", "content": "Hello."}]
    file = rows(
        tmp_path / "a.jsonl",
        {"prompt": "p", "chosen": " one", "rejected": "no"},
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": chat},
        {"prompt": "r", "chosen": "three"},
    )
    assert read_answers(file, "prompt", "chosen", limit=2) == [" one", "Hello."]
    with pytest.raises(UserError, match=r"a\.jsonl row 1 has no column 'summary'"):
        read_answers(file, "prompt", "summary", limit=2)
    ids = rows(tmp_path / "b.jsonl", {"prompt": "p", "chosen_ids": [1, 2], "chosen": "x", "completion_ids": [3]})
    with pytest.raises(UserError, match="token ids, which are no text to compare"):
        read_answers(ids, "prompt", "chosen", limit=None)


def test_labels_are_read_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    row = {"prompt": "p", "first": "a", "second": "b", "label": "second", "annotator": "x"}
    assert read_labels(rows(tmp_path / "a.jsonl", row)) == [LabelledPair("p", "a", "b", "second")]
    with pytest.raises(UserError, match=r"b\.jsonl row 2, column 'label', is 'B'; write one of first, second, tie"):
        read_labels(rows(tmp_path / "b.jsonl", row, row | {"label": "B"}))
    with pytest.raises(UserError, match=r"c\.jsonl row 1, column 'second', is None; give text"):
        read_labels(rows(tmp_path / "c.jsonl", {"prompt": "p", "first": "a", "label": "tie"}))
