"""A reference store's two homes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stores import s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Makes addresses on an S3 server, each with a prefix of its own."""
    with s3_server() as new_address:
        yield new_address


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that is not there yet, on a local disk and on S3."""
    if request.param == "disk":
        return str(tmp_path / "store")
    new_address: Callable[[], str] = request.getfixturevalue("s3")
    return new_address()
