"""Where the answer begins when a template renders a prompt differently once an answer follows.

Templates of thinking models open the thoughts in a prompt, and leave them out of an answer that has none:

    prompt     <user>Good?<assistant><think>
    with it    <user>Good?<assistant>Yes.<end>
    cut        <user>Good?<assistant> | Yes.<end>
"""

from __future__ import annotations

from collections.abc import Mapping

from raydpo.data.chat import Answered, Arguments
from raydpo.data.messages import Value, is_chat
from raydpo.data.tokenizer import RowTokenizer
from raydpo.errors import UserError

NOT_RENDERED = "the chat template renders the answer to nothing; use a template that renders the assistant's messages."


def cut_at_common_tokens(
    prompt_ids: list[int],
    prompt: Value,
    answers: Mapping[str, Answered],
    tokenizer: RowTokenizer,
    arguments: Arguments,
) -> tuple[list[int], dict[str, list[int]]]:
    """The longest tokens that the prompt alone and with each of its answers begins with, and what follows in each.

    prompt_ids: of the prompt alone. Raises UserError where the prompt's own messages are rendered differently, since
    what follows would hold words of others, and where nothing of an answer is left.
    """
    assert is_chat(prompt), "what is rendered is messages"
    closed = tokenizer.chat.whole(prompt, arguments)
    for name, answer in answers.items():
        if not answer.whole.startswith(closed) or not answer.before.startswith(closed):
            raise UserError(
                f"{name}: the chat template renders the prompt differently once an answer follows, so no boundary can "
                "be found; use a template that keeps the prompt as it is, or give the columns as text."
            )
    wholes = {name: tokenizer.encode(answer.whole) for name, answer in answers.items()}
    end = min(_common(prompt_ids, ids) for ids in wholes.values())
    for name, answer in answers.items():
        rest = wholes[name][end:]
        if not end or (answer.says and not tokenizer.decode(tokenizer.until_stop(rest)).strip()):
            raise UserError(f"{name}: {NOT_RENDERED}")
    return prompt_ids[:end], {name: ids[end:] for name, ids in wholes.items()}


def _common(one: list[int], other: list[int]) -> int:
    """How many ids two lists begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
