"""What the files of a tokenizer say by themselves. No transformers: run files are checked before it loads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from raydpo.errors import UserError
from raydpo.model.directory import model_directory, read_json_object, text_config

# Each of these alone makes a tokenizer; the rest are settings beside it.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")
_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_VOLATILE = {"name_or_path", "_name_or_path", "transformers_version", "tokenizer_file", "special_tokens_map_file"}
# These take special tokens from files alone; classes of one family bring defaults of their own.
_WITHOUT_DEFAULTS = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def check_tokenizer_files(path: str, *, needs_eos: bool = False) -> None:
    """Raise UserError where a model's directory has no tokenizer, a file that is not whole, or, if needed, no EOS."""
    directory = model_directory(path)
    if not _matching(directory, _VOCABULARIES):
        raise UserError(
            f"model {path!r} has no tokenizer (none of {', '.join(_VOCABULARIES)}); copy the tokenizer's files beside "
            "its config.json, or save it there with save_pretrained."
        )
    trees = {file.name: read_json_object(file) for file in _matching(directory, (*_VOCABULARIES, *_SETTINGS), ".json")}
    whole = trees.get("tokenizer.json")
    if whole is not None and not isinstance(whole.get("model"), dict):
        raise UserError(f"{directory / 'tokenizer.json'} describes no tokenizer; save it again with save_pretrained.")
    settings = trees.get("tokenizer_config.json", {})
    named = settings.get("eos_token") or trees.get("special_tokens_map.json", {}).get("eos_token")
    if needs_eos and not named and settings.get("tokenizer_class") in _WITHOUT_DEFAULTS:
        raise UserError(
            f"model {path!r}: its tokenizer has no eos_token, so no completion can be ended; set eos_token in "
            f"{directory / 'tokenizer_config.json'}, or data.append_eos: false where the completions bring their own "
            "end."
        )


def tokenizer_digest(path: str, chat_template: str | None = None) -> str:
    """A name for what the tokenizer does: a hash of its files' contents, and of the stop tokens.

    Moving or renaming the directory keeps it; one changed token, template or special token changes it. chat_template: a
    file with the template that it is used with instead of its own.
    """
    directory = model_directory(path)
    digest = hashlib.blake2b(digest_size=16)
    for file in _matching(directory, (*_VOCABULARIES, *_SETTINGS)):
        content = file.read_bytes()
        if file.name == "tokenizer_config.json":
            tree = read_json_object(file)
            kept = {key: value for key, value in tree.items() if key not in _VOLATILE}
            content = json.dumps(kept, sort_keys=True).encode()
        digest.update(f"{file.relative_to(directory)} {len(content)} ".encode())
        digest.update(content)
    digest.update(json.dumps(stop_ids(path)).encode())
    if chat_template:
        digest.update(read_chat_template(chat_template).encode())
    return digest.hexdigest()


def read_chat_template(path: str) -> str:
    """A chat template of a file of its own. UserError where it cannot be read, or is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template: {path} cannot be read ({error}); give a template as text.") from error
    if not text.strip():
        raise UserError(f"data.chat_template: {path} is empty; give a template.")
    return text


def chat_template_digest(path: str) -> str:
    """A name for what a chat template of a file of its own says. Raises UserError as read_chat_template does."""
    return hashlib.blake2b(read_chat_template(path).encode(), digest_size=16).hexdigest()


def stop_ids(path: str) -> list[int]:
    """At which tokens the model's generation ends by its own configuration, in ascending order.

    As transformers and vLLM read it: generation_config.json where it is there and says so, else config.json.
    """
    directory = model_directory(path)
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        if not file.is_file():
            continue
        tree = read_json_object(file)
        said = tree.get("eos_token_id", text_config(tree).get("eos_token_id"))
        if said is None:
            continue
        ids = said if isinstance(said, list) else [said]
        if not all(type(token) is int for token in ids):
            raise UserError(f"{file}: eos_token_id is {said!r}; it must be a token id, or a list of token ids.")
        return sorted({token for token in ids if token >= 0})  # -1 stands for none
    return []


def _matching(directory: Path, patterns: tuple[str, ...], suffix: str = "") -> list[Path]:
    found = {file for pattern in patterns for file in directory.glob(pattern) if file.is_file()}
    return sorted(file for file in found if file.name.endswith(suffix))
