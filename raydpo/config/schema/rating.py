"""What rates completions: the key `reward` of the sections that need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from raydpo.config.schema.section import Section


class Rewarded(Section):
    """A section whose completions get a reward each."""

    former_keys: ClassVar[Mapping[str, str]] = {"scorer": "reward"}

    reward: str = "vader"  # a name of raydpo.reward.functions, or package.module:function
