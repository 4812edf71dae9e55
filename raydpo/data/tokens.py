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
- Where a template renders the prompt differently once an answer follows, the prompt is the tokens that both ways have
  in common, see raydpo.data.boundary.
- Ids given directly are exact: they are checked against the vocabulary and nothing is added.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from raydpo.data.boundary import NOT_RENDERED, cut_at_common_tokens
from raydpo.data.chat import NO_ARGUMENTS, Answered, Arguments
from raydpo.data.context import arguments_of
from raydpo.data.implicit import with_prompt
from raydpo.data.messages import Value, as_messages, is_chat
from raydpo.data.rows import Row, is_ids
from raydpo.data.tokenizer import RowTokenizer
from raydpo.data.unrendered import leaves_out
from raydpo.errors import UserError

Truncation = Literal["error", "drop", "truncate_prompt_left", "truncate_completion"]
Note = Literal["moved_boundary", "unrendered", "no_prompt"]  # worth a word, see raydpo.data.shards.Counts
Event = Literal["kept", "truncated_prompt", "truncated_completion", "dropped_too_long", "identical", "tied", "bad"]


@dataclass(frozen=True)
class TokenRow:
    """One prompt and the completions that answer it, none of them empty.

    Without a column that ranks them, the completions stand best first: those of a pair are (chosen, rejected).
    """

    row_id: bytes  # 16 bytes, see row_id()
    prompt_ids: list[int]
    completions: tuple[list[int], ...]  # n >= 1
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # by name, n values: see raydpo.data.shards
    source: str | None = None  # where the row comes from, if it says so; not in its name, and no loss looks at it


@dataclass(frozen=True)
class Outcome:
    """What became of a row, for the counts; no row where it was dropped."""

    event: Event
    row: TokenRow | None = None
    merged: int = 0  # completions of a ranked row that repeat another one of it
    notes: frozenset[Note] = frozenset()

    def from_source(self, source: str | None) -> Outcome:
        """The outcome with the source of its row; unchanged where there is no row."""
        return self if self.row is None else replace(self, row=replace(self.row, source=source))

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
    notes: frozenset[Note] = frozenset()
    if "prompt" not in row:
        row = with_prompt(row, tokenizer)
        notes = frozenset() if row["prompt"] else frozenset({"no_prompt"})
    completions = {name: row[name] for name in ("chosen", "rejected")}
    outcome = tokenize_row(row["prompt"], completions, tokenizer, settings, arguments_of(row))
    outcome = replace(outcome, notes=outcome.notes | notes)
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
    completions = {"completion": row["completion"]}
    return tokenize_row(row["prompt"], completions, tokenizer, settings, arguments_of(row))


def tokenize_unpaired(row: Row, tokenizer: RowTokenizer, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "completion", "label"}. Raises as tokenize_pair does."""
    return tokenize_sft(row, tokenizer, settings).with_column("label", [row["label"]])


def tokenize_prompt(value: Value, tokenizer: RowTokenizer, arguments: Arguments = NO_ARGUMENTS) -> list[int]:
    """Ids of a prompt, never empty; sampling and training call the same function.

    arguments: what its row tells the chat template beside the messages.
    """
    if isinstance(value, str):
        ids = tokenizer.encode_prompt(value)
    elif is_ids(value):
        ids = _in_vocabulary(value, tokenizer)
    else:
        ids = tokenizer.encode(tokenizer.chat.prompt(value, arguments))
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
    prompt: Value,
    values: Mapping[str, Value],
    tokenizer: RowTokenizer,
    settings: TokenSettings,
    arguments: Arguments = NO_ARGUMENTS,
) -> Outcome:
    """Tokenise a prompt and its completions, which go by the names that messages give them.

    arguments: what the row tells its chat template beside the messages. Raises UserError for a value that cannot become
    tokens, and for a row over max_length under "error".
    """
    if isinstance(prompt, str) and any(is_chat(value) for value in values.values()):
        prompt = as_messages(prompt)
    prompt_ids = tokenize_prompt(prompt, tokenizer, arguments)
    notes: set[Note] = set()
    answers: dict[str, Answered] = {}
    for name, value in values.items():
        with _named(name):
            if answer := _answered(prompt, value, tokenizer, arguments):
                answers[name] = answer
                if leaves_out(tokenizer.chat, answer.messages, arguments):
                    notes.add("unrendered")
    if all(answer.is_cut for answer in answers.values()):
        ids = {}
        for name, value in values.items():
            with _named(name):
                ids[name] = _ids_of(prompt, value, answers.get(name), tokenizer)
    else:
        notes.add("moved_boundary")
        prompt_ids, ids = cut_at_common_tokens(prompt_ids, prompt, answers, tokenizer, arguments)
    completions = []
    for name in values:
        with _named(name):
            exact = is_ids(values[name])
            completions.append(ids[name] if exact else _ended(ids[name], tokenizer, append_eos=settings.append_eos))
    event = _fit(prompt_ids, completions, settings, bos=tokenizer.bos_id)
    if event == "dropped_too_long":
        return Outcome(event)
    row = TokenRow(row_id(prompt_ids, completions), prompt_ids, tuple(completions))
    return Outcome(event, row, notes=frozenset(notes))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Messages say which completion they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _answered(prompt: Value, value: Value, tokenizer: RowTokenizer, arguments: Arguments) -> Answered | None:
    """A chat completion with its prompt, rendered; None for one that is text or ids."""
    if not is_chat(value):
        return None
    if not is_chat(prompt):
        raise UserError("the prompt is token ids and the completion chat messages; give both as ids or as messages.")
    return tokenizer.chat.answered(prompt, value, arguments)


def _ids_of(prompt: Value, value: Value, answer: Answered | None, tokenizer: RowTokenizer) -> list[int]:
    """A completion's ids as it goes on from its prompt, with all that the template writes behind it."""
    if answer:
        text = answer.whole[len(answer.before) :]
        if not text.strip() and answer.says:
            raise UserError(NOT_RENDERED)
        return tokenizer.encode_after(answer.before, text)
    if isinstance(value, str):
        return _text_completion(prompt, value, tokenizer)
    assert is_ids(value), "chat messages are answered"
    if not value:  # as they were sampled: they already end as they ended
        raise UserError("the completion has no tokens; remove the row.")
    return _in_vocabulary(value, tokenizer)


def _ended(ids: list[int], tokenizer: RowTokenizer, *, append_eos: bool) -> list[int]:
    """A completion up to where a sampler stops. UserError where nothing is left of it."""
    ids = tokenizer.until_stop(ids)
    if all(token in tokenizer.stop_ids for token in ids):
        raise UserError("the completion has no tokens; remove the row.")
    if append_eos and ids[-1] not in tokenizer.stop_ids:
        return [*ids, tokenizer.closing_id()]
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
    if is_chat(chosen) and is_chat(rejected) and _said(chosen) != _said(rejected):
        raise UserError(
            "chosen and rejected differ, but the chat template renders both to the same tokens: it leaves out what "
            "differs; use a template that renders it, or remove the row."
        )


def _said(messages: Value) -> list[tuple[str, str]]:
    """Roles and contents; templates like to trim a content."""
    return [(message["role"], (message["content"] or "").strip()) for message in messages if isinstance(message, dict)]


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
