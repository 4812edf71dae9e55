"""Argilla and distilabel: an instruction, the generations of several models, and as many ratings."""

from __future__ import annotations

from raydpo.data.formats.contract import Format, Raw, answer, asked, has, is_texts, lacks, put, take
from raydpo.data.messages import short
from raydpo.errors import UserError

_QUESTIONS = ("instruction", "input", "prompt")


def _convert(row: Raw, place: str) -> Raw:
    texts = take(row, "generations", place)
    if not is_texts(texts):
        raise UserError(f"{place}, column 'generations', is {short(texts)}; it is a list of texts.")
    scores = take(row, "ratings" if has(row, "ratings") else "rating", place)
    question = next((name for name in _QUESTIONS if has(row, name)), _QUESTIONS[0])
    prompt = asked(row, take(row, question, place))
    return put(row, place, prompt=prompt, completions=[answer(text) for text in texts], scores=scores)


FORMATS = (
    Format(
        "argilla",
        "ranked",
        "`instruction`, `input` or `prompt`, `generations`, `ratings` or `rating`; `system`",
        lambda row: (
            is_texts(row.get("generations"))
            and any(isinstance(row.get(name), list) for name in ("ratings", "rating"))
            and any(has(row, name) for name in _QUESTIONS)
            and lacks(row, "chosen", "rejected")
        ),
        _convert,
    ),
)
