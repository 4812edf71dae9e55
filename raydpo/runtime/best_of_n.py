"""The bestofn stage: many completions of the reference for each prompt, rated, and what the best of N is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydpo.config.schema import BestOfN, Data, Evaluate, Model, Sampler
from raydpo.data.prompts import contents_hash, prompts_hash, read_prompts, texts_hash
from raydpo.model.tokenizer import load_row_tokenizer
from raydpo.report.best_of_n import VERSION, best_of_n_table, read_best_of_n, tabulate, write_best_of_n
from raydpo.reward.contract import Group
from raydpo.rollout.engine import Completion
from raydpo.runtime.pools.probing import confirming
from raydpo.runtime.pools.rewards import reward_process
from raydpo.runtime.pools.sampled import Confirm, drawn_by, sample_table, sampled
from raydpo.runtime.pools.sampling import PROMPTS_PER_CALL, Drawing, Samplers
from raydpo.track.progress import Progress
from raydpo.track.say import say
from raydpo.workspace.layout import Layout
from raydpo.workspace.rewards import RewardSettings, reward_source

BLOCK = 16  # completions of a prompt that are drawn together; more are asked for by further blocks
# Between the seeds of two blocks, so that no prompt has one twice. A CPU's generator takes the lower 32 bits of a seed
# alone: seeds further apart than that would draw the same completions again.
SEEDS_APART = 1 << 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BestOfNSettings:
    """What a run file says of its Best-of-N."""

    layout: Layout
    seed: int
    model: Model
    data: Data
    sampler: Sampler
    best_of_n: BestOfN
    evaluate: Evaluate  # with the prompts of best_of_n; its reward is the true one
    rating: RewardSettings

    @property
    def selecting(self) -> list[str]:
        """The rewards that select."""
        return self.best_of_n.rewards or [self.evaluate.reward]


def best_of_n(settings: BestOfNSettings, engines: Samplers) -> dict[str, Any]:
    """Draw from the reference, rate, and write and print what Best-of-N is worth. Done once for the same things.

    What is drawn and rated is kept call by call: a stage that was ended goes on where it stopped, and one that is asked
    for more samples draws and rates those alone.
    """
    layout = settings.layout
    drawing = _drawing_of(settings)
    made_from = _made_from(settings, drawing)
    found = read_best_of_n(layout.best_of_n)
    if found and found.made_from == made_from:
        say(f"bestofn: {layout.best_of_n} is there already")
    else:
        found = tabulate(
            _rewards(settings, drawing, engines),
            [prompt.text for prompt in drawing.prompts],
            true_reward=settings.evaluate.reward,
            selecting=settings.selecting,
            ns=settings.best_of_n.n,
            made_from=made_from,
        )
        write_best_of_n(found, layout.best_of_n)
    say(best_of_n_table(found))
    return {
        "best_of_n": str(layout.best_of_n),
        "prompts": found.prompts,
        "samples": found.samples,
        "reference": found.reference.mean,
        "rewards": {f"best of {each.n} by {each.selected_by}": each.reward.mean for each in found.selections},
    }


def _drawing_of(settings: BestOfNSettings) -> Drawing:
    """The first block; the others have other seeds."""
    layout = settings.layout
    data = settings.data
    asked = settings.evaluate
    tokenizer = load_row_tokenizer(layout.start_model, data.date, data.chat_template)
    prompts = read_prompts(asked.prompts, asked.column, tokenizer, limit=asked.limit, ignore=data.ignore)
    return Drawing(layout.reference_model, prompts, asked.decoding, BLOCK, settings.seed)


def blocks_of(asked: BestOfN, first: Drawing) -> list[Drawing]:
    """As many blocks as hold the samples that are asked for."""
    number = -(-asked.samples_per_prompt // BLOCK)
    return [replace(first, seed=first.seed + block * SEEDS_APART) for block in range(number)]


def _drawn_from(settings: BestOfNSettings, drawing: Drawing) -> dict[str, Any]:
    """All that decides a sample by its number, whatever number is asked for."""
    by = drawn_by(
        drawing, start_model=settings.layout.start_model, dtype=settings.model.dtype, sampler=settings.sampler
    )
    return by | {
        "decoding": drawing.decoding.named(),
        "prompts": prompts_hash([prompt.ids for prompt in drawing.prompts]),
        "texts": texts_hash([prompt.text for prompt in drawing.prompts]),  # two texts may have the same ids
        "seed": drawing.seed,
        "block": BLOCK,
        "seeds_apart": SEEDS_APART,
    }


def _made_from(settings: BestOfNSettings, drawing: Drawing) -> dict[str, Any]:
    """All that decides a number of the record; the report holds some of it against the evaluations'."""
    asked = settings.evaluate
    return _drawn_from(settings, drawing) | {
        "contents": contents_hash(asked.prompts, asked.column, limit=asked.limit, ignore=settings.data.ignore),
        "samples": settings.best_of_n.samples_per_prompt,
        "n": sorted(set(settings.best_of_n.n)),
        "scorer": asked.reward,
        "rewards": {name: reward_source(settings.rating, name) for name in [asked.reward, *settings.selecting]},
        "record_version": VERSION,
    }


def _rewards(settings: BestOfNSettings, first: Drawing, engines: Samplers) -> dict[str, Floats]:
    """[P, M] rewards of the samples, by the name of the reward."""
    blocks = blocks_of(settings.best_of_n, first)
    names = list(dict.fromkeys([settings.evaluate.reward, *settings.selecting]))
    found = {name: np.empty((len(first.prompts), len(blocks) * BLOCK)) for name in names}
    with ExitStack() as stack:
        raters = {name: stack.enter_context(reward_process(name, settings.rating)) for name in names}
        progress = stack.enter_context(Progress("bestofn", total=found[names[0]].size, unit="completions"))
        for block, call, completions in _completions(settings, blocks, engines):
            rows = slice(call * PROMPTS_PER_CALL, call * PROMPTS_PER_CALL + len(completions))
            groups = _groups(first, call, completions)
            for name, rater in raters.items():
                found[name][rows, block * BLOCK : (block + 1) * BLOCK] = rater.rate(groups)
            progress.advance(len(completions) * BLOCK)
    return {name: values[:, : settings.best_of_n.samples_per_prompt] for name, values in found.items()}


def _completions(
    settings: BestOfNSettings, blocks: Sequence[Drawing], engines: Samplers
) -> Iterator[tuple[int, int, list[list[Completion]]]]:
    """Block, call and completions, one call after the other."""
    layout = settings.layout
    table = sample_table(
        layout.completions,
        blocks[0],
        start_model=layout.start_model,
        dtype=settings.model.dtype,
        sampler=settings.sampler,
    )
    confirm: Confirm = confirming(
        settings.model,
        layout.reference_model,
        tokens_per_microbatch=settings.evaluate.tokens_per_batch,
        threads=max(1, int(settings.sampler.cpus)),
    )
    for block, drawing in enumerate(blocks):
        for call, completions in enumerate(sampled(engines, drawing, table, confirm)):
            yield block, call, completions


def _groups(drawing: Drawing, call: int, completions: Sequence[Sequence[Completion]]) -> list[Group]:
    answered = zip(drawing.members(call), completions, strict=True)
    return [Group.of(row, *both) for row, both in enumerate(answered, start=call * PROMPTS_PER_CALL + 1)]
