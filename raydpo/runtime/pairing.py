"""The sample stage: preference data out of completions of the reference, each step of it kept as it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydpo.config.schema import Data, Model, Rating, Sample, Sampler
from raydpo.data.prompts import prompts_hash, read_prompts, texts_hash
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.reward.contract import Group
from raydpo.rollout.engine import Completion
from raydpo.rollout.pairs import PromptGroup, RatedCompletion, pair_samples
from raydpo.runtime.pools.probing import confirming
from raydpo.runtime.pools.rewards import RewardProcess, reward_process
from raydpo.runtime.pools.sampled import drawn_by, sample_table, sampled
from raydpo.runtime.pools.sampling import PROMPTS_PER_CALL, Drawing, Samplers
from raydpo.storage.files import whole_file, write_json
from raydpo.track.progress import Progress
from raydpo.track.say import say
from raydpo.workspace.layout import Layout
from raydpo.workspace.rewards import RewardSettings, reward_source

PAIRED_BY = 2  # version of what makes rows of them; 1 wrote a row a pair under "all" too


@dataclass(frozen=True)
class SampleSettings:
    """What a run file says of its sample stage."""

    layout: Layout
    seed: int
    model: Model
    data: Data
    sampler: Sampler
    sample: Sample
    rating: Rating
    probe_tokens: int  # that the policy reads at once where it is held against the sampler

    @property
    def rewards(self) -> RewardSettings:
        """How what it samples is rated."""
        return RewardSettings(self.layout, self.model, self.rating)


def sample_pairs(settings: SampleSettings, engines: Samplers) -> dict[str, Any]:
    """Sample from the reference, score, pair; writes samples.jsonl and pairs.jsonl. Done once for the same things.

    What is drawn and what is scored are kept apart, so another reward function costs no sampling, and a stage that was
    ended goes on where it stopped.
    """
    layout = settings.layout
    asked = settings.sample
    drawing = drawing_of(settings)
    completions_from = drawn_from(settings, drawing)
    rated_from = completions_from | {
        "scorer": asked.reward,
        "scorer_source": reward_source(settings.rewards, asked.reward),
        "texts": texts_hash([prompt.text for prompt in drawing.prompts]),  # two texts may have the same ids
    }
    made_from = rated_from | {"pairs": asked.pairs, "paired_by": PAIRED_BY}
    if layout.sampled.exists() and layout.pairs.exists():
        earlier = json.loads(layout.sampled.read_text())
        if earlier["made_from"] == made_from:
            say(f"sample: {layout.pairs} is there already")
            return earlier["result"]
    layout.sampled.unlink(missing_ok=True)  # before the files that it vouches for change
    with reward_process(asked.reward, settings.rewards) as rewards:
        groups = _Work(settings, drawing, engines, rewards).groups()
    pairs, counts = pair_samples(groups, asked.pairs)
    _write_lines(layout.samples, [asdict(group) for group in groups])
    _write_lines(layout.pairs, pairs)
    values = [c.reward for group in groups for c in group.completions]
    result = {**asdict(counts), "mean_reward": sum(values) / len(values)}
    write_json(layout.sampled, {"made_from": made_from, "result": result})
    return result


def drawing_of(settings: SampleSettings) -> Drawing:
    """What the run asks of its samplers."""
    layout = settings.layout
    data = settings.data
    asked = settings.sample
    tokenizer = load_row_tokenizer(layout.start_model, data.date, data.chat_template)
    prompts = read_prompts(asked.prompts, asked.column, tokenizer, limit=asked.limit, ignore=data.ignore)
    return Drawing(layout.reference_model, prompts, asked.decoding, asked.completions_per_prompt, settings.seed)


def drawn_from(settings: SampleSettings, drawing: Drawing) -> dict[str, Any]:
    """All that decides which completions are drawn."""
    by = drawn_by(
        drawing, start_model=settings.layout.start_model, dtype=settings.model.dtype, sampler=settings.sampler
    )
    asked = {
        "prompts": prompts_hash([prompt.ids for prompt in drawing.prompts]),
        "n": drawing.n,
        "seed": drawing.seed,
    }
    return by | asked | drawing.decoding.named()


class _Work:
    """What is drawn and rated, call after call; what is there already is read."""

    def __init__(
        self,
        settings: SampleSettings,
        drawing: Drawing,
        engines: Samplers,
        rewards: RewardProcess,
    ) -> None:
        self._settings = settings
        self._drawing = drawing
        self._engines = engines
        self._rewards = rewards

    def groups(self) -> list[PromptGroup]:
        """Every prompt with its rated completions. Raises UserError where sampler or reward function fail."""
        groups: list[PromptGroup] = []
        asked = self._drawing
        with Progress("sample", total=len(asked.prompts) * asked.n, unit="completions") as progress:
            for call, completions in enumerate(self._completions()):
                rewards = self._rate(call, completions)
                for prompt, answers, values in zip(asked.members(call), completions, rewards, strict=True):
                    rated = [RatedCompletion(c.ids, c.text, r) for c, r in zip(answers, values, strict=True)]
                    groups.append(PromptGroup(prompt.ids, prompt.text, rated))
                    progress.advance(asked.n)
        return groups

    def _completions(self) -> Iterator[list[list[Completion]]]:
        settings = self._settings
        drawing = self._drawing
        table = sample_table(
            settings.layout.completions,
            drawing,
            start_model=settings.layout.start_model,
            dtype=settings.model.dtype,
            sampler=settings.sampler,
        )
        confirm = confirming(
            settings.model,
            drawing.model,
            tokens_per_microbatch=settings.probe_tokens,
            threads=max(1, int(settings.sampler.cpus)),
        )
        return sampled(self._engines, drawing, table, confirm)

    def _rate(self, call: int, completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        first = call * PROMPTS_PER_CALL + 1
        answered = enumerate(zip(self._drawing.members(call), completions, strict=True), start=first)
        return self._rewards.rate([Group.of(row, prompt, answers) for row, (prompt, answers) in answered])


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
