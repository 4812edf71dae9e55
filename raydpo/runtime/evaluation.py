"""Evaluation: sample held-out prompts with vLLM, score, measure KL and pair accuracy. Training never waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch

from raydpo.config.say import say
from raydpo.config.schema import RunFile
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.prompts import Prompt, read_prompts
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.evaluate.records import Evaluation, Sample, read_evaluations, summarise, write_evaluation
from raydpo.model.batch import Batch
from raydpo.model.divergence import sequence_kl
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.reference.scoring import score_rows
from raydpo.runtime.dataset import MANIFEST, open_dataset
from raydpo.runtime.layout import Layout, reference_store
from raydpo.runtime.preflight import EVALUATION_CPUS
from raydpo.runtime.probing import confirm_sampler
from raydpo.runtime.provenance import check_same_tokenizer
from raydpo.runtime.rewards import rate_each
from raydpo.runtime.sampling import Samplers
from raydpo.sample.engine import Completion


class Evaluator:
    """Evaluates models on the run's held-out prompts and pairs. May be sent to other processes."""

    def __init__(self, run: RunFile, engines: Samplers) -> None:
        self._run, self._engines = run, engines

    def start(self, step: int, model: str) -> ray.ObjectRef:
        """Evaluate in a task of its own; a failure shows only to whoever gets its result."""
        return _evaluate.remote(self, step, model)

    @contextmanager
    def reference_beside(self) -> Iterator[None]:
        """Evaluate the reference while the block runs, unless that is done already; training never waits for it."""
        layout = Layout(self._run)
        if any(found.step == 0 for found in read_evaluations(layout.evaluations)):
            yield
            return
        pending = self.start(0, layout.reference_model)
        yield
        ray.wait([pending])

    def of_checkpoint(self, checkpoint: ray.train.Checkpoint, **_: Any) -> dict[str, float]:
        """Ray Train's validation function: evaluate the export that a reported checkpoint points to."""
        with checkpoint.as_directory() as path:
            pointer = json.loads((Path(path) / "export.json").read_text())
        found = self.evaluate(pointer["step"], pointer["path"])
        return {"evaluated_step": found.step, "reward": found.reward.mean, "kl": found.kl.mean}

    def evaluate(self, step: int, model: str) -> Evaluation:
        """Evaluate one model and write its record; step 0 is the reference itself."""
        run, layout = self._run, Layout(self._run)
        assert run.evaluate
        timer = _Timer()
        # Not the export's own: prompts have the same ids at every step, those that prepare would give them.
        tokenizer = load_row_tokenizer(layout.start_model, run.data.date)
        asked = run.evaluate
        prompts = read_prompts(asked.prompts, asked.column, tokenizer, limit=asked.limit, ignore=run.data.ignore)
        with timer("sample"):
            drawn = [c for [c] in self._engines.sample(model, prompts, run.evaluate.decoding, n=1, seed=run.seed)]
        with timer("reward"):
            rewards = rate_each(run.evaluate.scorer, [p.text for p in prompts], [c.text for c in drawn])
        with timer("score"):
            scoring = _Scoring(run, model)
            scoring.confirm_sampler(model, prompts, drawn)
            kl, right = np.zeros(len(prompts)), None
            if step:
                kl, right = scoring.kl(prompts, drawn), scoring.pairs_ranked_right()
        samples = [
            Sample(p.text, c.text, r, float(k), len(c.ids), c.finish_reason)
            for p, c, r, k in zip(prompts, drawn, rewards, kl, strict=True)
        ]
        found = summarise(step, model, samples, seconds=timer.seconds, pairs_ranked_right=right)
        write_evaluation(found, layout.evaluations)
        return found


class _Scoring:
    """The policy's log-probs on its own samples and on held-out pairs, by the path that training uses."""

    def __init__(self, run: RunFile, model: str) -> None:
        self._run, self._budget = run, run.reference.tokens_per_batch
        gpu = run.sampler.gpus > 0
        self._device = torch.device("cuda" if gpu else "cpu")
        self._policy = self._load(model)

    def _load(self, path: str) -> ScoringModel:
        settings = self._run.model
        return ScoringModel(load_model(path, dtype=settings.dtype, device=self._device), fp32_head=settings.fp32_head)

    def confirm_sampler(self, model: str, prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> None:
        """Raise UserError unless the samples come from the policy's weights."""
        confirm_sampler(self._run, self._policy, model, prompts, drawn)

    def kl(self, prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> np.ndarray:
        """Sequence KL to the reference of every sample, shape [prompts], in nats."""
        ref = self._load(Layout(self._run).reference_model)
        rows = [TokenRow(b"", p.ids, (c.ids,)) for p, c in zip(prompts, drawn, strict=True)]
        lengths = np.asarray([len(r.prompt_ids) + len(r.completions[0]) for r in rows])
        values = np.empty(len(rows))
        [micro_batches] = split_microbatches(lengths, world_size=1, budget=max(self._budget, int(lengths.max())))
        for members in micro_batches:
            batch = Batch.from_pack(pack_rows([rows[i] for i in members]), device=self._device)
            values[members] = sequence_kl(self._policy, ref, batch)[:, 0].cpu().numpy()
        return values

    def pairs_ranked_right(self) -> list[bool] | None:
        """Per held-out pair, whether chosen has the higher implicit reward; None without held-out pairs."""
        directory = Layout(self._run).held_out_tokens
        if not (directory / MANIFEST).exists():
            return None
        check_same_tokenizer(self._run, "held_out", directory)
        dataset = open_dataset(directory).with_reference(reference_store(self._run))
        assert dataset.ref_logps is not None
        rows = [row for path in dataset.shards for row in to_rows(read_shard(Path(path)))]
        scored, _ = score_rows(self._policy, rows, budget=self._budget, device=self._device)
        logps = np.asarray([[values.sum(dtype=np.float64) for values in row] for row in scored])
        gains = logps - dataset.ref_logps
        return [bool(chosen > rejected) for chosen, rejected in gains]


class _Timer:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


@ray.remote(num_cpus=EVALUATION_CPUS)
def _evaluate(evaluator: Evaluator, step: int, model: str) -> None:
    evaluator.evaluate(step, model)


def evaluate_exports(run: RunFile, engines: Samplers) -> dict[str, Any]:
    """Evaluate the reference and every export that has no record yet."""
    layout = Layout(run)
    done = {evaluation.step for evaluation in read_evaluations(layout.evaluations)}
    models = {0: layout.reference_model} | {int(path.name[5:]): str(path) for path in layout.exports.glob("step-*")}
    evaluator = Evaluator(run, engines)
    for step in sorted(models.keys() - done):
        say(f"evaluating step {step}: {models[step]}")
        ray.get(evaluator.start(step, models[step]))
    return summary(read_evaluations(layout.evaluations))


def summary(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """First and last evaluation, for a job's result."""
    if not evaluations:
        return {}
    first, last = evaluations[0], evaluations[-1]
    accuracy = last.pair_accuracy
    return {
        "reward_before": [first.reward.mean, first.reward.low, first.reward.high],
        "reward_after": [last.reward.mean, last.reward.low, last.reward.high],
        "kl": last.kl.mean,
        "length_before": first.length.mean,
        "length_after": last.length.mean,
        "pair_accuracy": accuracy.mean if accuracy else None,
        "step": last.step,
    }
