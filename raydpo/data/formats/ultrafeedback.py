"""UltraFeedback as published: an instruction and the responses of several models, each with its scores."""

from __future__ import annotations

from raydpo.data.formats.contract import Format, Raw, answer, asked, has, is_dicts, put, take, take_dicts
from raydpo.data.formats.groups import scores_in, texts_in

_SCORES = ("overall_score", "fine-grained_score")


def _convert(row: Raw, place: str) -> Raw:
    group = take_dicts(row, "completions", place)
    completions = [answer(text) for text in texts_in(group, "response", place)]
    prompt = asked(row, take(row, "instruction", place))
    return put(row, place, prompt=prompt, completions=completions, scores=scores_in(group, _SCORES, place))


FORMATS = (
    Format(
        "ultrafeedback",
        "ranked",
        "`instruction`, `completions[{response, overall_score}]`",
        lambda row: has(row, "instruction") and is_dicts(row.get("completions"), "response"),
        _convert,
    ),
)
