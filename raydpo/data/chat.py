"""Chat messages as text: what a tokenizer's template makes of them, and what it must not do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from raydpo.data.messages import TOOL_CALLS, Messages
from raydpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Arguments = Mapping[str, Any]
NO_ARGUMENTS: Arguments = MappingProxyType({})
_NULL = "None"  # as a template writes a null out
_QUESTION = {"role": "user", "content": "Is it?"}
_ANSWER = "It is so."
_SOME_DAY = date(2024, 7, 26)  # only to see how a template closes an answer


@dataclass(frozen=True)
class Answered:
    """A prompt and its answer as a template renders them."""

    messages: Messages  # of both
    before: str  # the prompt, up to where the answer begins
    whole: str
    says: bool  # whether the answer has words of its own

    @property
    def is_cut(self) -> bool:
        """Whether the prompt is a beginning of the whole, so that what follows is the answer."""
        return self.whole.startswith(self.before)


class ChatTemplate:
    """The chat template of a tokenizer; `day` is what it is told when it asks for the date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: date | None) -> None:
        self._tokenizer = tokenizer
        self._day = day

    def prompt(self, messages: Messages, arguments: Arguments = NO_ARGUMENTS) -> str:
        """A prompt up to where the answer begins. UserError when the template cannot render it.

        arguments: what the row tells the template beside its messages, see raydpo.data.context.
        """
        text = self._render(messages, self._day, arguments, generation_prompt=True)
        if not text:
            raise UserError("the tokenizer's chat template renders the messages to nothing; mend chat_template.jinja.")
        return text

    def answered(self, prompt: Messages, messages: Messages, arguments: Arguments = NO_ARGUMENTS) -> Answered:
        """A prompt with its answer.

        messages: only the assistant's, or the full transcript with the prompt in front. Raises UserError where they do
        not answer the prompt.
        """
        answer = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
        if not answer or answer[0]["role"] != "assistant":
            raise UserError(
                "the completion does not go on from the prompt: give the assistant's messages, or the full transcript "
                "that begins with exactly the prompt's messages."
            )
        whole = [*prompt, *answer]
        says = any(message["content"] and message["content"].strip() for message in answer)
        return Answered(whole, self.prompt(prompt, arguments), self.whole(whole, arguments), says)

    def whole(self, messages: Messages, arguments: Arguments = NO_ARGUMENTS) -> str:
        """Messages to their end. UserError when the template cannot render them."""
        return self._render(messages, self._day, arguments, generation_prompt=False)

    def mentions(self, name: str) -> bool:
        """Whether the template speaks of an argument of this name."""
        template = self._tokenizer.chat_template
        source = template.get("default", "") if isinstance(template, dict) else template or ""
        return re.search(rf"\b{re.escape(name)}\b", source) is not None

    def after_an_answer(self) -> str:
        """What the template writes behind an answer; nothing where it has none, or refuses to render a small chat."""
        if not self._tokenizer.chat_template:
            return ""
        chat = [_QUESTION, {"role": "assistant", "content": _ANSWER}]
        try:
            text = self._render(chat, self._day or _SOME_DAY, generation_prompt=False)
        except UserError:  # a template for other roles or shapes: its rows will say what they need
            return ""
        return text.rpartition(_ANSWER)[2] if _ANSWER in text else ""

    def _render(
        self, messages: Messages, day: date | None, arguments: Arguments = NO_ARGUMENTS, *, generation_prompt: bool
    ) -> str:
        template = self._tokenizer.chat_template
        if not template:
            raise UserError(
                "the values are chat messages but the tokenizer has no chat template; use an instruct model's "
                "tokenizer, name a template in data.chat_template, or give the columns as text."
            )
        if isinstance(template, dict) and "default" not in template:
            raise UserError(
                f"the tokenizer has chat templates named {', '.join(sorted(template))} and none named default; put the "
                "one to use into chat_template.jinja in the model's directory."
            )
        refusal: UserError | None = None
        for readable in readings(messages):
            try:
                text = self._apply(readable, day, arguments, generation_prompt)
                nulls = any(message["content"] is None for message in readable)
                if nulls and _NULL in text:  # is it written out?
                    empty = [message | {"content": message["content"] or ""} for message in readable]
                    other = self._apply(empty, day, arguments, generation_prompt)
                    text = other if other.count(_NULL) < text.count(_NULL) else text
            except UserError as error:
                refusal = refusal or error
            else:
                return text
        assert refusal
        raise refusal

    def _apply(self, messages: Messages, day: date | None, arguments: Arguments, generation_prompt: bool) -> str:
        clock = _Clock(day)
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                strftime_now=clock.strftime,  # instead of transformers' own, which reads the machine's clock
                **arguments,
            )
        except UserError:
            raise
        except Exception as error:  # a template is a program of somebody else's: anything may come out of it
            raise _refusal(error) from error
        assert isinstance(text, str)
        return text


def readings(messages: Messages) -> Iterator[Messages]:
    """The messages as templates may want them; nearly all of them want the first.

    Arguments of a call are an object, although OpenAI's interface gives them as its JSON: a template that writes JSON
    would else write a quoted text. Without content beside its calls, a message has null there, or an empty text.
    """
    called = [message for message in messages if message.get(TOOL_CALLS)]
    if not called:
        yield messages
        return
    for null in (None, ""):
        for calls in (_with_objects, _unchanged):
            yield [_read(message, calls, null) for message in messages]


def _read(message: dict[str, Any], calls: Callable[[Any], Any], null: str | None) -> dict[str, Any]:
    content = null if message["content"] is None else message["content"]
    if TOOL_CALLS not in message:
        return message | {"content": content}
    return message | {"content": content, TOOL_CALLS: calls(message[TOOL_CALLS])}


def _unchanged(calls: Any) -> Any:
    return calls


def _with_objects(value: Any) -> Any:
    """Calls whose arguments are objects, where they are the JSON of some."""
    if isinstance(value, list):
        return [_with_objects(each) for each in value]
    if not isinstance(value, dict):
        return value
    call = {key: _with_objects(each) if key == "function" else each for key, each in value.items()}
    if isinstance(call.get("arguments"), str):
        with suppress(ValueError, RecursionError):
            found = json.loads(call["arguments"])
            call["arguments"] = found if isinstance(found, dict) else call["arguments"]
    return call


class _Clock:
    """The clock that a template sees: it stands still."""

    def __init__(self, day: date | None) -> None:
        self._day = day

    def strftime(self, pattern: str) -> str:
        """The date of the run at midnight. Raises UserError where the run has none."""
        if self._day is None:
            raise UserError(
                "the chat template prints today's date, so the same messages would have other tokens tomorrow; set "
                "data.date, for example data.date: 2026-01-31, or use a template without a date."
            )
        return datetime.combine(self._day, time()).strftime(pattern)


def _refusal(error: Exception) -> UserError:
    from jinja2 import TemplateError

    if isinstance(error, TemplateError):  # templates refuse roles and orders that they do not know
        return UserError(f"the tokenizer's chat template refuses these messages ({error}); mend the row.")
    return UserError(
        f"the tokenizer's chat template fails on these messages ({type(error).__name__}: {error}); mend "
        "chat_template.jinja in the model's directory, or the row."
    )
