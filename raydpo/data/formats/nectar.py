"""Nectar: a transcript up to `Assistant:`, and the answers of several models with their ranks, 1 for the best."""

from __future__ import annotations

from raydpo.data.formats.contract import Format, Raw, is_dicts, is_text, put, take, take_dicts
from raydpo.data.formats.groups import ranks_in, texts_in


def _convert(row: Raw, place: str) -> Raw:
    """The space behind `Assistant:` begins the answers, as it does in HH: words have their space in front."""
    prompt = take(row, "prompt", place)
    group = take_dicts(row, "answers", place)
    texts = texts_in(group, "answer", place)
    if is_text(prompt, *texts) and prompt.endswith(": "):
        prompt = prompt[:-1]
        texts = [f" {text}" if text else text for text in texts]
    return put(row, place, prompt=prompt, completions=texts, ranks=ranks_in(group, "rank", place))


FORMATS = (
    Format(
        "nectar",
        "ranked",
        "`prompt`, `answers[{answer, rank}]`",
        lambda row: is_text(row.get("prompt")) and is_dicts(row.get("answers"), "answer", "rank"),
        _convert,
    ),
)
