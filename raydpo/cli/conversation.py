"""A conversation in the terminal: lines in, answers out, and a few commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from raydpo.errors import UserError

if TYPE_CHECKING:
    from raydpo.data.messages import Messages
    from raydpo.rollout.chat import Speech

HELP = "/reset begins anew, /temperature T, /seed N, /quit; everything else is said to the model"


class Answerer(Protocol):
    """What a conversation asks of a model."""

    def answer(self, messages: Messages, speech: Speech, show: Callable[[str], None]) -> str:
        """Hand the answer to `show` piece by piece and return it whole."""
        ...


class Conversation:
    """One conversation with each model; all are told the same and answer with the same seed, one after the other."""

    def __init__(self, models: Mapping[str, Answerer], speech: Speech, show: Callable[[str], None]) -> None:
        """models: by the names that stand before their answers; a single model's stands nowhere."""
        self._models = models
        self._speech = speech
        self._show = show
        self._said: dict[str, Messages] = {name: [] for name in models}

    def follow(self, lines: Iterable[str]) -> None:
        """Answer line after line, until there is none or one says /quit. A mistake is said and changes nothing."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    self._command(text)
                elif text:
                    self._answer(text)
            except UserError as error:
                self._show(f"{error}\n")

    def _answer(self, text: str) -> None:
        for name, model in self._models.items():
            said = [*self._said[name], {"role": "user", "content": text}]
            if len(self._models) > 1:
                self._show(f"[{name}] ")
            try:
                answer = model.answer(said, self._speech, lambda piece: self._show(printable(piece)))
            except KeyboardInterrupt:  # enough of this answer; it is not part of what follows
                self._show(" …\n")
                return
            self._show("\n")
            self._said[name] = [*said, {"role": "assistant", "content": answer}]

    def _command(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name == "/reset":
            self._said = {each: [] for each in self._models}
        elif name == "/temperature":
            self._speech = replace(self._speech, temperature=temperature_of(value))
        elif name == "/seed":
            self._speech = replace(self._speech, seed=_seed_of(value))
        else:
            raise UserError(HELP)


def temperature_of(text: str) -> float:
    """A finite temperature of at least 0. Raises UserError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"temperature {text!r} is no number of at least 0; for example /temperature 0.7")
    return value


def _seed_of(text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"seed {text!r} is no whole number of at least 0; for example /seed 1")
    return int(text)


def printable(text: str) -> str:
    """The text without control characters: sampled text must not steer the terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def typed_lines() -> Iterator[str]:
    """What is typed or piped in, with a prompt where somebody types; Ctrl-D and Ctrl-C end it."""
    import sys

    typing = sys.stdin.isatty()
    while True:
        try:
            yield input("> ") if typing else input()
        except (EOFError, KeyboardInterrupt):
            return
