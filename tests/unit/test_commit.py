"""The marker protocol: what is promised of a file is looked at, and no more than that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from raydpo.storage import commit, hashing
from raydpo.storage.commit import Folder, Promise, find_flaw, promise_files

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "FOUND_WHOLE", set())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"0123456789")
    return path


def kind_of(root: Path, promise: Promise) -> str | None:
    flaw = find_flaw(Folder(root), "model/weights", promise)
    return flaw.kind if flaw else None


def test_what_was_promised_of_files_is_what_is_found(tmp_path: Path, file: Path) -> None:
    expected = Promise(hashlib.sha256(b"0123456789").hexdigest(), 10)
    assert promise_files(tmp_path, [file]) == {"model/weights": expected}
    assert kind_of(tmp_path, expected) is None


def directory_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def file_above(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()
    file.parent.write_bytes(b"")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "missing"),
    "a directory": (directory_instead, "missing"),
    "below a file": (file_above, "missing"),
    "cut": (lambda file: file.write_bytes(b"012345678"), "size"),
    "changed": (lambda file: file.write_bytes(b"0123456788"), "content"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_flaw_says_how_a_file_differs_and_only_from_what_was_promised(
    damage: str, tmp_path: Path, file: Path
) -> None:
    [whole] = promise_files(tmp_path, [file]).values()
    spoil, kind = DAMAGES[damage]
    spoil(file)
    assert kind_of(tmp_path, whole) == kind
    hashed = kind_of(tmp_path, Promise(sha256=whole.sha256))
    assert hashed == ("missing" if kind == "missing" else "content"), "without a size the bytes tell"
    presence = kind_of(tmp_path, Promise())
    assert presence == ("missing" if kind == "missing" else None), "whoever promises nothing else is not held to it"


def test_a_refusal_of_the_owner_is_not_remembered_as_whole(tmp_path: Path, file: Path) -> None:
    [promise] = promise_files(tmp_path, [file]).values()

    def refuse() -> None:
        raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            find_flaw(Folder(tmp_path), "model/weights", promise, remember=True, inspect=refuse)
    assert find_flaw(Folder(tmp_path), "model/weights", promise, remember=True) is None
    assert find_flaw(Folder(tmp_path), "model/weights", promise, remember=True, inspect=refuse) is None


@pytest.mark.parametrize("remember", [False, True])
def test_a_process_reads_a_whole_file_again_unless_it_remembers(
    remember: bool, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [promise] = promise_files(tmp_path, [file]).values()
    read: list[str] = []
    monkeypatch.setattr(commit, "sha256", lambda stream: read.append("once") or hashing.sha256(stream))
    for _ in range(3):
        assert find_flaw(Folder(tmp_path), "model/weights", promise, remember=remember) is None
    assert len(read) == (1 if remember else 3)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 100])
def test_a_digest_does_not_depend_on_the_blocks_that_are_read(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_BLOCK", 32)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert hashing.sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
