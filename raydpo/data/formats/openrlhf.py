"""OpenRLHF's keys, where they are not TRL's: the prompt is `input`, a labelled completion `output`."""

from __future__ import annotations

from raydpo.data.formats.contract import Format, Raw, as_flag, has, lacks, put, take, with_margin


def _pair(row: Raw, place: str) -> Raw:
    return with_margin(put(row, place, prompt=take(row, "input", place)))


def _labelled(row: Raw, place: str) -> Raw:
    prompt, completion = take(row, "input", place), take(row, "output", place)
    row["label"] = as_flag(row.get("label"))
    return put(row, place, prompt=prompt, completion=completion)


FORMATS = (
    Format(
        "openrlhf",
        "pair",
        "`input`, `chosen`, `rejected`",
        lambda row: has(row, "input", "chosen", "rejected") and lacks(row, "prompt", "instruction", "system"),
        _pair,
    ),
    Format(
        "openrlhf_kto",
        "unpaired",
        "`input`, `output`, `label`",
        lambda row: has(row, "input", "output", "label") and lacks(row, "prompt", "completion", "instruction"),
        _labelled,
    ),
)
