"""The names of our arithmetic, for the key of the reference store. No torch: whoever looks values up needs none."""

from __future__ import annotations

VERSION = 3  # raise it whenever a change in attention, flex, head or score moves a number
SEGMENTS = "raydpo_segments"  # raydpo.model.attention
FLEX = "raydpo_flex"  # raydpo.model.flex


def backend_for(device_type: str) -> str:
    """The name of the packed attention that is used on devices of a type."""
    return FLEX if device_type == "cuda" else SEGMENTS
