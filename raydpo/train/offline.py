"""A commit turned into a model without its run: no cluster, no process group, no DeepSpeed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raydpo.errors import UserError
from raydpo.model.load import load_model
from raydpo.model.reward_model import averaged, save_reward_model
from raydpo.storage.files import tree_to_disk
from raydpo.train.checkpoint.commits import Commit
from raydpo.train.checkpoint.state import WEIGHT, SavedState
from raydpo.train.checkpoint.untrained import as_tensor, untrained_tensors
from raydpo.train.mark import mark_export


def export_commit(commit: Commit, directory: Path) -> Path:
    """Write a verified commit's weights as safetensors with configuration and tokenizer, for transformers and vLLM.

    The directory gets its name when the model has been reloaded and every weight compared. UserError when it exists, or
    when the commit lacks a tensor that belongs to the model and was not trained.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already; name a directory that does not.")
    model = commit.path / "model"
    config = AutoConfig.from_pretrained(model)
    saved = SavedState(commit.path)
    weights = {name: torch.from_numpy(saved.whole(WEIGHT, name)).to(config.dtype) for name in saved.shapes}
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with torch.device("meta"):  # its shape is needed, its numbers are not
            lm = _class_of(config).from_config(config)
        weights |= _untrained(lm, saved, commit)
        if (model / "generation_config.json").exists():  # a reward model has none
            lm.generation_config = GenerationConfig.from_pretrained(model)
        _save(lm, AutoTokenizer.from_pretrained(model), temporary, weights, commit)
        mark_export(temporary, identity=commit.cursor.identity, step=commit.cursor.step)
        tree_to_disk(temporary)
        _compare(temporary, weights, config)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _class_of(config: PreTrainedConfig) -> Any:
    """Which of transformers' classes loads it; what was trained says so in its configuration."""
    return AutoModelForSequenceClassification if _is_rewarding(config) else AutoModelForCausalLM


def _is_rewarding(config: PreTrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _save(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, Tensor],
    commit: Commit,
) -> None:
    cursor = commit.cursor
    if _is_rewarding(lm.config):
        save_reward_model(lm, tokenizer, directory, weights, identity=cursor.identity, step=cursor.step)
    else:
        lm.save_pretrained(directory, state_dict=dict(weights))  # it empties what it is given
        tokenizer.save_pretrained(directory)


def _untrained(lm: PreTrainedModel, saved: SavedState, commit: Commit) -> dict[str, Tensor]:
    lacking = sorted(untrained_tensors(lm).keys() - saved.untrained.keys() - saved.shapes.keys())
    if lacking:
        raise UserError(
            f"{commit.path} does not hold {lacking[:5]}, which are part of the model: an older version of raydpo saved "
            "it. Run the training's command again; where it goes on, the next commit and the exports hold them."
        )
    return {name: as_tensor(tensor) for name, tensor in saved.untrained.items()}


def _compare(path: Path, weights: dict[str, Tensor], config: PreTrainedConfig) -> None:
    if _is_rewarding(config):
        lm = AutoModelForSequenceClassification.from_pretrained(path, dtype=config.dtype)
        weights = averaged(weights)
    else:
        lm = load_model(str(path), dtype=str(config.dtype).removeprefix("torch."))
    reloaded = dict(lm.named_parameters()) | untrained_tensors(lm)
    for name, weight in weights.items():
        # Some models have a few weights in float32 whatever they are asked for.
        if not torch.equal(reloaded[name].to(weight.dtype), weight):
            raise RuntimeError(f"{name} of the export at {path} is not the commit's.")
