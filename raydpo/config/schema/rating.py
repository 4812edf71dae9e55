"""What rates completions: the key `reward` of the sections that need it, and the section `rating` for models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from raydpo.config.schema.reference import Pool
from raydpo.config.schema.section import Directory, PositiveInt, Section, absolute_if_local

_OF_MODELS = ("reward_model", "implicit", "ensemble")  # kinds of raydpo.reward.names whose name holds paths
_REFERENCE = "reference="


def _with_whole_paths(name: str) -> str:
    """A reward that is a model is read by workers elsewhere, so its paths are made absolute as model.path is."""
    kind, colon, rest = name.partition(":")
    if not colon or kind not in _OF_MODELS:
        return name
    places, mark, settings = rest.partition("?")
    whole = ",".join(absolute_if_local(place.strip()) for place in places.split(",")) if places else ""
    parts = [
        _REFERENCE + absolute_if_local(part.removeprefix(_REFERENCE)) if part.startswith(_REFERENCE) else part
        for part in settings.split("&")
    ]
    return f"{kind}:{whole}{mark}{'&'.join(parts)}"


RewardName = Annotated[str, AfterValidator(_with_whole_paths)]


class Rewarded(Section):
    """A section whose completions get a reward each."""

    former_keys: ClassVar[Mapping[str, str]] = {"scorer": "reward"}

    reward: RewardName = "vader"  # see raydpo.reward.names for what else it may be


class Rating(Section):
    """The pool that rates by reward models and implicit rewards, and where all rewards are kept."""

    pool: Pool = Pool()
    tokens_per_batch: PositiveInt = 4096
    store: Directory | None = None  # default: <output_dir>/scores; runs that name the same share what they have rated
