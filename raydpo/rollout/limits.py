"""What no vLLM engine takes, found before one starts: lengths that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydpo.config.schema import Decoding, Sampler
from raydpo.data.prompts import Prompt
from raydpo.errors import UserError
from raydpo.model.directory import positions, text_config


def check_positions(model: str, config: Mapping[str, Any], settings: Sampler) -> None:
    """Raise UserError where the engine would have to read beyond the model's positions. config: its config.json."""
    text = text_config(config)
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) != "default":
        return  # stretched positions: how far is vLLM's to say
    known = positions(config)
    if known is not None and settings.max_model_len > known:
        raise UserError(
            f"sampler.max_model_len={settings.max_model_len} is more than the {known} positions of model {model!r}; "
            f"set it to {known} or less."
        )


def check_prompts(prompts: Sequence[Prompt], decoding: Decoding, settings: Sampler) -> None:
    """Raise UserError for the longest prompt where its completion would be cut short for want of room."""
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    need = len(longest.ids) + decoding.max_tokens
    if need > settings.max_model_len:
        raise UserError(
            f"{longest.where} has a prompt of {len(longest.ids)} tokens; with max_tokens={decoding.max_tokens} it "
            f"needs {need}, and sampler.max_model_len={settings.max_model_len}. Set max_model_len to {need} or more, "
            "lower max_tokens, or remove the row."
        )
