"""The token contract: one row of values becomes ids, once, and both models read the same ids.

The prompt is tokenised alone, as a sampler gets it, and the completion as what goes on from it, so no token spans the
boundary, and both together decode to the whole text:

    prompt "The film"   completion " is fine"
    bos The Ġfilm     | Ġis Ġfine eos

- A text prompt gets what the tokenizer itself puts in front (its BOS rule) and nothing behind; never two BOS.
- An empty prompt is [bos], or [eos] where the tokenizer has no bos: a first completion token needs a predecessor.
- A completion has the ids that it has in the whole text where that has a token boundary there; elsewhere it is
  tokenised without the space that some tokenizers put in front of every text.
- A text completion has no BOS and ends in EOS, unless it ends in a stop token already or is truncated.
- Chat messages are rendered by the tokenizer's chat template, which brings its own special tokens. A completion ends
  in the token at which a sampler stops; what the template writes behind that is left out.
- Ids given directly are exact: they are checked against the vocabulary and nothing is added.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from raydpo.data.implicit import with_prompt
from raydpo.data.messages import Value
from raydpo.data.rows import Row, is_ids
from raydpo.data.tokenizer import RowTokenizer
from raydpo.errors import UserError

Truncation = Literal["error", "drop", "truncate_prompt_left", "truncate_completion"]
Event = Literal["kept", "truncated_prompt", "truncated_completion", "dropped_too_long", "identical", "tied"]


@dataclass(frozen=True)
class TokenRow:
    """One prompt and the completions that answer it, none of them empty.

    Without a column that ranks them, the completions stand best first: those of a pair are (chosen, rejected).
    """

    row_id: bytes  # 16 bytes, see row_id()
    prompt_ids: list[int]
    completions: tuple[list[int], ...]  # n >= 1
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # by name, n values: see raydpo.data.shards


@dataclass(frozen=True)
class Outcome:
    """What became of a row, for the counts; no row where it was dropped."""

    event: Event
    row: TokenRow | None = None
    merged: int = 0  # completions of a ranked row that repeat another one of it

    def with_column(self, name: str, values: Sequence[Any]) -> Outcome:
        """The outcome with another column of its row, one value a completion; unchanged where there is no row."""
        if self.row is None:
            return self
        return replace(self, row=replace(self.row, columns={**self.row.columns, name: values}))


@dataclass(frozen=True)
class TokenSettings:
    """What decides the ids, besides the tokenizer."""

    max_length: int  # tokens of the prompt and its longest completion
    truncation: Truncation
    append_eos: bool


def tokenize_pair(row: Row, tokenizer: RowTokenizer, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "chosen", "rejected"}. A pair of equal completions is dropped: its loss is always ln 2.

    Without a prompt of its own, the row has the one that both texts begin with. Raises UserError for a value that
    cannot become tokens, and for a row over max_length under "error".
    """
    if "prompt" not in row:
        row = with_prompt(row, tokenizer)
    completions = {name: row[name] for name in ("chosen", "rejected")}
    outcome = tokenize_row(row["prompt"], completions, tokenizer, settings)
    if outcome.row is None:
        return outcome
    if outcome.row.completions[0] == outcome.row.completions[1]:
        # Of two that were cut, the same beginning may be left. Others were made equal by the template.
        if outcome.event != "truncated_completion":
            _check_rendered_apart(row)
        return Outcome("identical")
    if "margin" in row:
        # One value a completion, whose difference is the margin.
        return outcome.with_column("margin", [row["margin"], 0.0])
    return outcome


def tokenize_sft(row: Row, tokenizer: RowTokenizer, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "completion"}. Raises as tokenize_pair does."""
    return tokenize_row(row["prompt"], {"completion": row["completion"]}, tokenizer, settings)


def tokenize_unpaired(row: Row, tokenizer: RowTokenizer, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "completion", "label"}. Raises as tokenize_pair does."""
    return tokenize_sft(row, tokenizer, settings).with_column("label", [row["label"]])


def tokenize_prompt(value: Value, tokenizer: RowTokenizer) -> list[int]:
    """Ids of a prompt, never empty; sampling and training call the same function."""
    if isinstance(value, str):
        ids = tokenizer.encode_prompt(value)
    elif is_ids(value):
        ids = _in_vocabulary(value, tokenizer)
    else:
        ids = tokenizer.encode(tokenizer.chat.prompt(value))
    return ids or [tokenizer.start_id()]


def row_id(prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> bytes:
    """The row's name: 16 bytes of hash over every id, and over the lengths, so that boundaries matter."""
    parts = [prompt_ids, *completions]
    digest = hashlib.blake2b(np.asarray([len(parts), *map(len, parts)], dtype="<i8").tobytes(), digest_size=16)
    for part in parts:
        digest.update(np.asarray(part, dtype="<i4").tobytes())
    return digest.digest()


def completion_id(prompt_ids: Sequence[int], completion: Sequence[int]) -> bytes:
    """What log π(completion | prompt) depends on, as 16 bytes: the same in whatever rows the completion stands."""
    return row_id(prompt_ids, [completion])


def row_digest(prompt: memoryview, *completions: memoryview) -> bytes:
    """row_id of ids that lie in memory as int32, little endian; nothing is copied."""
    parts = (prompt, *completions)
    lengths = [part.nbytes // 4 for part in parts]
    digest = hashlib.blake2b(struct.pack(f"<{1 + len(parts)}q", len(parts), *lengths), digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def hash_fraction(content: bytes) -> float:
    """A number in [0, 1) that depends on the content alone, uniform over contents."""
    word = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return float((word >> 11) / 2**53)  # 53 bits: all that a float holds without rounding up to 1


def tokenize_row(
    prompt: Value, values: Mapping[str, Value], tokenizer: RowTokenizer, settings: TokenSettings
) -> Outcome:
    """Tokenise a prompt and its completions, which go by the names that messages give them.

    Raises UserError for a value that cannot become tokens, and for a row over max_length under "error".
    """
    # A template renders an answer together with its prompt, so a text before chat messages becomes the user's turn.
    if isinstance(prompt, str) and any(_is_chat(value) for value in values.values()):
        prompt = [{"role": "user", "content": prompt}]
    prompt_ids = tokenize_prompt(prompt, tokenizer)
    completions = []
    for name, value in values.items():
        try:
            completions.append(_completion(prompt, value, tokenizer, append_eos=settings.append_eos))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    event = _fit(prompt_ids, completions, settings, bos=tokenizer.bos_id)
    if event == "dropped_too_long":
        return Outcome(event)
    return Outcome(event, TokenRow(row_id(prompt_ids, completions), prompt_ids, tuple(completions)))


def _completion(prompt: Value, value: Value, tokenizer: RowTokenizer, *, append_eos: bool) -> list[int]:
    if is_ids(value):  # as they were sampled: they already end as they ended
        if not value:
            raise UserError("the completion has no tokens; remove the row.")
        return _in_vocabulary(value, tokenizer)
    if isinstance(value, str):
        ids = _text_completion(prompt, value, tokenizer)
    elif is_ids(prompt):
        raise UserError("the prompt is token ids and the completion chat messages; give both as ids or as messages.")
    else:
        assert not isinstance(prompt, str), "a text prompt before chat messages was made a message"
        before, text = tokenizer.chat.completion(prompt, value)
        ids = tokenizer.encode_after(before, text)
    ids = tokenizer.until_stop(ids)
    if all(token in tokenizer.stop_ids for token in ids):
        raise UserError("the completion has no tokens; remove the row.")
    if append_eos and ids[-1] not in tokenizer.stop_ids:
        ids = [*ids, tokenizer.closing_id()]
    return ids


def _text_completion(prompt: Value, text: str, tokenizer: RowTokenizer) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer.encode_after(prompt, text)
    elif is_ids(prompt):
        ids = tokenizer.encode_after_ids(prompt, text)
    else:
        raise UserError(
            'the prompt is chat messages and the completion is text; give it as [{"role": "assistant", ...}] too.'
        )
    if ids and ids[0] == tokenizer.bos_id != tokenizer.eos_id:
        raise UserError(f"the completion begins with {tokenizer.raw.bos_token!r}; remove it from the text.")
    return ids


def _check_rendered_apart(row: Row) -> None:
    """Raise UserError for two different answers that the template has rendered to the same text."""
    chosen = row["chosen"]
    rejected = row["rejected"]
    if _is_chat(chosen) and _is_chat(rejected) and _said(chosen) != _said(rejected):
        raise UserError(
            "chosen and rejected differ, but the chat template renders both to the same tokens: it leaves out what "
            "differs; use a template that renders it, or remove the row."
        )


def _said(messages: Value) -> list[tuple[str, str]]:
    """Roles and contents; templates like to trim a content."""
    return [(message["role"], message["content"].strip()) for message in messages if isinstance(message, dict)]


def _fit(prompt_ids: list[int], completions: list[list[int]], settings: TokenSettings, *, bos: int | None) -> Event:
    """Shorten in place by the policy; a row that the policy cannot mend is dropped.

    A prompt cut from the left keeps its BOS where there is room for two tokens: models lean on it.
    """
    longest = max(map(len, completions))
    if len(prompt_ids) + longest <= settings.max_length:
        return "kept"
    if settings.truncation == "error":
        raise UserError(
            f"the prompt ({len(prompt_ids)} tokens) and its longest completion ({longest}) are over "
            f"max_length={settings.max_length}; set data.max_length to {len(prompt_ids) + longest} or more, or "
            "data.truncation to drop, truncate_prompt_left or truncate_completion."
        )
    if settings.truncation == "truncate_prompt_left" and longest < settings.max_length:
        room = settings.max_length - longest
        head = prompt_ids[:1] if prompt_ids[0] == bos and room > 1 else []
        prompt_ids[:] = head + prompt_ids[len(prompt_ids) - room + len(head) :]
        return "truncated_prompt"
    if settings.truncation == "truncate_completion" and len(prompt_ids) < settings.max_length:
        for completion in completions:
            del completion[settings.max_length - len(prompt_ids) :]
        return "truncated_completion"
    return "dropped_too_long"


def _in_vocabulary(ids: list[int], tokenizer: RowTokenizer) -> list[int]:
    for token in ids:
        if not 0 <= token < len(tokenizer):
            raise UserError(
                f"token id {token} is outside the vocabulary 0..{len(tokenizer) - 1}; "
                "the ids come from another tokenizer: give the text, or use that tokenizer's model."
            )
    return list(ids)


def _is_chat(value: Value) -> bool:
    return not isinstance(value, str) and not is_ids(value)
