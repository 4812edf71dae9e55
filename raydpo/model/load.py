"""Loading models."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from raydpo.errors import UserError, reason
from raydpo.model.directory import model_directory
from raydpo.model.finite import NOT_FINITE
from raydpo.model.model_files import check_model_files
from raydpo.model.probe import choose_layout, switch_off_dropout

disable_progress_bar()
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_model(path: str, *, dtype: str, device: torch.device | str = "cpu", headless: bool = False) -> PreTrainedModel:
    """A causal language model with every dropout off, and packed attention where that is exact.

    headless: the files may lack the output matrix, as those of a reward model do; the embeddings then stand in for it,
    so that the probe has something to look at.

    Dropout is off because policy and reference must be the same function at step 0. Raises UserError when no model can
    be made of the directory, when weights are missing from the checkpoint or have other shapes (they would be random),
    when a pickled one is not finite, and for what the probe finds (raydpo.model.probe).
    """
    model_directory(path)
    config = _read_config(path)
    _refuse_batch_dependent_rope(path, config)
    _switch_off_dropout(config)
    try:
        lm, info = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"model {path!r} has no readable weights; export it again, whole ({error}).") from error
    except Exception as error:  # a configuration of other people's, to code of other people's: anything may come out
        raise _unusable(path, error) from error
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise _another_shape(path, name, found, expected)
    missing = set(info["missing_keys"])
    if headless:
        missing -= _stand_in_for_output(lm, missing)
    if missing:
        raise UserError(f"model {path!r} lacks weights: {sorted(missing)[:5]}; export it again, whole.")
    if not any(Path(path).glob("*.safetensors")):  # weights_digest looks at those, before anything is loaded
        _refuse_not_finite(path, lm)
    _freeze_as_made(lm)
    return choose_layout(switch_off_dropout(lm.to(device).eval()), name=path)


@torch.no_grad()
def _stand_in_for_output(lm: PreTrainedModel, missing: set[str]) -> set[str]:
    """Fill a missing output matrix with the embeddings, where their shapes agree; returns its names."""
    output = lm.get_output_embeddings()
    names = {name for name, each in lm.named_parameters(remove_duplicate=False) if each is output.weight} & missing
    embeddings = lm.get_input_embeddings().weight
    if names and embeddings.shape == output.weight.shape:  # else random numbers, which the loader has put there
        output.weight.copy_(embeddings)
    return names


def _freeze_as_made(lm: PreTrainedModel) -> None:
    """Loading makes every parameter trainable, also those that a class freezes, such as ERNIE's balance of experts.

    They get no gradient, but an optimizer's weight decay would shrink them.
    """
    with torch.device("meta"):
        made = dict(type(lm)._from_config(deepcopy(lm.config)).named_parameters())
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(made[name].requires_grad)


def _switch_off_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout in the configuration to 0, where some modules read it when they are made.

    What is left, the probe finds (raydpo.model.probe).
    """
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float):  # hidden_dropout_prob, attn_pdrop, layerdrop
                setattr(part, name, 0.0)


def check_loadable(path: str) -> None:
    """Raise UserError where load_model would find the configuration unusable or weights of other shapes; loads none."""
    found = check_model_files(path)
    config = _read_config(path)
    try:
        with torch.device("meta"):
            expected = AutoModelForCausalLM.from_config(config).state_dict()
    except Exception as error:  # as in load_model
        raise _unusable(path, error) from error
    for name in sorted(expected.keys() & found.keys()):
        if list(expected[name].shape) != found[name]:
            raise _another_shape(path, name, found[name], expected[name].shape)


def _read_config(path: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path)
    except Exception as error:  # transformers checks the values, each family in its own way
        raise _unusable(path, error) from error


def _unusable(path: str, error: Exception) -> UserError:
    return UserError(
        f"model {path!r} cannot be loaded as its config.json says ({reason(error)}); copy or export it again, whole."
    )


def _refuse_not_finite(path: str, lm: PreTrainedModel) -> None:
    for name, weight in lm.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"model {path!r}: the weight {name} {NOT_FINITE}")


def _another_shape(path: str, name: str, found: Sequence[int], expected: Sequence[int]) -> UserError:
    return UserError(
        f"model {path!r}: {name} has the shape {tuple(found)}, and by its config.json it should have "
        f"{tuple(expected)}; copy or export the model again, whole."
    )


def _refuse_batch_dependent_rope(path: str, config: PreTrainedConfig) -> None:
    """Rotary embeddings that change with the longest row of a batch: no two batches would agree on a log-prob."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {str(each.get("rope_type")) for each in (rope, *rope.values()) if isinstance(each, dict)}
    if kinds & {"dynamic", "longrope"}:
        raise UserError(
            f"model {path!r} has rope_type {sorted(kinds)}: its positions depend on the longest row of a batch, so "
            "stored reference log-probs would not hold for another batch; set a fixed rope_type in its config.json."
        )
