"""Values of a row, checked: text, chat messages, and how a completion stands to its prompt."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from raydpo.config.errors import UserError
from raydpo.data.meaning import is_nothing

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from raydpo.data.formats import Messages, Value

ROLE = "role"
CONTENT = "content"
_SURROGATE = re.compile("[\ud800-\udfff]")
# A shorter prompt may be a greeting, which an answer repeats by itself.
MIN_REPEATED_WORDS = 3
MIN_REPEATED_LETTERS = 16


def text_or_messages(value: Any, place: str, *, may_be_empty: bool, ignore: Collection[str]) -> Value:
    """A value as text or as messages of role and content alone. UserError for everything else, with what to write."""
    if isinstance(value, list) and value:
        return [_message(message, f"{place} message {i}", ignore) for i, message in enumerate(value, start=1)]
    if isinstance(value, dict):
        raise UserError(f"{place} is one object, {short(value)}; write a list of messages: [{{...}}].")
    if not isinstance(value, str) or (not value and not may_be_empty):
        raise UserError(f"{place} is {short(value)}; give text or chat messages, or remove the row.")
    return _unicode(value, place)


def check_completion(prompt: Value, completion: Value, place: str) -> None:
    """Raise UserError where a chat completion is more than one turn of the assistant behind its prompt.

    Every token of a completion is trained on as the model's own, so nobody else may speak in it.
    """
    if not _is_chat(completion):
        return
    before = [{ROLE: "user", CONTENT: prompt}] if isinstance(prompt, str) else prompt
    at = len(before) if completion[: len(before)] == before else 0
    answer = completion[at:]
    if not answer or answer[0][ROLE] != "assistant":
        return  # the token rule refuses these, and says what a completion begins with
    if len(answer) > 1:
        raise UserError(
            f"{place} goes on after the assistant's answer with a turn of {answer[1][ROLE]!r} (message {at + 2}); it "
            "would be trained on as if the model had written it. Keep one assistant's message in the completion: put "
            "the turns before it into the prompt, and make further answers rows of their own."
        )


def check_prompt_is_not_repeated(prompt: Value, completions: list[Value], place: str) -> None:
    """Raise UserError where every text completion begins with the text of its prompt: it would stand there twice."""
    if not isinstance(prompt, str) or not all(isinstance(text, str) for text in completions):
        return
    text = prompt.strip()
    if len(text.split()) < MIN_REPEATED_WORDS and len(text) < MIN_REPEATED_LETTERS:
        return
    if all(isinstance(completion, str) and completion.lstrip().startswith(text) for completion in completions):
        raise UserError(
            f"{place}: the completion begins with the whole prompt, {short(text)}, which would stand there twice and "
            "be trained on; remove the prompt's text from the completions."
        )


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _message(message: Any, place: str, ignore: Collection[str]) -> dict[str, str]:
    if not isinstance(message, dict):
        raise UserError(f'{place} is {short(message)}; a chat message is {{"role": text, "content": text}}.')
    if ROLE not in message and "from" in message:
        raise UserError(
            f'{place} has the keys {", ".join(map(repr, message))}; write "from" as "role" (human is user, gpt is '
            'assistant) and "value" as "content".'
        )
    lost = [key for key, value in message.items() if key not in (ROLE, CONTENT, *ignore) and not is_nothing(value)]
    if lost:
        raise UserError(
            f"{place} has keys that would be lost: {', '.join(map(repr, lost))}. Only role and content become tokens: "
            f"put what they say into content, or set data.ignore: [{', '.join(lost)}] to leave them out knowingly."
        )
    role = message.get(ROLE)
    content = message.get(CONTENT)
    if isinstance(content, list):
        raise UserError(f"{place}: content is a list of parts, {short(content)}; write their text as one string.")
    if content is None:
        raise UserError(f'{place}: content is null; write the text, "" for none, or remove the row.')
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(f'{place} is {short(message)}; a chat message is {{"role": text, "content": text}}.')
    return {ROLE: _unicode(role, place), CONTENT: _unicode(content, place)}


def _unicode(text: str, place: str) -> str:
    if _SURROGATE.search(text):
        raise UserError(f"{place} holds half a surrogate pair: {short(text)}; write the text as valid Unicode.")
    return text


def _is_chat(value: Value) -> TypeIs[Messages]:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
