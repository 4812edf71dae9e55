"""Evaluation: sample held-out prompts with vLLM, score, measure KL and pair accuracy. Training never waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train

from raydpo.data.prompts import Prompt, read_prompts
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.tokens import TokenRow
from raydpo.evaluate.origin import Origin
from raydpo.evaluate.ranking import ranked_pairs
from raydpo.evaluate.records import (
    Evaluation,
    RankedPair,
    RatedSample,
    read_record,
    summarise,
    write_evaluation,
)
from raydpo.evaluate.stats import Interval
from raydpo.evaluate.text import against_reference
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.objective.contract import REF_LOGPS
from raydpo.reference.dataset import MANIFEST, open_dataset
from raydpo.report.summary import reference_and_policy
from raydpo.reward.contract import Group
from raydpo.rollout.engine import Completion
from raydpo.runtime.pools.policies import PolicyScorers, policy_scorers
from raydpo.runtime.pools.probing import confirm_sampler
from raydpo.runtime.pools.rewards import rate_each
from raydpo.runtime.pools.sampled import sample_table, sampled
from raydpo.runtime.pools.sampling import Drawing, Samplers
from raydpo.track.say import say
from raydpo.workspace.asked import EvaluationSettings, origin_of, records_everywhere, reference_answers
from raydpo.workspace.exports import exports_of_run
from raydpo.workspace.layout import store_of
from raydpo.workspace.objective import preference_objective
from raydpo.workspace.provenance import check_same_tokenizer


class Evaluator:
    """Evaluates models on the run's held-out prompts and pairs. May be sent to other processes."""

    def __init__(self, settings: EvaluationSettings, engines: Samplers) -> None:
        assert settings.evaluate
        self._settings = settings
        self._asked = settings.evaluate
        self._engines = engines

    def scorers(self) -> AbstractContextManager[PolicyScorers]:
        """The pool that scores for it, for the length of a block."""
        return policy_scorers(self._asked.pool, self._settings.model, self._asked.tokens_per_batch)

    @contextmanager
    def reference_beside(self) -> Iterator[None]:
        """Evaluate the reference while the block runs, unless that is done already; training never waits for it."""
        if all(any(each.step == 0 for each in found.valid) for found in records_everywhere(self._settings)):
            yield
            return
        pending = _evaluate.remote(self, 0, self._settings.layout.reference_model)
        yield
        ray.wait([pending])

    def of_checkpoint(self, checkpoint: ray.train.Checkpoint, **_: Any) -> dict[str, float]:
        """Ray Train's validation function: evaluate the export that a reported checkpoint points to."""
        with checkpoint.as_directory() as path:
            pointer = json.loads((Path(path) / "export.json").read_text())
        with self.scorers() as scorers:
            found = self.evaluate(pointer["step"], pointer["path"], scorers)
        return {"evaluated_step": found.step, **{name: each.mean for name, each in found.measures.items()}}

    def evaluate(self, step: int, model: str, scorers: PolicyScorers) -> Evaluation:
        """Evaluate one model on each set of prompts at each temperature, but where a record answers already.

        Step 0 is the reference itself. Returns the evaluation on the section's own prompts and at its own temperature.
        """
        asked = [(each, origin_of(each, model)) for each in self._settings.everywhere()]
        lacking = [(each, made_from) for each, made_from in asked if not read_record(each.directory, step, made_from)]
        if lacking:
            self._make(step, model, lacking, scorers)
        own, made_from = asked[0]
        found = read_record(own.directory, step, made_from)
        assert found
        return found

    def _make(
        self, step: int, model: str, lacking: Sequence[tuple[EvaluationSettings, Origin]], scorers: PolicyScorers
    ) -> None:
        """All are scored together; the seconds that this takes stand with the first record."""
        settings = self._settings
        timer = _Timer()
        # Not the export's own: prompts have the same ids at every step, those that prepare would give them.
        tokenizer = load_row_tokenizer(settings.layout.start_model, settings.data.date, settings.data.chat_template)
        sampled = [_sample(each, model, tokenizer, self._engines, scorers) for each, _ in lacking]
        pairs: list[RankedPair] = []
        if not lacking[0][0].folder:
            with timer("score"):
                pairs = _ranked(settings, step, model, scorers)
        rows = [row for each in sampled for row in each.rows]
        with timer("kl"):
            kl = scorers.kl(model, settings.layout.reference_model, rows) if step else np.zeros(len(rows))
        values = iter(kl.tolist())
        for (asked, made_from), drawn in zip(lacking, sampled, strict=True):
            found = summarise(
                step,
                model,
                drawn.rated([next(values) for _ in drawn.prompts]),
                made_from=made_from,
                seconds=drawn.seconds | timer.seconds,
                pairs=pairs,
                prompt_set=asked.prompt_set,
            )
            write_evaluation(found, asked.directory)
            timer, pairs = _Timer(), []


@dataclass(frozen=True)
class _Sampled:
    """A completion of each of some prompts, its reward, and how long both took."""

    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    answers: Sequence[str]  # that they are held against; may be none
    rewards: Sequence[float]
    seconds: dict[str, float]

    @property
    def rows(self) -> list[TokenRow]:
        """What a model reads of them."""
        return [TokenRow(b"", p.ids, (c.ids,)) for p, c in zip(self.prompts, self.completions, strict=True)]

    def rated(self, kls: Sequence[float]) -> list[RatedSample]:
        """With the KL of each, in nats."""
        samples = [
            RatedSample(p.text, c.text, c.finish_reason, {"reward": r, "kl": kl, "length": len(c.ids)})
            for p, c, r, kl in zip(self.prompts, self.completions, self.rewards, kls, strict=True)
        ]
        if self.answers:
            for sample, answer in zip(samples, self.answers, strict=True):
                sample.numbers.update(against_reference(sample.completion, answer))
        return samples


def _sample(
    settings: EvaluationSettings, model: str, tokenizer: RowTokenizer, engines: Samplers, scorers: PolicyScorers
) -> _Sampled:
    asked = settings.evaluate
    assert asked
    timer = _Timer()
    prompts = read_prompts(asked.prompts, asked.column, tokenizer, limit=asked.limit, ignore=settings.data.ignore)
    drawing = Drawing(model, prompts, asked.decoding, 1, settings.seed)
    with timer("sample"):
        drawn = list(_drawn(settings, drawing, engines, scorers))
    with timer("reward"):
        groups = [Group.of(row, p, [c]) for row, (p, c) in enumerate(zip(prompts, drawn, strict=True), start=1)]
        rewards = rate_each(asked.reward, groups, settings.rewards)
    return _Sampled(prompts, drawn, reference_answers(settings), rewards, timer.seconds)


def _drawn(
    settings: EvaluationSettings, drawing: Drawing, engines: Samplers, scorers: PolicyScorers
) -> Iterator[Completion]:
    """One completion of every prompt, as the table has them or else by the sampler.

    Raises UserError unless what the sampler draws comes from the policy's weights.
    """
    table = sample_table(
        settings.layout.completions,
        drawing,
        start_model=settings.layout.start_model,
        dtype=settings.model.dtype,
        sampler=settings.sampler,
    )
    score = partial(scorers.logps, drawing.model)
    confirm = partial(confirm_sampler, score, drawing.model, dtype=settings.model.dtype)
    for call in sampled(engines, drawing, table, confirm):
        for [completion] in call:
            yield completion


def _ranked(settings: EvaluationSettings, step: int, model: str, scorers: PolicyScorers) -> list[RankedPair]:
    """The held-out pairs as the policy ranks them; none without any, or for the reference, whose rewards are all 0.

    Scored as training does, and ranked by what its objective compares.
    """
    layout = settings.layout
    directory = layout.held_out_tokens
    if step == 0 or not (directory / MANIFEST).exists():
        return []
    check_same_tokenizer(layout.start_model, directory)
    objective = preference_objective(settings.train)
    dataset = open_dataset(directory)
    if not dataset.pairs.any():
        say(f"pair accuracy is not measured: the held-out rows in {directory} have one completion each")
        return []
    if REF_LOGPS in objective.needs:
        dataset = dataset.with_reference(store_of(layout, settings.model, settings.reference.pool))
    rows = [row for path in dataset.shards for row in to_rows(read_shard(Path(path)))]
    return ranked_pairs(rows, scorers.logps(model, rows), dataset.ref_logps, objective.compares)


class _Timer:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


@ray.remote(num_cpus=0)  # others score, sample and rate
def _evaluate(evaluator: Evaluator, step: int, model: str) -> None:
    with evaluator.scorers() as scorers:
        evaluator.evaluate(step, model, scorers)


def evaluate_exports(settings: EvaluationSettings, engines: Samplers) -> dict[str, Any]:
    """Evaluate the reference and every export of the run's own without a record that answers what is asked now."""
    layout = settings.layout
    found = records_everywhere(settings)
    for records in found:
        if records.left_out:
            say(records.notice())
    done = set.intersection(*({evaluation.step for evaluation in records.valid} for records in found))
    exports = exports_of_run(layout.exports, settings.training)
    models = {0: layout.reference_model} | {step: str(path) for step, path in exports.items()}
    evaluator = Evaluator(settings, engines)
    with evaluator.scorers() as scorers:
        for step in sorted(models.keys() - done):
            say(f"evaluating step {step}: {models[step]}")
            evaluator.evaluate(step, models[step], scorers)
    summaries = [summary(records.valid) for records in records_everywhere(settings)]
    folders = [each.folder for each in settings.everywhere()]
    elsewhere = dict(zip(folders[1:], summaries[1:], strict=True))
    return summaries[0] | ({"elsewhere": elsewhere} if elsewhere else {})


def summary(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The reference's evaluation and the last one, for a job's result; null for what was not measured."""
    before, after = reference_and_policy(evaluations)
    was = before.measures if before else {}
    now = after.measures if after else {}
    kl = after and after.sequence_kl
    return {
        "reward_before": _bounds(was.get("reward")),
        "reward_after": _bounds(now.get("reward")),
        "kl": kl and kl.mean,
        "length_before": _mean(was.get("length")),
        "length_after": _mean(now.get("length")),
        "pair_accuracy": _mean(now.get("pair_accuracy")),
        "step": after and after.step,
    }


def _bounds(interval: Interval | None) -> list[float] | None:
    return [interval.mean, interval.low, interval.high] if interval else None


def _mean(interval: Interval | None) -> float | None:
    return interval.mean if interval else None
