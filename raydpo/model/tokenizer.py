"""Loading tokenizers, with the tokens at which the model itself stops."""

from __future__ import annotations

import hashlib
import json
from datetime import date

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raydpo.data.tokenizer import RowTokenizer
from raydpo.errors import UserError, reason
from raydpo.model.tokenizer_files import check_tokenizer_files, stop_ids


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer that stands beside the model. Raises UserError when there is none, or none that can be used."""
    check_tokenizer_files(path)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # reads files of other people's making, in Rust and Python: anything may come out
        raise UserError(
            f"model {path!r}: its tokenizer cannot be loaded ({reason(error)}); save it "
            "again with save_pretrained of the transformers that can load it."
        ) from error


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for which token every id is. Unlike a digest of the files it survives saving, and another padding."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(vocabulary.encode(), digest_size=16).hexdigest()


def load_row_tokenizer(path: str, day: date | None = None) -> RowTokenizer:
    """Load a tokenizer as load_tokenizer does, as rows and prompts are tokenised with it. `day`: see RowTokenizer."""
    tokenizer = load_tokenizer(path)
    try:
        return RowTokenizer(tokenizer, stop_ids=stop_ids(path), day=day)
    except UserError as error:
        raise UserError(f"model {path!r}: {error}") from error
