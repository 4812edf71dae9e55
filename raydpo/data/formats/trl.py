"""TRL's data sets: with a prompt of their own, or one that both completions begin with; text, messages or ids.

The extra columns tools, chat_template_kwargs and margin are read with the row; score_chosen and score_rejected become
the margin.
"""

from __future__ import annotations

from raydpo.data.formats.contract import (
    ASSISTANT,
    Format,
    Raw,
    has,
    is_dicts,
    is_text,
    is_texts,
    lacks,
    same_prompt,
    with_margin,
)
from raydpo.data.messages import ROLE, short
from raydpo.errors import UserError


def _pairs(row: Raw, place: str) -> Raw:
    return with_margin(row)


def _as_it_stands(row: Raw, place: str) -> Raw:
    return row


def _implicit(row: Raw, place: str) -> Raw:
    """Of messages the prompt is all but the last one. Texts are cut when they are tokens, see raydpo.data.implicit."""
    chosen = row.get("chosen")
    rejected = row.get("rejected")
    if row.get("prompt") is not None:
        raise UserError(
            f"{place} has a prompt, {short(row['prompt'])}, and rows before it have none; give all of them one, or "
            "none of them."
        )
    row.pop("prompt", None)
    if is_text(chosen, rejected):
        return with_margin(row)
    if not is_dicts(chosen) or not is_dicts(rejected):
        raise UserError(
            f"{place}: chosen is {short(chosen)} and rejected is {short(rejected)}; without a prompt both are whole "
            "texts, or whole conversations."
        )
    prompt, row["chosen"], row["rejected"] = same_prompt(chosen, rejected, place)
    if not prompt:
        raise UserError(
            f"{place}: chosen and rejected are single messages, and there is no prompt that they answer; name its "
            "column in data.columns.prompt."
        )
    row["prompt"] = prompt
    return with_margin(row)


def _conversation(row: Raw, place: str) -> Raw:
    """The last turn is what is learnt, the turns before it are the prompt."""
    messages = row.pop("messages", None)
    if not is_dicts(messages) or messages[-1].get(ROLE) != ASSISTANT:
        raise UserError(
            f"{place}, column 'messages', is {short(messages)}; it is a conversation whose last message is the "
            "assistant's."
        )
    row["prompt"] = messages[:-1] or ""
    row["completion"] = messages[-1:]
    return row


OWN = (
    Format(
        "pairs",
        "pair",
        "`prompt`, `chosen`, `rejected`",
        lambda row: (
            all(has(row, name) or has(row, f"{name}_ids") for name in ("prompt", "chosen", "rejected"))
            and not is_texts(row.get("chosen"))
        ),
        _pairs,
    ),
    Format(
        "unpaired",
        "unpaired",
        "`prompt`, `completion`, `label`",
        lambda row: (
            all(has(row, name) or has(row, f"{name}_ids") for name in ("prompt", "completion")) and has(row, "label")
        ),
        _as_it_stands,
    ),
    Format(
        "ranked",
        "ranked",
        "`prompt`, `completions`, `ranks` or `scores`",
        lambda row: (
            all(has(row, name) or has(row, f"{name}_ids") for name in ("prompt", "completions"))
            and (has(row, "ranks") or has(row, "scores"))
        ),
        _as_it_stands,
    ),
)
IMPLICIT = (
    Format(
        "implicit",
        "pair",
        "`chosen`, `rejected`, both with the prompt in front",
        lambda row: (
            has(row, "chosen", "rejected")
            and lacks(row, "prompt", "prompt_ids")
            and (
                is_text(row["chosen"], row["rejected"])
                or (is_dicts(row["chosen"], ROLE) and is_dicts(row["rejected"], ROLE))
            )
        ),
        _implicit,
    ),
)
FOR_SFT = (Format("messages", "sft", "`messages`", lambda row: is_dicts(row.get("messages"), ROLE), _conversation),)
