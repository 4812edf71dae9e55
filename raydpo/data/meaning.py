"""Columns that public formats give a meaning to. One that nobody reads is a part of the data that would be lost.

Names are those of TRL, LLaMA-Factory, ms-swift, OpenRLHF, Alpaca, Dolly, UltraFeedback, Nectar, SHP, PKU-SafeRLHF and
HelpSteer. A column that is not here, an id or a source's name, says nothing that a model could learn from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from raydpo.errors import UserError

_SYSTEM = "a system message before the prompt"
_HISTORY = "the turns before the prompt"
_TOOLS = "the functions that the model may call"
_MEDIA = "what the prompt shows or plays"
_TEMPLATE = "an argument of the chat template"
_WEIGHT = "how much the row counts in the loss"
_MASK = "which tokens are trained on"
_SCORE = "how good the completions are"
_WINNER = "which of the two completions is the better one"
_RANKED = "more answers than the pair that is read"

OF_A_PROMPT: Mapping[str, str] = {
    "system": _SYSTEM,
    "system_prompt": _SYSTEM,
    "system_message": _SYSTEM,
    "history": _HISTORY,
    "messages": "a whole conversation",
    "conversations": "a whole conversation",
    "instruction": "the task that the prompt belongs to",
    "input": "the second half of an instruction",
    "context": "the text that an instruction speaks of",
    "documents": "texts that the chat template shows to the model",
    "tools": _TOOLS,
    "functions": _TOOLS,
    "image": _MEDIA,
    "images": _MEDIA,
    "video": _MEDIA,
    "videos": _MEDIA,
    "audio": _MEDIA,
    "audios": _MEDIA,
    "objects": _MEDIA,
    "chat_template_kwargs": _TEMPLATE,
    "enable_thinking": _TEMPLATE,
}
OF_A_COMPLETION: Mapping[str, str] = {
    "tool_calls": "calls that the completion makes",
    "reasoning_content": "the reasoning before the completion",
    "weight": _WEIGHT,
    "weights": _WEIGHT,
    "sample_weight": _WEIGHT,
    "loss_scale": _WEIGHT,
    "loss_mask": _MASK,
    "completion_mask": _MASK,
    "assistant_masks": _MASK,
}
OF_A_PAIR: Mapping[str, str] = {
    "margin": "how far apart the completions are, for the loss",
    "score_chosen": _SCORE,
    "score_rejected": _SCORE,
    "chosen_score": _SCORE,
    "rejected_score": _SCORE,
    "scores": _SCORE,
    "label": _WINNER,
    "labels": _WINNER,
    "winner": _WINNER,
    "preference": _WINNER,
    "overall_preference": _WINNER,
    "preference_strength": "how far apart the completions are, and in which direction",
    "better_response_id": _WINNER,
    "safer_response_id": _WINNER,
    "answers": _RANKED,
    "completions": _RANKED,
    "rejected_messages": "the conversation of the worse completion",
    "rejected_response": "the worse completion",
    "rejected_images": _MEDIA,
}


def meaning(column: str, names: Collection[str]) -> str | None:
    """What a column says that would be lost, in a row with fields of these names; None where nothing would be."""
    name = column.lower().replace("-", "_")
    found = OF_A_PROMPT.get(name)
    if found is None and names != {"prompt"}:
        found = OF_A_COMPLETION.get(name)
    if found is None and "chosen" in names:
        found = OF_A_PAIR.get(name)
    return found


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: absent, or without content. Parquet gives None for a key that a row lacks."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def refuse_lost_columns(
    raw: Mapping[str, Any], read: Collection[str], names: Collection[str], ignore: Collection[str], place: str
) -> None:
    """Raise UserError for columns with a meaning that are neither read nor ignored, and say what each of them is.

    read: columns that become fields; names: the fields' names. A column that repeats what a read one says is no loss.
    """
    lost = []
    for column, value in raw.items():
        if column in read or column in ignore or is_nothing(value):
            continue
        if meaning(column, names) and not any(value == raw.get(other) for other in read):
            lost.append(column)
    if lost:
        what = "; ".join(f"{column!r} ({meaning(column, names)})" for column in lost)
        raise UserError(
            f"{place} has columns that would be lost: {what}. Put what they say into the columns that are read, or "
            f"set data.ignore: [{', '.join(lost)}] to leave them out knowingly."
        )
