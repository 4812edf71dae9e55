"""Samples by way of the table: what was drawn before is read, and what was not is drawn, confirmed and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raydpo.config.schema import Sampler
from raydpo.data.prompts import Prompt
from raydpo.model.directory import text_digest, weights_digest
from raydpo.rollout.engine import Completion
from raydpo.rollout.samples import SampleTable
from raydpo.runtime.pools.sampling import Drawing, Samplers

# Version of what draws, to be raised with a vLLM that draws otherwise. 1 drew from a former model's head where
# embeddings are tied.
DRAWN_BY = 2

# Raises where completions, one for each prompt and with log-probs, are not by the model that was to draw them.
Confirm = Callable[[Sequence[Prompt], Sequence[Completion]], object]


def sampled(
    engines: Samplers, drawing: Drawing, table: SampleTable, confirm: Confirm
) -> Iterator[list[list[Completion]]]:
    """The completions of call after call, by prompt. What the table lacks is drawn, and kept as each call is done.

    confirm is asked about a call that came with log-probs before that is kept, and so about each actor before anything
    of its is.
    """
    missing = [call for call in range(drawing.calls) if not table.has(drawing.request(call))]
    fresh = engines.draw(drawing, missing)
    waiting = set(missing)
    for call in range(drawing.calls):
        while call in waiting:
            arrived, completions = next(fresh)
            _confirm(drawing.members(arrived), completions, confirm)
            table.write(drawing.request(arrived), completions)
            waiting.remove(arrived)
        yield table.read(drawing.request(call))


def drawn_by(drawing: Drawing, *, start_model: str, dtype: str, sampler: Sampler) -> dict[str, Any]:
    """All that decides a completion besides prompt, seed and decoding. max_model_len cuts it; a GPU rounds otherwise.

    start_model: whose tokenizer makes text of ids, and whose stop tokens end a completion. Reads the weights.
    """
    return {
        "version": DRAWN_BY,
        "weights": weights_digest(drawing.model),
        "text": text_digest(start_model),
        "dtype": dtype,
        "max_model_len": sampler.max_model_len,
        "gpu": sampler.gpus > 0,
    }


def sample_table(root: Path, drawing: Drawing, *, start_model: str, dtype: str, sampler: Sampler) -> SampleTable:
    """Where a drawing's completions are kept below root."""
    by = drawn_by(drawing, start_model=start_model, dtype=dtype, sampler=sampler)
    return SampleTable(root, by | {"decoding": drawing.decoding.named()})


def _confirm(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], confirm: Confirm) -> None:
    probed = [(prompt, answers[0]) for prompt, answers in zip(prompts, completions, strict=True) if answers[0].logps]
    if probed:
        confirm([prompt for prompt, _ in probed], [completion for _, completion in probed])
