"""Loading models."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from raydpo.config.errors import UserError
from raydpo.model.directory import model_directory
from raydpo.model.trial import choose_layout

disable_progress_bar()
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_model(path: str, *, dtype: str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model with every dropout off, and packed attention where that is exact.

    Dropout is off because policy and reference must be the same function at step 0. Raises UserError when weights are
    missing from the checkpoint (they would be random) or no layout gives the model's own log-probs.
    """
    model_directory(path)
    config = AutoConfig.from_pretrained(path)
    _refuse_batch_dependent_rope(path, config)
    # Before the modules are made: some keep the probability as a number of their own.
    for name in [key for key in config.to_dict() if key.endswith(("dropout", "drop"))]:
        setattr(config, name, 0.0)
    try:
        lm, info = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=DTYPES[dtype], output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"model {path!r} has no readable weights; export it again, whole ({error}).") from error
    missing = set(info["missing_keys"])
    if missing:
        raise UserError(f"model {path!r} lacks weights: {sorted(missing)[:5]}; export it again, whole.")
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return choose_layout(lm.to(device).eval(), name=path)


def _refuse_batch_dependent_rope(path: str, config: PreTrainedConfig) -> None:
    """Rotary embeddings that change with the longest row of a batch: no two batches would agree on a log-prob."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {str(each.get("rope_type")) for each in (rope, *rope.values()) if isinstance(each, dict)}
    if kinds & {"dynamic", "longrope"}:
        raise UserError(
            f"model {path!r} has rope_type {sorted(kinds)}: its positions depend on the longest row of a batch, so "
            "stored reference log-probs would not hold for another batch; set a fixed rope_type in its config.json."
        )
