"""What a row says and its chat template leaves out: found by rendering it with and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydpo.data.chat import ChatTemplate
from raydpo.data.messages import CONTENT, ROLE, Messages
from raydpo.errors import UserError

# They say which call a result belongs to; most templates tell that by the order.
_LINKS = {"name", "tool_call_id"}


def leaves_out(template: ChatTemplate, messages: Messages, arguments: Mapping[str, Any]) -> bool:
    """Whether a template leaves out a part that it renders at the end, or the link of a result to its call.

    So do templates of thinking models with the thoughts of earlier turns, for a sampler as for training. Raises
    UserError for what it does not render wherever it stands.
    """
    keys = dict.fromkeys(key for message in messages for key in message if key not in (ROLE, CONTENT))
    if not keys and not arguments:
        return False
    text = template.whole(messages, arguments)
    _check_arguments(template, messages, arguments, text)
    partly = False
    for key in keys:
        holders = [i for i, message in enumerate(messages) if key in message]
        if not _shows(template, messages, arguments, text, key, holders):
            linked = key in _LINKS and all(messages[i][ROLE] == "tool" for i in holders)
            if not linked and not any(_shows_at_the_end(template, messages[: i + 1], arguments, key) for i in holders):
                raise UserError(
                    f"message {holders[0] + 1} has {key!r}, which the chat template does not render, so it would be "
                    f"lost; name a template that does in data.chat_template, put what it says into content, or set "
                    f"data.ignore: [{key}] to leave it out knowingly."
                )
            partly = True
        elif len(holders) > 1:
            partly |= not all(_shows(template, messages, arguments, text, key, [i]) for i in holders)
    return partly


def _check_arguments(template: ChatTemplate, messages: Messages, arguments: Mapping[str, Any], text: str) -> None:
    for name in arguments:
        # A template may take the value that it is given for its default, which then changes nothing.
        if template.mentions(name) and (name != "tools" or _differs(template, messages, arguments, text)):
            continue
        column = "tools" if name == "tools" else "chat_template_kwargs"
        raise UserError(
            f"the row has {name!r}, which the chat template does not render, so it would be lost; name a template that "
            f"does in data.chat_template, or set data.ignore: [{column}] to leave it out knowingly."
        )


def _differs(template: ChatTemplate, messages: Messages, arguments: Mapping[str, Any], text: str) -> bool:
    without = {name: value for name, value in arguments.items() if name != "tools"}
    return _rendered(template, messages, without) != text


def _shows(
    template: ChatTemplate, messages: Messages, arguments: Mapping[str, Any], text: str, key: str, holders: list[int]
) -> bool:
    """Whether the messages are rendered otherwise without a key of some of them."""
    without = [
        {name: value for name, value in message.items() if name != key} if i in holders else message
        for i, message in enumerate(messages)
    ]
    return _rendered(template, without, arguments) != text


def _shows_at_the_end(template: ChatTemplate, messages: Messages, arguments: Mapping[str, Any], key: str) -> bool:
    """Whether a key of the last message is rendered, which it may not be once others follow."""
    text = _rendered(template, messages, arguments)
    return text is not None and _shows(template, messages, arguments, text, key, [len(messages) - 1])


def _rendered(template: ChatTemplate, messages: Messages, arguments: Mapping[str, Any]) -> str | None:
    """The text; None where the template asks for what was taken away."""
    try:
        return template.whole(messages, arguments)
    except UserError:
        return None
