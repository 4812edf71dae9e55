"""What the sections of a run file are made of: the strict base class, counts, and paths that are made absolute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Cpus = Annotated[float, Field(ge=0)]


def _absolute(path: str) -> str:
    """Workers run elsewhere, so a relative path is made absolute where the run file is read; a URI stays."""
    if "://" in path:
        return path
    local = os.path.expanduser(path)
    if local.startswith("~"):
        raise ValueError(f"there is no user {local.split('/')[0][1:]!r}; write the directory out")
    return str(Path(local).absolute())


def absolute_if_local(model: str) -> str:
    """A model may also be a hub name, which is what a name without a directory is taken for."""
    looks_local = model.startswith((".", "/", "~")) or Path(model).exists()
    return _absolute(model) if looks_local else model


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(f"{path} is an address; set a directory, on a disk that every node mounts")
    return path


def _listed(names: object) -> object:
    """A single name is a list of one."""
    return [names] if isinstance(names, str) else names


Location = Annotated[str, AfterValidator(_absolute)]
Directory = Annotated[str, AfterValidator(_local), AfterValidator(_absolute)]
ModelLocation = Annotated[str, AfterValidator(absolute_if_local)]
Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]


class Section(BaseModel):
    """A section of the run file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    former_keys: ClassVar[Mapping[str, str]] = {}  # names that earlier run files use, with those of today

    @model_validator(mode="before")
    @classmethod
    def _by_their_names_of_today(cls, tree: Any) -> Any:
        """A former key counts as the one of today; both together are refused, since nobody could say which holds."""
        if not isinstance(tree, dict):
            return tree
        for former, today in cls.former_keys.items():
            if former in tree and today in tree:
                raise ValueError(f"{former} is the former name of {today}, and both are set; keep {today}")
        return {cls.former_keys.get(key, key): value for key, value in tree.items()}
