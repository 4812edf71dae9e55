"""A tokenizer as rows need it: its facts asked once, text that goes on from other text, and where a sampler stops."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING

from raydpo.data.chat import ChatTemplate
from raydpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that a continuation is tried behind. Each tokenizer has a boundary after some of them, whatever follows.
LEADS = ("\n", ".", "a", "0", "A", "(")
TAIL_LETTERS = 256  # of a long prompt, which decide how what follows is cut
_STRANGE = "\N{SNOWMAN}"
_PROBED_IDS = 1000  # of a vocabulary, in search of a text that the tokenizer knows


class RowTokenizer:
    """A transformers tokenizer with what rows ask of it. Raises UserError when no text has tokens under it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, stop_ids: Iterable[int] = (), day: date | None = None
    ) -> None:
        """stop_ids: at which the model's own generation configuration ends a completion.

        day: what a chat template that asks for today's date is told.
        """
        self.raw = tokenizer
        self.chat = ChatTemplate(tokenizer, day)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        unknown = tokenizer.unk_token_id
        self._unk_id: int | None = None if unknown in (self.bos_id, self.eos_id) else unknown  # GPT-2 has one for all
        self._size = len(tokenizer)  # counts the added tokens anew at each call
        self._before_text = self._find_tokens_before_a_text()
        self._drops_letters = not self._encode_if_known(_STRANGE)  # it has no token to stand for what it does not know
        self._leads = [(lead, self._encode_if_known(lead)) for lead in LEADS]
        self._is_blank: dict[int, bool] = {}
        self._prompt = ""
        self._prompt_ids = self.encode("")
        self.stop_ids = frozenset(stop_ids) | self._own_stop_ids()

    def __len__(self) -> int:
        """Ids that the tokenizer knows; the model's embedding may have more rows."""
        return self._size

    @property
    def before_text(self) -> list[int]:
        """What the tokenizer puts in front of a text by its own rule, usually [bos] or nothing."""
        return list(self._before_text)

    def encode(self, text: str) -> list[int]:
        """Ids of a text that stands at the beginning, without the special tokens that the tokenizer would add.

        Raises UserError where the tokenizer has no token for a part of it, and none for the unknown.
        """
        try:
            ids: list[int] = self.raw(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # the Rust library raises nothing more special
            raise UserError(f"the tokenizer cannot read the text {text[:40]!r} ({error}); mend the row.") from error
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids, with nothing tidied up."""
        text = self.raw.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text with what the tokenizer puts in front of it, and nothing behind; never two BOS."""
        ids = self._encode_prompt(text)
        self._check_known(text, ids)
        before = self.before_text
        while before and ids and before[-1] == ids[0] == self.bos_id:  # the text spells its BOS out
            ids = ids[1:]
        return before + ids

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of `text` as it goes on from `before`.

        Where the ids of both together begin with those of `before`, a boundary is there, and the rest is the answer.
        Elsewhere it is ids that decode, behind those of `before`, to what the whole decodes to: a tokenizer may put a
        space in front of every text (SentencePiece's dummy prefix), which has no place in the middle of one.

        Raises UserError where the tokenizer cannot go on from there.
        """
        tail, head = self._tail_of(before)
        whole = self.encode(tail + text)
        cut = whole[: len(head)] == head
        rest = whole[len(head) :] if cut else self._goes_on(head, text, self.decode(whole))
        self._check_known(text, rest)
        return rest

    def encode_after_ids(self, head: Sequence[int], text: str) -> list[int]:
        """Ids of `text` behind ids whose text is not known. Raises UserError as encode_after does."""
        rest = self._goes_on(list(head), text, self.decode(head) + text)
        self._check_known(text, rest)
        return rest

    def until_stop(self, ids: list[int]) -> list[int]:
        """The ids up to the token at which a sampler ends: blanks and further stops behind it are left out.

        <end_of_turn> newline <eos> becomes <end_of_turn>. Ids that end in no stop token are given back as they are.
        """
        end = len(ids)
        for position in reversed(range(len(ids))):
            token = ids[position]
            if token in self.stop_ids:
                end = position + 1
            elif not self._blank(token):
                break
        return ids[:end]

    def start_id(self) -> int:
        """The token that an empty prompt consists of: a first completion token needs a predecessor."""
        start = self.bos_id if self.bos_id is not None else self.eos_id
        if start is None:
            raise UserError("the prompt is empty and the tokenizer has neither bos nor eos; set one of them.")
        return start

    def closing_id(self) -> int:
        """The token that ends a completion. Raises UserError for a tokenizer without EOS."""
        if self.eos_id is None:
            raise UserError(
                "the tokenizer has no eos_token, so no completion can be ended; set eos_token in the model's "
                "tokenizer_config.json, or data.append_eos: false where the completions bring their own end."
            )
        return self.eos_id

    def _encode_if_known(self, text: str) -> list[int]:
        """For texts of our own making: nothing where the tokenizer cannot read them."""
        try:
            return self.encode(text)
        except UserError:
            return []

    def _encode_prompt(self, text: str) -> list[int]:
        """As encode, for a text that is asked for again with each of its completions."""
        if text != self._prompt:
            self._prompt_ids = self.encode(text)
            self._prompt = text
        return self._prompt_ids

    def _tail_of(self, text: str) -> tuple[str, list[int]]:
        """What of a text decides the ids of what follows, and its ids: the whole, or the end of a long one.

        The end is enough where its ids, from the middle on, are the last ids of the whole: from there both are cut
        alike, and tokenizers look no further back. A run of equal letters can be out of step, and is taken whole.
        """
        ids = self._encode_prompt(text)
        if len(text) <= 2 * TAIL_LETTERS:
            return text, ids
        tail = text[-TAIL_LETTERS:]
        tail_ids = self.encode(tail)
        settled = tail_ids[len(tail_ids) // 2 :]
        if not settled or ids[-len(settled) :] != settled:
            return text, ids
        return tail, tail_ids

    def _goes_on(self, head: list[int], text: str, target: str) -> list[int]:
        """The first reading of `text` that decodes behind `head` to the target."""
        for ids in self._readings(text):
            if _same_text(self.decode([*head, *ids]), target):
                return ids
        raise UserError(
            f"the prompt's end and the completion's beginning {text[:20]!r} cannot be cut apart by this tokenizer; "
            "move the boundary to a space or to the beginning of a line."
        )

    def _readings(self, text: str) -> Iterator[list[int]]:
        yield self.encode(text)
        for lead, ids in self._leads:
            both = self._encode_if_known(lead + text)
            if ids and both[: len(ids)] == ids:
                yield both[len(ids) :]

    def _check_known(self, text: str, ids: Sequence[int]) -> None:
        if not text.strip():
            return
        if all(token == self._unk_id for token in ids) or (
            self._drops_letters and _letters(self.decode(ids)) != _letters(text)
        ):
            raise UserError(
                f"the tokenizer does not know the letters of {text[:40]!r}; is it the right model for these data? A "
                "vocabulary may hold capitals only, or none of a script's letters."
            )

    def _find_tokens_before_a_text(self) -> list[int]:
        for text in self._texts():
            plain = self._encode_if_known(text)
            if not plain:
                continue
            full: list[int] = self.raw(text, add_special_tokens=True, verbose=False)["input_ids"]
            for start in range(len(full) - len(plain) + 1):
                if full[start : start + len(plain)] == plain:
                    return full[:start]
        raise UserError("the tokenizer makes no tokens of any text; give the model's own tokenizer.")

    def _texts(self) -> Iterator[str]:
        """Texts that a tokenizer may know: "a" where it is for language, else what its own tokens stand for."""
        yield "a"
        special = set(self.raw.all_special_ids)
        for token in range(min(self._size, _PROBED_IDS)):
            if token not in special:
                yield self.decode([token])

    def _own_stop_ids(self) -> frozenset[int]:
        """EOS, and the special token that the chat template closes an answer with."""
        own = set() if self.eos_id is None else {self.eos_id}
        closing = self.encode(self.chat.after_an_answer().lstrip())[:1]
        own.update(token for token in closing if self._is_special(token))
        return frozenset(own)

    def _is_special(self, token: int) -> bool:
        added = self.raw.added_tokens_decoder.get(token)
        return token in self.raw.all_special_ids or (added is not None and added.special)

    def _blank(self, token: int) -> bool:
        if token not in self._is_blank:
            self._is_blank[token] = not self.decode([token]).strip()
        return self._is_blank[token]


def _letters(text: str) -> str:
    """A text without its spaces and its case, which tokenizers may leave out knowingly."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _same_text(one: str, other: str) -> bool:
    """Equal as Unicode understands it: a tokenizer may compose letters that the boundary keeps apart."""
    return one == other or unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", other)
