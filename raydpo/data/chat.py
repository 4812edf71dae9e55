"""Chat messages as text: what a tokenizer's template makes of them, and what it must not do."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import TYPE_CHECKING

from raydpo.data.messages import Messages
from raydpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION = {"role": "user", "content": "Is it?"}
_ANSWER = "It is so."
_SOME_DAY = date(2024, 7, 26)  # only to see how a template closes an answer


class ChatTemplate:
    """The chat template of a tokenizer; `day` is what it is told when it asks for the date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: date | None) -> None:
        self._tokenizer = tokenizer
        self._day = day

    def prompt(self, messages: Messages) -> str:
        """A prompt up to where the answer begins. UserError when the template cannot render it."""
        text = self._render(messages, self._day, generation_prompt=True)
        if not text:
            raise UserError("the tokenizer's chat template renders the messages to nothing; mend chat_template.jinja.")
        return text

    def completion(self, prompt: Messages, messages: Messages) -> tuple[str, str]:
        """(the rendered prompt, what follows it).

        messages: only the assistant's, or the full transcript with the prompt in front. Raises UserError where they do
        not answer the prompt, or the template leaves no boundary between the two.
        """
        answer = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
        if not answer or answer[0]["role"] != "assistant":
            raise UserError(
                "the completion does not go on from the prompt: give the assistant's messages, or the full transcript "
                "that begins with exactly the prompt's messages."
            )
        before = self.prompt(prompt)
        whole = self._render([*prompt, *answer], self._day, generation_prompt=False)
        if not whole.startswith(before):
            raise UserError(
                "the chat template renders the prompt differently once an answer follows, so no boundary can be found; "
                "use a template that keeps the prompt as it is, or give the columns as text."
            )
        text = whole[len(before) :]
        if not text.strip() and any(message["content"].strip() for message in answer):
            raise UserError(
                "the chat template renders the answer to nothing; use a template that renders the assistant's messages."
            )
        return before, text

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

    def _render(self, messages: Messages, day: date | None, *, generation_prompt: bool) -> str:
        template = self._tokenizer.chat_template
        if not template:
            raise UserError(
                "the values are chat messages but the tokenizer has no chat template; use an instruct model's "
                "tokenizer, add chat_template.jinja to the model's directory, or give the columns as text."
            )
        if isinstance(template, dict) and "default" not in template:
            raise UserError(
                f"the tokenizer has chat templates named {', '.join(sorted(template))} and none named default; put the "
                "one to use into chat_template.jinja in the model's directory."
            )
        clock = _Clock(day)
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                strftime_now=clock.strftime,  # instead of transformers' own, which reads the machine's clock
            )
        except UserError:
            raise
        except Exception as error:  # a template is a program of somebody else's: anything may come out of it
            raise _refusal(error) from error
        assert isinstance(text, str)
        return text


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
