"""Where a model's files are, and a name for what is in them. No torch: run files are checked before it loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from raydpo.errors import UserError
from raydpo.model.finite import check_finite

_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation"}
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # as architectures call it
_TEXT_FILES = ["*token*", "vocab.*", "merges.txt", "*.jinja", "generation_config.json"]
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def model_directory(path: str) -> Path:
    """The local directory of a model, given as one or as a hub name (whose files are fetched into the hub's cache).

    Raises UserError when there is no such model.
    """
    if (Path(path) / "config.json").is_file():
        return Path(path)
    remedy = "give a directory in Hugging Face format (config.json, tokenizer files, *.safetensors)"
    if Path(path).exists():
        raise UserError(f"model {path!r} has no config.json; {remedy}.")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"model {path!r} does not exist; {remedy}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=_FILES))
    except (OSError, ValueError) as error:  # what the hub client raises for no network and for no such model
        raise UserError(
            f"model {path!r} is neither a directory nor a model the hub hands out ({error}); {remedy}."
        ) from error


def model_config(path: str) -> dict[str, Any]:
    """config.json of a model. Raises UserError where it cannot be read."""
    return read_json_object(model_directory(path) / "config.json")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model; models of several kinds of input nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def positions(config: Mapping[str, Any]) -> int | None:
    """How many positions a config.json says the model has; None where it does not say."""
    text = text_config(config)
    known = [text[name] for name in _POSITIONS if isinstance(text.get(name), int)]
    return min(known, default=None)


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON object of a model's directory. Raises UserError where the file is none, or cannot be read."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); make it readable, or copy it again.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); copy it again, whole.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} is not a JSON object; copy it again, whole.")
    return tree


def weights_digest(path: str) -> str:
    """A name for what the model computes: a hash of its weight files and of the configuration that gives them meaning.

    Moving or renaming the directory keeps it; one changed weight changes it. A process reads the files once, and
    trusts their sizes and times from then on. Raises UserError for a model without weights, and for a safetensors file
    that is cut short or holds a number that is not finite.
    """
    directory = model_directory(path)
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    if not files:
        raise UserError(f"model {path!r} has no *.safetensors or *.bin weights; export it again, whole.")
    return _digest(tuple(_version(file) for file in (directory / "config.json", *files)))


def _version(file: Path) -> tuple[Path, int, int]:
    """A file as it is now: its path, bytes and time of change in nanoseconds."""
    status = file.stat()
    return file, status.st_size, status.st_mtime_ns


@cache  # entries are small, and a run may have any number of exports
def _digest(versions: tuple[tuple[Path, int, int], ...]) -> str:
    """Of the configuration, which comes first, and the weight files."""
    configuration, *files = [file for file, *_ in versions]
    config = read_json_object(configuration)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps({k: v for k, v in config.items() if k not in _VOLATILE}, sort_keys=True).encode())
    for file in files:
        if file.suffix == ".safetensors":
            check_finite(file)
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def text_digest(path: str) -> str:
    """A name for what turns a model's ids into text and ends its completions: tokenizer files and generation config."""
    digest = hashlib.blake2b(digest_size=16)
    directory = model_directory(path)
    for file in sorted(file for pattern in _TEXT_FILES for file in directory.glob(pattern)):
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
