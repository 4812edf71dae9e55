"""vLLM actors: what keeps an engine up, hands prompts to it and says clearly when it is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from raydpo.config.schema import Data, Decoding, Evaluate, Sample, Sampler
from raydpo.data.prompts import Prompt, read_prompts
from raydpo.errors import UserError
from raydpo.evaluate.records import check_enough
from raydpo.rollout.engine import Completion
from raydpo.rollout.limits import check_prompts
from raydpo.rollout.samples import Request
from raydpo.runtime.pools.rewards import last_line

if TYPE_CHECKING:
    from raydpo.data.tokenizer import RowTokenizer

PROMPTS_PER_CALL = 64  # between two lines of progress, and what is lost at most when the job dies
PROBED = 8  # prompts of each actor's first call whose completions come with log-probs


class SamplerActor:
    """A Ray actor around one vLLM engine."""

    def __init__(self, model: str, dtype: str, settings: Sampler, vocabulary: int, stop_ids: Sequence[int]) -> None:
        from raydpo.rollout.engine import Engine

        self._engine = Engine(model, dtype=dtype, settings=settings, vocabulary=vocabulary)
        self._stop_ids = stop_ids

    def sample(
        self, model: str, prompts: Sequence[Sequence[int]], decoding: Decoding, n: int, seed: int, with_logps: int
    ) -> list[list[Completion]]:
        """n completions per prompt from the weights in `model`; the swap costs nothing when they are loaded."""
        self._engine.load(model)
        return self._engine.sample(prompts, decoding, n=n, seed=seed, stop_ids=self._stop_ids, with_logps=with_logps)


@dataclass(frozen=True)
class Drawing:
    """What is asked of the samplers: n completions of every prompt, by one model."""

    model: str
    prompts: Sequence[Prompt]
    decoding: Decoding
    n: int
    seed: int

    @property
    def calls(self) -> int:
        """Calls that the prompts make; call k has those from k * PROMPTS_PER_CALL on."""
        return -(-len(self.prompts) // PROMPTS_PER_CALL)

    def members(self, call: int) -> Sequence[Prompt]:
        """The prompts of a call."""
        return self.prompts[call * PROMPTS_PER_CALL : (call + 1) * PROMPTS_PER_CALL]

    def request(self, call: int) -> Request:
        """What a call asks of an engine: completion j of prompt i, of all prompts, has the seed seed + i * n + j."""
        prompts = tuple(tuple(prompt.ids) for prompt in self.members(call))
        return Request(prompts, self.n, self.seed + call * PROMPTS_PER_CALL * self.n)


# Once more where an actor is lost: a second loss is no accident. Its calls wait for as long as it takes to start again;
# with a number of retries, those that wait in its queue would use them up against an actor that is not there yet.
RESTARTS = {"max_restarts": 1, "max_task_retries": -1}


class Samplers:
    """The sampling actors of a run. May be sent to other processes; the creator's block owns them."""

    def __init__(self, actors: Sequence[ActorHandle], settings: Sampler) -> None:
        self._actors = actors
        self._settings = settings

    def sample(
        self, model: str, prompts: Sequence[Prompt], decoding: Decoding, *, n: int, seed: int
    ) -> Iterator[list[Completion]]:
        """The completions of prompt after prompt."""
        drawing = Drawing(model, prompts, decoding, n, seed)
        drawn = dict(self.draw(drawing, range(drawing.calls)))
        for call in range(drawing.calls):
            yield from drawn[call]

    def draw(self, drawing: Drawing, calls: Iterable[int]) -> Iterator[tuple[int, list[list[Completion]]]]:
        """Calls as they are done, with the completions of their prompts.

        The first prompts of every actor's first call have log-probs, and that call comes before the actor's others.
        What is drawn depends on (seed, prompt index), not on the actors. An actor that dies is started again and does
        those calls once more whose completions had not arrived. Raises UserError for one that does not start or is lost
        more often than it may be.
        """
        waiting = {self._ask(drawing, call, place): call for place, call in enumerate(calls)}
        while waiting:
            ray.wait(list(waiting), num_returns=1)
            done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)  # all, in the order of the calls
            for answer in done:
                try:
                    completions = ray.get(answer)
                except RayActorError as error:
                    raise self._lost(error) from error
                yield waiting.pop(answer), completions

    def _ask(self, drawing: Drawing, call: int, place: int) -> ray.ObjectRef:
        actor = self._actors[place % len(self._actors)]
        asked = drawing.request(call)
        with_logps = PROBED if place < len(self._actors) else 0
        return actor.sample.remote(drawing.model, asked.prompts, drawing.decoding, asked.n, asked.seed, with_logps)

    def _lost(self, error: RayActorError) -> UserError:
        settings = self._settings
        never = "creation task" in str(error)  # Ray's words for an error in __init__
        what = "could not start" if never else "was lost, and again after a restart"
        return UserError(
            f"a sampler (vLLM) {what}: {last_line(error)}. Its output is in the log of this stage, below "
            f"output_dir, and in Ray's of actor {error.actor_id}. Where memory was short, lower "
            f"sampler.kv_cache_gib={settings.kv_cache_gib:g} (gpu_memory_utilization on a GPU), "
            f"sampler.max_num_seqs={settings.max_num_seqs} or sampler.actors={settings.actors}."
        )


@contextmanager
def samplers(model: str, dtype: str, settings: Sampler, tokenizer: RowTokenizer) -> Iterator[Samplers]:
    """Start the vLLM actors with a model and its tokenizer; they stay up for the length of the block."""
    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, **RESTARTS}
    threads = {"OMP_NUM_THREADS": str(max(1, int(settings.cpus)))}
    actor = ray.remote(**options)(SamplerActor).options(runtime_env={"env_vars": threads})
    stop_ids = sorted(tokenizer.stop_ids)
    actors = [actor.remote(model, dtype, settings, len(tokenizer), stop_ids) for _ in range(settings.actors)]
    try:
        yield Samplers(actors, settings)
    finally:
        for handle in actors:
            ray.kill(handle)


def check_sampling(
    model: str, data: Data, sampler: Sampler, sections: Sequence[Sample | Evaluate | None]
) -> RowTokenizer:
    """Raise UserError for a prompt without room for its completion, and for too few to evaluate. Starts no engine.

    Returns the tokenizer, which is the model's.
    """
    from raydpo.model.tokenizer import (
        load_row_tokenizer,  # here, because drivers import this module before they need it
    )

    tokenizer = load_row_tokenizer(model, data.date, data.chat_template)
    for section in sections:
        if section is None:
            continue
        sets = section.all_sets if isinstance(section, Evaluate) else {"": section}
        for name, asked in sets.items():
            prompts = read_prompts(asked.prompts, asked.column, tokenizer, limit=asked.limit, ignore=data.ignore)
            check_prompts(prompts, section.decoding, sampler)
            if isinstance(section, Evaluate):
                check_enough([prompt.text for prompt in prompts], f"evaluate.sets.{name}" if name else "evaluate")
    return tokenizer
