"""Where a model's files are. Light to import: run files are checked with it before torch loads."""

from __future__ import annotations

from pathlib import Path

from raydpo.config.errors import UserError

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
