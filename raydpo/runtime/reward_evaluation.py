"""The evaluation of a trained reward model on the run's held-out pairs, in a task of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from raydpo.config.schema import Training
from raydpo.data.shards import TokenManifest, read_shard, to_rows
from raydpo.data.sources import row_sources
from raydpo.evaluate.reward_model import VERSION, measure
from raydpo.evaluate.rewarded import rewarded_pairs
from raydpo.model.rate import rate_rows
from raydpo.model.reward_card import HeldOut, read_card
from raydpo.model.reward_model import load_reward_model
from raydpo.reference.dataset import MANIFEST, open_dataset
from raydpo.runtime.cluster.device import granted_device
from raydpo.storage.files import write_json
from raydpo.track.say import say
from raydpo.workspace.identity import TrainingSettings
from raydpo.workspace.layout import Layout
from raydpo.workspace.provenance import INPUTS


def evaluate_reward_model(settings: TrainingSettings, layout: Layout) -> dict[str, Any] | None:
    """Measure the export of the reward stage on the held-out pairs, and put accuracy and spread on its card.

    The record is kept beside the export and made again only where the model or the rows are others. None, said in the
    log, where no pairs are held out.
    """
    manifest = layout.held_out_tokens / MANIFEST
    if not manifest.exists():
        say("reward: no pairs are held out, so nothing is measured; set data.held_out or data.held_out_fraction")
        return None
    card = read_card(str(layout.reward_export))
    made_from = {
        "identity": card.identity,
        "step": card.step,
        "tokens": TokenManifest.read(manifest).digest,
        "version": VERSION,
    }
    found = _kept(layout.reward_evaluation, made_from)
    if found is None:
        asked = {"num_cpus": settings.training.workers.cpus, "num_gpus": settings.training.workers.gpus}
        task = _measure.options(**asked)
        figures = ray.get(task.remote(layout.reward_export, layout.held_out_tokens, settings.dtype, settings.training))
        found = {"made_from": made_from, **figures}
        write_json(layout.reward_evaluation, found)
    held_out = HeldOut(found["pairs"], found["accuracy"]["mean"], found["reward_mean"], found["reward_spread"])
    replace(card, held_out=held_out).write(layout.reward_export)
    say(_in_short(found))
    return found


def _in_short(found: dict[str, Any]) -> str:
    """Accuracy beside the rules by length, and calibration, in a line."""
    accuracy = found["accuracy"]
    return (
        f"reward: right on {accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] of {found['pairs']} "
        f"held-out pairs of {accuracy['groups']} prompts; longer wins {found['longer_wins']['mean']:.3f}, shorter wins "
        f"{found['shorter_wins']['mean']:.3f}; calibration error {found['expected_calibration_error']:.3f}"
    )


def _kept(path: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The record where it is of this model and these rows."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or cut: it is made again
        return None
    return found if found.get("made_from") == made_from else None


@ray.remote
def _measure(export: Path, tokens: Path, dtype: str, training: Training) -> dict[str, Any]:
    torch.set_num_threads(max(1, int(training.workers.cpus)))
    device = granted_device()
    model = load_reward_model(str(export), dtype=dtype, device=device)
    rows = [row for path in open_dataset(tokens).shards for row in to_rows(read_shard(Path(path)))]
    rewards = rate_rows(model, rows, tokens_per_microbatch=training.tokens_per_microbatch, device=device)
    manifest = TokenManifest.read(tokens / MANIFEST)
    sources = row_sources(manifest.shards, rows, files=sorted(manifest.made_from[INPUTS]))
    return measure(rewarded_pairs(rows, rewards, sources))
