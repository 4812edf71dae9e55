"""Loading tokenizers, with the tokens at which the model itself stops."""

from __future__ import annotations

import hashlib
import json
from datetime import date

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raydpo.data.tokenizer import RowTokenizer
from raydpo.errors import UserError, reason
from raydpo.model.tokenizer_files import check_tokenizer_files, read_chat_template, stop_ids


def load_tokenizer(path: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that stands beside the model. Raises UserError when there is none, or none that can be used.

    chat_template: a file with the template that it has instead of its own.
    """
    check_tokenizer_files(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # reads files of other people's making, in Rust and Python: anything may come out
        raise UserError(
            f"model {path!r}: its tokenizer cannot be loaded ({reason(error)}); save it "
            "again with save_pretrained of the transformers that can load it."
        ) from error
    if chat_template:
        tokenizer.chat_template = read_chat_template(chat_template)
    return tokenizer


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for which token every id is. Unlike a digest of the files it survives saving, and another padding."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()


def load_row_tokenizer(path: str, day: date | None = None, chat_template: str | None = None) -> RowTokenizer:
    """Load a tokenizer as load_tokenizer does, as rows and prompts are tokenised with it. `day`: see RowTokenizer."""
    tokenizer = load_tokenizer(path, chat_template)
    try:
        return RowTokenizer(tokenizer, stop_ids=stop_ids(path), day=day)
    except UserError as error:
        raise UserError(f"model {path!r}: {error}") from error
