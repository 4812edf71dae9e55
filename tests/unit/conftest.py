"""What several unit tests start from: a store's two homes, a small run file, a model that may be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.models import save_tiny_model
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


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run on one pair, with its model; nothing has been prepared."""
    save_tiny_model(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "The film", "chosen": " is good", "rejected": " is bad"}\n')
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: small\noutput_dir: {tmp_path}/out\nmodel: {{path: {tmp_path}/model}}\n"
        f"data: {{train: [{tmp_path}/pairs.jsonl]}}\n"
    )
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model, which no test may change."""
    path = tmp_path_factory.mktemp("good")
    save_tiny_model(path)
    return path


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    """A copy of it, which every test may."""
    return Path(shutil.copytree(good, tmp_path / "model"))
