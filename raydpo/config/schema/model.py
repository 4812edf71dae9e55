"""The section `model`."""

from __future__ import annotations

from typing import Literal

from raydpo.config.schema.section import ModelLocation, Section


class Model(Section):
    """The policy's starting weights, its tokenizer and the number format of every forward pass."""

    path: ModelLocation  # a directory in Hugging Face format, or a hub name where a hub can be reached
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    fp32_head: bool = False  # logits in float32 although dtype is bfloat16: half the rounding error, a slower head
