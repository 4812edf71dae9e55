"""What the files of a model say by themselves: whether raydpo can use it. No torch: run files are checked before it.

Weights are looked at by their headers alone: names, shapes and sizes, not values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from raydpo.data.limits import ModelLimits
from raydpo.errors import UserError
from raydpo.model.directory import model_config, model_directory, positions, read_json_object, text_config
from raydpo.model.families import TABLED_POSITIONS, causal_models, known_types

Shapes = dict[str, list[int]]  # of the tensors of a model, by name

_INDEX = "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"  # transformers and vLLM read them; they have no header to look at
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_EXPORT_AGAIN = "copy or export the model again, whole"
_USE_ANOTHER = "use a causal language model of a family that transformers has"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")  # a row a token, in most families
# Heads that predict the next token; a class with another one was trained for something else.
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "Model")


def check_model_files(path: str) -> Shapes:
    """The shapes of a model's weights, as far as they have headers.

    Raises UserError where the files show that it cannot be used: of another kind, quantised, or not whole.
    """
    config = model_config(path)
    _check_kind(path, config)
    shapes = _check_weights(model_directory(path))
    _check_vocabulary(path, config, shapes)
    return shapes


def model_limits(path: str) -> ModelLimits:
    """What a model can read, by its config.json. Positions that are computed, such as rotary ones, bound nothing."""
    config = model_config(path)
    text = text_config(config)
    vocabulary = text.get("vocab_size")
    return ModelLimits(
        model=path,
        vocabulary=vocabulary if isinstance(vocabulary, int) else None,
        positions=positions(config) if text.get("model_type") in TABLED_POSITIONS else None,
    )


def _check_kind(path: str, config: Mapping[str, Any]) -> None:
    file = model_directory(path) / "config.json"
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{file} names no model_type; {_EXPORT_AGAIN}.")
    if kind not in known_types() and config.get("auto_map"):
        raise UserError(
            f"{file}: model_type {kind!r} comes with code of its own (auto_map), which raydpo does not run; "
            f"{_USE_ANOTHER}."
        )
    if kind not in known_types():
        raise UserError(
            f"{file}: model_type {kind!r} is unknown to the installed transformers; check the spelling, install a "
            f"transformers that has it, or {_USE_ANOTHER}."
        )
    if config.get("quantization_config"):
        raise UserError(
            f"{file}: the weights are quantised ({_method(config['quantization_config'])}), which training and the "
            "log-probs of a reference cannot use; take the model's bfloat16 or float32 weights, or save it dequantised."
        )
    if kind not in causal_models():
        raise UserError(f"{file}: model_type {kind!r} has no causal language model; {_USE_ANOTHER}.")
    if config.get("is_encoder_decoder"):
        raise UserError(f"{file}: the model is an encoder-decoder, and raydpo trains decoders; {_USE_ANOTHER}.")
    _check_head(file, config.get("architectures"), causal_models()[kind])


def _check_head(file: Path, architectures: Any, expected: str) -> None:
    named = architectures if isinstance(architectures, list) else []
    if named and not any(name == expected or str(name).endswith(_CAUSAL_ENDINGS) for name in named):
        raise UserError(
            f"{file}: the weights are those of {named[0]}, not of a causal language model ({expected}); "
            "take the language model that it was made from."
        )


def _method(quantization: Any) -> str:
    return str(quantization.get("quant_method", "unknown method") if isinstance(quantization, dict) else quantization)


def _check_weights(directory: Path) -> Shapes:
    """The shapes of all tensors, none of pickled ones. UserError unless the files that should be there are whole."""
    # In this order transformers looks for them.
    if (directory / "model.safetensors").is_file():
        return _shapes(directory / "model.safetensors")
    if (directory / _INDEX).is_file():
        return _indexed_shapes(directory)
    if (directory / _PICKLED).is_file():
        return {}
    if (directory / _PICKLED_INDEX).is_file():
        _indexed_files(directory / _PICKLED_INDEX)
        return {}
    if (directory / "adapter_config.json").is_file():
        raise UserError(f"model {str(directory)!r} is an adapter; merge it into its base model, and give the result.")
    others = sorted(file.name for pattern in ("*.safetensors", "*.bin") for file in directory.glob(pattern))
    if others:
        raise UserError(
            f"model {str(directory)!r} has {others[0]}, and neither model.safetensors nor {_INDEX}, which says where "
            f"each tensor is; {_EXPORT_AGAIN}."
        )
    raise UserError(f"model {str(directory)!r} has no *.safetensors or *.bin weights; export it again, whole.")


def _indexed_shapes(directory: Path) -> Shapes:
    shapes: Shapes = {}
    for file, expected in _indexed_files(directory / _INDEX).items():
        found = _shapes(file)
        absent = sorted(expected - found.keys())
        if absent:
            raise UserError(f"{file} lacks {absent[0]}, which {_INDEX} says it holds; {_EXPORT_AGAIN}.")
        shapes |= found
    return shapes


def _indexed_files(index: Path) -> dict[Path, set[str]]:
    """The tensors that each file of an index should hold. UserError for a file that is not there."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; {_EXPORT_AGAIN}.")
    files: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        files.setdefault(index.parent / str(name), set()).add(tensor)
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, and {index.name} names it; copy it there, or export the model again.")
    return files


def _shapes(file: Path) -> Shapes:
    """Shapes from the header; its own library also holds the header against the size of the file."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118, no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}); {_EXPORT_AGAIN}.") from error


def _check_vocabulary(path: str, config: Mapping[str, Any], shapes: Shapes) -> None:
    size = text_config(config).get("vocab_size")
    embeddings = {name: shape for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)}
    for name, shape in embeddings.items():
        if isinstance(size, int) and shape and shape[0] < size:
            raise UserError(
                f"model {path!r}: {name} has {shape[0]} rows, and vocab_size={size} in its config.json; "
                f"{_EXPORT_AGAIN}."
            )
