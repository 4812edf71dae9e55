"""The token contract: one row of values becomes ids, once, and both models read the same ids.

Prompt and completion are tokenised separately and concatenated, so no token spans the boundary:

    prompt "The film"   completion " is fine"
    bos The Ġfilm     | Ġis Ġfine eos

- A text prompt gets what the tokenizer itself puts in front (its BOS rule) and nothing behind; never two BOS.
- An empty prompt is [bos], or [eos] where the tokenizer has no bos: a first completion token needs a predecessor.
- A text completion has no BOS and ends in EOS, unless truncated.
- Chat messages are rendered by the tokenizer's chat template, which brings its own special tokens.
- Ids given directly are exact: they are checked against the vocabulary and nothing is added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from raydpo.config.errors import UserError
from raydpo.data.formats import Messages, Row, Value, is_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["error", "drop", "truncate_prompt_left", "truncate_completion"]
Event = Literal["kept", "truncated_prompt", "truncated_completion", "dropped_too_long", "identical"]


@dataclass(frozen=True)
class TokenRow:
    """One prompt and the completions that answer it, none of them empty."""

    row_id: bytes  # 16 bytes, see row_id()
    prompt_ids: list[int]
    completions: tuple[list[int], ...]  # (chosen, rejected), or (completion,)


@dataclass(frozen=True)
class Outcome:
    """What became of a row, for the counts; no row where it was dropped."""

    event: Event
    row: TokenRow | None = None


@dataclass(frozen=True)
class TokenSettings:
    """What decides the ids, besides the tokenizer."""

    max_length: int  # tokens of the prompt and its longest completion
    truncation: Truncation
    append_eos: bool


def tokenize_pair(row: Row, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "chosen", "rejected"}. A pair of equal completions is dropped: its loss is always ln 2.

    Raises UserError for a value that cannot become tokens, and for a row over max_length under "error".
    """
    outcome = _tokenize(row, ("chosen", "rejected"), tokenizer, settings)
    if outcome.row and outcome.row.completions[0] == outcome.row.completions[1]:
        return Outcome("identical")
    return outcome


def tokenize_sft(row: Row, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> Outcome:
    """Tokenise {"prompt", "completion"}. Raises as tokenize_pair does."""
    return _tokenize(row, ("completion",), tokenizer, settings)


def tokenize_prompt(value: Value, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a prompt, never empty; sampling and training call the same function."""
    if isinstance(value, str):
        ids = _text_prompt(value, tokenizer)
    elif is_ids(value):
        ids = _in_vocabulary(value, tokenizer)
    else:
        ids = _encode(_render(value, tokenizer, generation_prompt=True), tokenizer)
    return ids or [_start_id(tokenizer)]


def row_id(prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> bytes:
    """The row's name: 16 bytes of hash over every id, and over the lengths, so that boundaries matter."""
    parts = [prompt_ids, *completions]
    digest = hashlib.blake2b(np.asarray([len(parts), *map(len, parts)], dtype="<i8").tobytes(), digest_size=16)
    for part in parts:
        digest.update(np.asarray(part, dtype="<i4").tobytes())
    return digest.digest()


def hash_fraction(content: bytes) -> float:
    """A number in [0, 1) that depends on the content alone, uniform over contents."""
    word = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return float((word >> 11) / 2**53)  # 53 bits: all that a float holds without rounding up to 1


def _tokenize(row: Row, names: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> Outcome:
    prompt = row["prompt"]
    if isinstance(prompt, str) and any(_is_chat(row[name]) for name in names):
        prompt = [{"role": "user", "content": prompt}]
    prompt_ids = tokenize_prompt(prompt, tokenizer)
    completions = []
    for name in names:
        try:
            completions.append(_completion(prompt, row[name], tokenizer, append_eos=settings.append_eos))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    event = _fit(prompt_ids, completions, settings, bos=tokenizer.bos_token_id)
    if event == "dropped_too_long":
        return Outcome(event)
    return Outcome(event, TokenRow(row_id(prompt_ids, completions), prompt_ids, tuple(completions)))


def _completion(prompt: Value, value: Value, tokenizer: PreTrainedTokenizerBase, *, append_eos: bool) -> list[int]:
    if is_ids(value):  # as they were sampled: they already end as they ended
        if not value:
            raise UserError("the completion has no tokens; remove the row.")
        return _in_vocabulary(value, tokenizer)
    if isinstance(value, str):
        if _is_chat(prompt):
            raise UserError(
                'the prompt is chat messages and the completion is text; give it as [{"role": "assistant", ...}] too.'
            )
        ids = _text_completion(value, tokenizer)
    elif is_ids(prompt):
        raise UserError("the prompt is token ids and the completion chat messages; give both as ids or as messages.")
    else:
        assert not isinstance(prompt, str), "a text prompt before chat messages was made a message"
        ids = _encode(_chat_completion(prompt, value, tokenizer), tokenizer)
    eos = tokenizer.eos_token_id
    if not ids or ids == [eos]:
        raise UserError("the completion has no tokens; remove the row.")
    return [*ids, eos] if append_eos and ids[-1] != eos else ids


def _text_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    before = _tokens_before_a_text(tokenizer)
    ids = _encode(text, tokenizer)
    while before and ids and before[-1] == ids[0] == tokenizer.bos_token_id:  # the text spells its BOS out
        ids = ids[1:]
    return before + ids


def _text_completion(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = _encode(text, tokenizer)
    if ids and ids[0] == tokenizer.bos_token_id != tokenizer.eos_token_id:
        raise UserError(f"the completion begins with {tokenizer.bos_token!r}; remove it from the text.")
    return ids


def _chat_completion(prompt: Messages, messages: Messages, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template makes of the completion, behind the generation prompt; it stops at the closing EOS.

    messages: only the assistant's, or the full transcript with the prompt in front.
    """
    answer = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if not answer or answer[0]["role"] != "assistant":
        raise UserError(
            "the completion does not go on from the prompt: give the assistant's messages, or the full transcript "
            "that begins with exactly the prompt's messages."
        )
    before = _render(prompt, tokenizer, generation_prompt=True)
    whole = _render([*prompt, *answer], tokenizer, generation_prompt=False)
    if not whole.startswith(before):
        raise UserError(
            "the chat template renders the prompt differently once an answer follows, so no boundary can be found; "
            "use a template that keeps the prompt as it is, or give the columns as text."
        )
    text = whole[len(before) :]
    closed = text.rstrip()  # templates like to end on a newline that no sampler would ever produce
    return closed if tokenizer.eos_token and closed.endswith(tokenizer.eos_token) else text


def _render(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "the values are chat messages but the tokenizer has no chat template; use an instruct model's tokenizer, "
            "add chat_template.jinja to the model's directory, or give the columns as text."
        )
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:  # templates refuse roles and orders that they do not know
        raise UserError(f"the tokenizer's chat template refuses these messages ({error}); mend the row.") from error
    assert isinstance(text, str)
    return text


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


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _tokens_before_a_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front by its own rule, usually [bos] or nothing; what it puts behind is left out."""
    plain, full = _encode("a", tokenizer), _encode("a", tokenizer, special=True)
    start = next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    return full[:start]


def _start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("the prompt is empty and the tokenizer has neither bos nor eos; set one of them.")
    return int(start)


def _in_vocabulary(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    for token in ids:
        if not 0 <= token < len(tokenizer):
            raise UserError(
                f"token id {token} is outside the vocabulary 0..{len(tokenizer) - 1}; "
                "the ids come from another tokenizer: give the text, or use that tokenizer's model."
            )
    return list(ids)


def _is_chat(value: Value) -> bool:
    return not isinstance(value, str) and not is_ids(value)
