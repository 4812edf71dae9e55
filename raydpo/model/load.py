"""Loading models and tokenizers, and naming weights by their content."""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from raydpo.config.errors import UserError
from raydpo.model import attention
from raydpo.model.directory import model_directory

disable_progress_bar()
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation"}


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer that stands beside the model."""
    model_directory(path)
    return AutoTokenizer.from_pretrained(path)


def load_model(path: str, *, dtype: str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model with segment attention and every dropout off.

    Dropout is off because policy and reference must be the same function at step 0. Raises UserError when weights are
    missing from the checkpoint (they would be random) or the model cannot take the packed layout.
    """
    model_directory(path)
    config = AutoConfig.from_pretrained(path)
    _refuse_unsupported(path, config.to_dict())
    # Before the modules are made: some keep the probability as a number of their own.
    for name in [key for key in config.to_dict() if key.endswith(("dropout", "drop"))]:
        setattr(config, name, 0.0)
    try:
        lm, info = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=DTYPES[dtype], attn_implementation=attention.NAME, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"model {path!r} has no readable weights; export it again, whole ({error}).") from error
    missing = set(info["missing_keys"])
    if missing:
        raise UserError(f"model {path!r} lacks weights: {sorted(missing)[:5]}; export it again, whole.")
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return lm.to(device)


def _refuse_unsupported(path: str, config: dict[str, object]) -> None:
    if not config.get("use_sliding_window", True):
        config = config | {"sliding_window": None}
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling", "sliding_window"):
        if config.get(key) not in (None, 0, 1):
            raise UserError(
                f"model {path!r} has {key}={config[key]}, which packed rows do not support yet; use a model without it."
            )


def weights_digest(path: str) -> str:
    """A name for what the model computes: a hash of its weight files and of the configuration that gives them meaning.

    Moving or renaming the directory keeps it; one changed weight changes it.
    """
    directory = model_directory(path)
    config = json.loads((directory / "config.json").read_text())
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps({k: v for k, v in config.items() if k not in _VOLATILE}, sort_keys=True).encode())
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    if not files:
        raise UserError(f"model {path!r} has no *.safetensors or *.bin weights; export it again, whole.")
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
