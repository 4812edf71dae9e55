"""vLLM actors, and the stage that makes preference pairs from what they sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
from ray.actor import ActorHandle

from raydpo.config.files import whole_file, write_json
from raydpo.config.schema import Decoding, RunFile
from raydpo.data.prompts import Prompt, read_prompts
from raydpo.evaluate.pairs import Completion as Rated
from raydpo.evaluate.pairs import PromptGroup, pair_samples
from raydpo.evaluate.scorers import load_scorer
from raydpo.model.directory import weights_digest
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.runtime.layout import Layout
from raydpo.runtime.progress import Progress
from raydpo.sample.engine import Completion

PROMPTS_PER_CALL = 64  # between two lines of progress


class SamplerActor:
    """A Ray actor around one vLLM engine."""

    def __init__(self, run: RunFile) -> None:
        from raydpo.sample.engine import Engine

        model = Layout(run).start_model
        self._engine = Engine(model, dtype=run.model.dtype, settings=run.sampler, seed=run.seed)
        self._stop_ids = sorted(load_row_tokenizer(model, run.data.date).stop_ids)

    def sample(
        self, model: str, prompts: Sequence[Sequence[int]], decoding: Decoding, n: int, seed: int
    ) -> list[list[Completion]]:
        """n completions per prompt from the weights in `model`; the swap costs nothing when they are loaded."""
        self._engine.load(model)
        return self._engine.sample(prompts, decoding, n=n, seed=seed, stop_ids=self._stop_ids)


class Samplers:
    """The sampling actors of a run. May be sent to other processes; the creator's block owns them."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self._actors = actors

    def sample(
        self, model: str, prompts: Sequence[Prompt], decoding: Decoding, *, n: int, seed: int
    ) -> Iterator[list[Completion]]:
        """The completions of prompt after prompt. What is drawn depends on (seed, prompt index), not on the actors."""
        ids = [prompt.ids for prompt in prompts]
        starts = range(0, len(ids), PROMPTS_PER_CALL)
        waiting = [
            self._actors[k % len(self._actors)].sample.remote(
                model, ids[i : i + PROMPTS_PER_CALL], decoding, n, seed + i * n
            )
            for k, i in enumerate(starts)
        ]
        for call in waiting:
            yield from ray.get(call)


@contextmanager
def samplers(run: RunFile) -> Iterator[Samplers]:
    """Start the vLLM actors; they stay up for the length of the block."""
    options = {"num_cpus": run.sampler.cpus, "num_gpus": run.sampler.gpus, "max_restarts": 1, "max_task_retries": 1}
    threads = {"OMP_NUM_THREADS": str(max(1, int(run.sampler.cpus)))}
    actor = ray.remote(**options)(SamplerActor).options(runtime_env={"env_vars": threads})
    actors = [actor.remote(run) for _ in range(run.sampler.actors)]
    try:
        yield Samplers(actors)
    finally:
        for handle in actors:
            ray.kill(handle)


def sample_pairs(run: RunFile, engines: Samplers) -> dict[str, Any]:
    """Sample from the reference, score, pair; writes samples.jsonl and pairs.jsonl. Done once for the same settings."""
    assert run.sample
    layout, settings = Layout(run), run.sample
    made_from = {**settings.model_dump(), "weights": weights_digest(layout.reference_model), "seed": run.seed}
    if layout.sampled.exists():
        earlier = json.loads(layout.sampled.read_text())
        if earlier["made_from"] == made_from:
            print(f"sample: {layout.pairs} is there already", flush=True)
            return earlier["result"]
    scorer = load_scorer(settings.scorer)
    tokenizer = load_row_tokenizer(layout.start_model, run.data.date)
    prompts = read_prompts(settings.prompts, settings.column, tokenizer, limit=settings.limit)
    n = settings.completions_per_prompt
    groups = []
    with Progress("sample", total=len(prompts) * n, unit="completions") as progress:
        drawn = engines.sample(layout.reference_model, prompts, settings.decoding, n=n, seed=run.seed)
        for prompt, completions in zip(prompts, drawn, strict=True):
            rewards = scorer([prompt.text] * n, [c.text for c in completions])
            rated = [Rated(c.ids, c.text, r) for c, r in zip(completions, rewards, strict=True)]
            groups.append(PromptGroup(prompt.ids, prompt.text, rated))
            progress.advance(n)
    pairs, counts = pair_samples(groups, settings.pairs)
    _write_lines(layout.samples, [asdict(group) for group in groups])
    _write_lines(layout.pairs, pairs)
    rewards = [c.reward for group in groups for c in group.completions]
    result = {**asdict(counts), "mean_reward": sum(rewards) / len(rewards)}
    write_json(layout.sampled, {"made_from": made_from, "result": result})
    return result


def _write_lines(path: Any, rows: Sequence[dict[str, Any]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
