"""The paper's experiments as their tiny recipes say them, on smaller inputs; every verdict of the judge is checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from raydpo.evaluate.judgements import read_judgements
from raydpo.evaluate.records import folders_of, read_records
from tests.cluster.processes import CHECKOUT, raydpo
from tests.cluster.runfiles import REWARD, count_e, write_jsonl

pytestmark = pytest.mark.cluster

RECIPES = CHECKOUT / "jobs" / "recipes"
N = 12
WHERE = {
    "summarisation": {("", temperature) for temperature in (0.0, 0.25, 0.5, 0.75, 1.0)},
    "dialogue": {("", temperature) for temperature in (0.7, 1.0)},
    "out_of_distribution": {(prompts, temperature) for prompts in ("", "news") for temperature in (0.25, 1.0)},
}


@pytest.mark.parametrize("name", WHERE)
def test_an_experiment_counts_who_is_better_wherever_its_recipe_looks(name: str, inputs: Path, tmp_path: Path) -> None:
    answers = {f"{kind} {i}": f" tree number {i}" for kind in ("film", "paper") for i in range(N)}
    for kind in ("film", "paper"):
        asked = [f"{kind} {i}" for i in range(N)]
        write_jsonl(tmp_path / f"{kind}.jsonl", [{"prompt": p, "reference": answers[p]} for p in asked])
    raydpo("run", RECIPES / f"{name}_tiny.yaml", *in_small(name, inputs, tmp_path)).succeeded()

    evaluations = tmp_path / "out" / "evaluations"
    everywhere = [read_records(folder, lambda step: {}).valid for folder in folders_of(evaluations)]
    found = {(e.step, e.prompt_set, e.made_from.decoding.temperature): e for e in chain(*everywhere)}
    assert {(prompt_set, temperature) for _, prompt_set, temperature in found} == WHERE[name]
    contests = read_judgements(tmp_path / "out" / "judgements" / "judgements.json").contests
    by_subject = {(c.subject.step, c.subject.prompt_set, c.subject.temperature): c.found for c in contests}
    assert by_subject.keys() == found.keys()
    for subject, evaluation in found.items():
        assert {"rouge_1", "exact_match"} <= evaluation.measures.keys()
        verdicts = Counter(verdict(sample.completion, answers[sample.prompt]) for sample in evaluation.samples)
        counted = by_subject[subject]
        assert (counted.wins, counted.ties, counted.losses) == (verdicts["win"], verdicts["tie"], verdicts["loss"])
        assert sum(verdicts.values()) == N


def verdict(sample: str, other: str) -> str:
    [own], [others] = count_e([""], [sample]), count_e([""], [other])
    return "tie" if own == others else "win" if own > others else "loss"


def in_small(name: str, inputs: Path, directory: Path) -> Iterator[str]:
    """Overrides that leave a recipe its shape and give it tiny inputs and few steps."""
    changes = {
        "output_dir": directory / "out",
        "model.path": inputs / "model",
        "data.max_length": 96,
        "sft.train": [inputs / "sft.jsonl"],
        "sft.max_steps": 2,
        "sample.prompts": [inputs / "prompts.jsonl"],
        "sample.limit": 24,
        "sample.decoding.max_tokens": 8,
        "sample.reward": REWARD,
        "train.max_steps": 2,
        "train.evaluate_every": 1,
        "sampler.max_model_len": 96,
        "evaluate.prompts": [directory / "film.jsonl"],
        "evaluate.decoding.max_tokens": 8,
        "evaluate.reward": REWARD,
        "judge.judges.vader.reward": REWARD,
    }
    if name == "out_of_distribution":
        changes["evaluate.sets.news.prompts"] = [directory / "paper.jsonl"]
    for key, value in changes.items():
        yield f"{key}={json.dumps(value, default=str)}"
