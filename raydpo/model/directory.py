"""Where a model's files are, and a name for what is in them. No torch: run files are checked before it loads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from raydpo.config.errors import UserError

_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation"}
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
