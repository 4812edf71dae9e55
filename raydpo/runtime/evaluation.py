"""Evaluation: sample held-out prompts with vLLM, score, measure KL and pair accuracy. Training never waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch

from raydpo.config.schema import Model
from raydpo.data.order import split_microbatches
from raydpo.data.pack import pack_rows
from raydpo.data.prompts import Prompt, read_prompts
from raydpo.data.shards import read_shard, to_rows
from raydpo.data.tokens import TokenRow
from raydpo.evaluate.ranking import ranked_pairs
from raydpo.evaluate.records import Evaluation, RankedPair, RatedSample, summarise, write_evaluation
from raydpo.model.batch import Batch
from raydpo.model.divergence import predict, summed_kl
from raydpo.model.load import load_model
from raydpo.model.score import ScoringModel
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.objective.contract import REF_LOGPS
from raydpo.reference.dataset import MANIFEST, open_dataset
from raydpo.reference.scoring import score_rows
from raydpo.report.summary import reference_and_policy
from raydpo.reward.contract import Group
from raydpo.rollout.engine import Completion
from raydpo.runtime.cluster.device import granted_device
from raydpo.runtime.cluster.preflight import EVALUATION_CPUS
from raydpo.runtime.pools.probing import confirm_sampler
from raydpo.runtime.pools.rewards import rate_each
from raydpo.runtime.pools.sampled import sample_table, sampled
from raydpo.runtime.pools.sampling import Drawing, Samplers
from raydpo.track.say import say
from raydpo.workspace.asked import EvaluationSettings, OriginsToday, origin_of
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

    @property
    def resources(self) -> dict[str, float]:
        """What the task of one evaluation asks of Ray."""
        return {"num_cpus": EVALUATION_CPUS, "num_gpus": self._asked.gpus}

    def start(self, step: int, model: str) -> ray.ObjectRef:
        """Evaluate in a task of its own; a failure shows only to whoever gets its result."""
        return _evaluate.options(**self.resources).remote(self, step, model)

    @contextmanager
    def reference_beside(self) -> Iterator[None]:
        """Evaluate the reference while the block runs, unless that is done already; training never waits for it."""
        if any(found.step == 0 for found in OriginsToday(self._settings).records().valid):
            yield
            return
        pending = self.start(0, self._settings.layout.reference_model)
        yield
        ray.wait([pending])

    def of_checkpoint(self, checkpoint: ray.train.Checkpoint, **_: Any) -> dict[str, float]:
        """Ray Train's validation function: evaluate the export that a reported checkpoint points to."""
        with checkpoint.as_directory() as path:
            pointer = json.loads((Path(path) / "export.json").read_text())
        found = self.evaluate(pointer["step"], pointer["path"])
        return {"evaluated_step": found.step, "reward": found.reward.mean}

    def evaluate(self, step: int, model: str) -> Evaluation:
        """Evaluate one model and write its record; step 0 is the reference itself."""
        settings = self._settings
        asked = self._asked
        timer = _Timer()
        made_from = origin_of(settings, model)
        # Not the export's own: prompts have the same ids at every step, those that prepare would give them.
        tokenizer = load_row_tokenizer(settings.layout.start_model, settings.data.date, settings.data.chat_template)
        prompts = read_prompts(asked.prompts, asked.column, tokenizer, limit=asked.limit, ignore=settings.data.ignore)
        policy = _load(settings.model, model, granted_device())
        drawing = Drawing(model, prompts, asked.decoding, 1, settings.seed)
        with timer("sample"):
            drawn = list(_drawn(settings, drawing, self._engines, policy))
        with timer("reward"):
            groups = [Group.of(row, p, [c]) for row, (p, c) in enumerate(zip(prompts, drawn, strict=True), start=1)]
            rewards = rate_each(asked.reward, groups, settings.rewards)
        with timer("score"):
            pairs = _ranked(settings, step, policy)
        del policy  # the KL has both models in float32, one at a time
        with timer("kl"):
            kl = _summed_kl(settings, model, prompts, drawn) if step else np.zeros(len(prompts))
        samples = [
            RatedSample(p.text, c.text, r, float(k), len(c.ids), c.finish_reason)
            for p, c, r, k in zip(prompts, drawn, rewards, kl, strict=True)
        ]
        found = summarise(step, model, samples, made_from=made_from, seconds=timer.seconds, pairs=pairs)
        write_evaluation(found, settings.layout.evaluations)
        return found


def _drawn(
    settings: EvaluationSettings, drawing: Drawing, engines: Samplers, policy: ScoringModel
) -> Iterator[Completion]:
    """One completion of every prompt, as the table has them or else by the sampler.

    Raises UserError unless what the sampler draws comes from the policy's weights.
    """
    assert settings.evaluate
    table = sample_table(
        settings.layout.completions,
        drawing,
        start_model=settings.layout.start_model,
        dtype=settings.model.dtype,
        sampler=settings.sampler,
    )
    bound = settings.evaluate.tokens_per_batch
    confirm = partial(confirm_sampler, policy, drawing.model, tokens_per_microbatch=bound, dtype=settings.model.dtype)
    for call in sampled(engines, drawing, table, confirm):
        for [completion] in call:
            yield completion


def _ranked(settings: EvaluationSettings, step: int, policy: ScoringModel) -> list[RankedPair]:
    """The held-out pairs as the policy ranks them; none without any, or for the reference, whose rewards are all 0.

    Scored as training does, and ranked by what its objective compares.
    """
    assert settings.evaluate
    bound = settings.evaluate.tokens_per_batch
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
    scored, _ = score_rows(policy, rows, tokens_per_microbatch=bound, device=granted_device())
    return ranked_pairs(rows, scored, dataset.ref_logps, objective.compares)


def _summed_kl(
    settings: EvaluationSettings, model: str, prompts: Sequence[Prompt], drawn: Sequence[Completion]
) -> np.ndarray:
    """The KL to the reference, summed over the tokens of every sample, shape [prompts], in nats.

    Of the weights as model.dtype holds them, but computed in float32, see raydpo.model.divergence. One model at a time
    is in memory.
    """
    assert settings.evaluate
    device = granted_device()
    rows = [TokenRow(b"", p.ids, (c.ids,)) for p, c in zip(prompts, drawn, strict=True)]
    lengths = np.asarray([len(row.prompt_ids) + len(row.completions[0]) for row in rows])
    bound = max(settings.evaluate.tokens_per_batch, int(lengths.max()))
    [members] = split_microbatches(lengths, world_size=1, tokens_per_microbatch=bound)
    batches = [Batch.from_pack(pack_rows([rows[i] for i in some]), device=device) for some in members]
    both = (model, settings.layout.reference_model)
    policy, ref = (predict(_load(settings.model, path, device).float(), batches) for path in both)
    values = np.empty(len(rows))
    for some, kl in zip(members, summed_kl(policy, ref, batches), strict=True):
        values[some] = kl.cpu().numpy()
    return values


def _load(form: Model, path: str, device: torch.device) -> ScoringModel:
    """The model at `path`, in the number format of the run's own."""
    return ScoringModel(load_model(path, dtype=form.dtype, device=device), fp32_head=form.fp32_head)


class _Timer:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


@ray.remote
def _evaluate(evaluator: Evaluator, step: int, model: str) -> None:
    evaluator.evaluate(step, model)


def evaluate_exports(settings: EvaluationSettings, engines: Samplers) -> dict[str, Any]:
    """Evaluate the reference and every export of the run's own without a record that answers what is asked now."""
    layout = settings.layout
    asked = OriginsToday(settings)
    found = asked.records()
    if found.left_out:
        say(found.notice())
    done = {evaluation.step for evaluation in found.valid}
    exports = exports_of_run(layout.exports, settings.training)
    models = {0: layout.reference_model} | {step: str(path) for step, path in exports.items()}
    evaluator = Evaluator(settings, engines)
    for step in sorted(models.keys() - done):
        say(f"evaluating step {step}: {models[step]}")
        ray.get(evaluator.start(step, models[step]))
    return summary(asked.records().valid)


def summary(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The reference's evaluation and the last one, for a job's result; null for what was not measured."""
    before, after = reference_and_policy(evaluations)
    kl = after and after.sequence_kl
    accuracy = after and after.pair_accuracy
    return {
        "reward_before": before and [before.reward.mean, before.reward.low, before.reward.high],
        "reward_after": after and [after.reward.mean, after.reward.low, after.reward.high],
        "kl": kl and kl.mean,
        "length_before": before and before.length.mean,
        "length_after": after and after.length.mean,
        "pair_accuracy": accuracy and accuracy.mean,
        "step": after and after.step,
    }
