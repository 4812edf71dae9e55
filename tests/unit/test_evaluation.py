"""Laws of an evaluation as a whole, with an engine, a reward and scorers that need no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from raydpo.config.schema import Model, Pool, RunFile, Sampler
from raydpo.data.prompts import Prompt
from raydpo.evaluate.records import Evaluation
from raydpo.evaluate.text import against_reference
from raydpo.rollout.engine import Completion
from raydpo.runtime import evaluation
from raydpo.runtime.evaluation import Evaluator, evaluate_exports
from raydpo.runtime.pools.sampling import Drawing, Samplers
from raydpo.stages.values import RunValues
from raydpo.workspace.asked import records_everywhere
from tests.local_scorers import local_scorers
from tests.models import save_tiny_model

pytestmark = pytest.mark.unit

WORDS = ["film", "good", "very good film"]


class Likeliest(Samplers):
    """Draws the likeliest token of the model that is asked for; what it has drawn is counted."""

    def __init__(self) -> None:
        super().__init__([], Sampler())
        self.drawn = 0

    def draw(self, drawing: Drawing, calls: Iterable[int]) -> Iterator[tuple[int, list[list[Completion]]]]:
        lm = AutoModelForCausalLM.from_pretrained(drawing.model, dtype=torch.float32)
        for call in calls:
            prompts = drawing.members(call)
            self.drawn += len(prompts)
            yield call, [[_likeliest(lm, prompt)] for prompt in prompts]


@torch.no_grad()
def _likeliest(lm: Any, prompt: Prompt) -> Completion:
    logp, token = lm(input_ids=torch.tensor([prompt.ids])).logits[0, -1].log_softmax(dim=0).max(dim=0)
    return Completion([int(token)], f"a {prompt.text}", "length", (float(logp),))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    save_tiny_model(tmp_path / "model")
    write_jsonl(tmp_path / "own.jsonl", [{"prompt": f"{word} {i}"} for i, word in enumerate(WORDS)])

    def here(pool: Pool, form: Model, bound: int) -> Any:
        return nullcontext(local_scorers(pool.max_actors, form, bound))

    monkeypatch.setattr(evaluation, "policy_scorers", here)
    monkeypatch.setattr(
        evaluation, "rate_each", lambda name, groups, _: [float(len(each.prompt.split())) for each in groups]
    )
    return {
        "name": "x",
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"train": ["pairs.jsonl"]},
        "evaluate": {"prompts": [str(tmp_path / "own.jsonl")], "reward": "length", "pool": {"max_actors": 2}},
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluated(tree: dict[str, Any], engines: Samplers) -> tuple[dict[str, Any], list[Evaluation]]:
    settings = RunValues(RunFile.model_validate(tree)).evaluations()
    result = evaluate_exports(settings, engines)
    return result, [records.valid[0] for records in records_everywhere(settings)]


def test_sets_and_temperatures_are_evaluated_beside_what_was_measured_before(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    engines = Likeliest()
    result, [alone] = evaluated(tree, engines)
    assert "elsewhere" not in result
    own = tmp_path / "out" / "evaluations" / "step-000000.json"
    before = own.read_bytes(), own.stat().st_mtime_ns
    rows = [{"text": word, "summary": f"A {word}!"} for word in WORDS[:2]]
    write_jsonl(tmp_path / "few.jsonl", rows)
    few = {"prompts": [str(tmp_path / "few.jsonl")], "column": "text", "reference_column": "summary"}
    tree["evaluate"] |= {"sets": {"few": few}, "temperatures": [0.5]}
    result, found = evaluated(tree, engines)
    assert (own.read_bytes(), own.stat().st_mtime_ns) == before, "its own record is not made again"
    assert found[0] == alone
    assert [*result["elsewhere"]] == ["@0.5", "few@1.0", "few@0.5"]
    assert [each.prompt_set for each in found] == ["", "", "few", "few"]
    assert [each.made_from.decoding.temperature for each in found] == [1.0, 0.5, 1.0, 0.5]
    assert engines.drawn == 3 + 3 + 2 + 2
    assert set(found[2].measures) - set(alone.measures) == {"rouge_1", "rouge_2", "rouge_l", "exact_match"}
    for sample, row in zip(found[2].samples, rows, strict=True):
        of_texts = against_reference(sample.completion, row["summary"])
        assert {name: sample.numbers[name] for name in of_texts} == of_texts
    evaluated(tree, engines)
    assert engines.drawn == 10, "nothing is drawn twice"


def test_a_record_is_made_again_where_the_weights_have_changed_and_only_then(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    engines = Likeliest()
    policy = tmp_path / "policy"
    save_tiny_model(policy)
    evaluator = Evaluator(RunValues(RunFile.model_validate(tree)).evaluations(), engines)
    with evaluator.scorers() as scorers:
        unmoved = evaluator.evaluate(5, str(policy), scorers)
        assert evaluator.evaluate(5, str(policy), scorers) == unmoved
    assert engines.drawn == 3
    assert unmoved.column("kl") == [0.0] * 3
    lm = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        lm.model.norm.weight *= 1.5
    lm.save_pretrained(policy)
    with evaluator.scorers() as scorers:
        moved = evaluator.evaluate(5, str(policy), scorers)
    assert min(moved.column("kl")) > 0
    assert moved.column("reward") == [2.0, 2.0, 4.0]
