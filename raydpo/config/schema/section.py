"""What the sections of a run file are made of: the strict base class, counts, and paths that are made absolute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

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


def _absolute_if_local(model: str) -> str:
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
ModelLocation = Annotated[str, AfterValidator(_absolute_if_local)]
Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]


class Section(BaseModel):
    """A section of the run file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
