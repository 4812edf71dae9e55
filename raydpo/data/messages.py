"""Values of a row, checked: text, chat messages, and how a completion stands to its prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from raydpo.data.meaning import is_nothing
from raydpo.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeIs


Messages = list[dict[str, Any]]
Value = str | list[int] | Messages

ROLE = "role"
CONTENT = "content"
TOOL_CALLS = "tool_calls"
_SURROGATE = re.compile("[\ud800-\udfff]")
# A shorter prompt may be a greeting, which an answer repeats by itself.
MIN_REPEATED_WORDS = 3
MIN_REPEATED_LETTERS = 16


def text_or_messages(value: Any, place: str, *, may_be_empty: bool, ignore: Collection[str]) -> Value:
    """A value as text or as messages: role, content, and whatever else a template may render.

    What none does is found where rows become tokens, see raydpo.data.unrendered. UserError for everything else, with
    what to write.
    """
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
    if not is_chat(completion):
        return
    before = as_messages(prompt) if isinstance(prompt, str) else prompt
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


def is_chat(value: Value) -> TypeIs[Messages]:
    """Whether a value is messages."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def as_messages(text: str) -> Messages:
    """A text before chat messages: the user's turn, because a template renders an answer together with its prompt."""
    return [{ROLE: "user", CONTENT: text}]


def plain(value: Any, place: str) -> Any:
    """A value that a template may be given. UserError for what is no JSON, and for text that is no Unicode."""
    if isinstance(value, str):
        return _unicode(value, place)
    if isinstance(value, list):
        return [plain(each, place) for each in value]
    if isinstance(value, dict):
        return {_unicode(str(key), place): plain(each, place) for key, each in value.items()}
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UserError(f"{place} holds {short(value)}; write text, finite numbers, lists and objects.")


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _message(message: Any, place: str, ignore: Collection[str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise UserError(f'{place} is {short(message)}; a chat message is {{"role": text, "content": text}}.')
    if ROLE not in message and "from" in message:
        raise UserError(
            f'{place} has the keys {", ".join(map(repr, message))}; write "from" as "role" (human is user, gpt is '
            'assistant) and "value" as "content".'
        )
    role = message.get(ROLE)
    if not isinstance(role, str):
        raise UserError(f'{place} is {short(message)}; a chat message is {{"role": text, "content": text}}.')
    more = {
        str(key): plain(value, f"{place}, {key!r},")
        for key, value in message.items()
        if key not in (ROLE, CONTENT, *ignore) and not is_nothing(value)
    }
    content = _content(message.get(CONTENT), place, may_be_null=TOOL_CALLS in more)
    return {ROLE: _unicode(role, place), CONTENT: content, **more}


def _content(content: Any, place: str, *, may_be_null: bool) -> str | None:
    """The text of a message; of parts, all of their texts. None beside calls of tools, where there need be none."""
    if content is None and may_be_null:
        return None
    if content is None:
        raise UserError(f'{place}: content is null; write the text, "" for none, or remove the row.')
    if isinstance(content, list):
        return "".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise UserError(f'{place}: content is {short(content)}; a chat message is {{"role": text, "content": text}}.')
    return _unicode(content, place)


def _part(part: Any, place: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    if kind != "text" or not isinstance(text, str):
        raise UserError(
            f"{place}: content is a list of parts, and one of them is {short(part)}; only parts of text become tokens. "
            "Write what it says as text, or remove the row."
        )
    return _unicode(text, place)


def _unicode(text: str, place: str) -> str:
    if _SURROGATE.search(text):
        raise UserError(f"{place} holds half a surrogate pair: {short(text)}; write the text as valid Unicode.")
    return text
