"""Which files a pattern stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.data.paths import TASK_BYTES, TASK_FILES, Found, expand_paths, find_files, share_out
from raydpo.data.reading import read_chunks
from raydpo.data.rows import prompt_fields
from raydpo.errors import UserError

pytestmark = pytest.mark.unit

FILM = {"prompt": "The film"}


def put(root: Path, *names: str) -> str:
    """Files of one prompt each below the root; returns it as text."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(FILM) + "\n")
    return str(root)


def found(root: str, pattern: str) -> list[str]:
    """What a pattern below the root finds, relative to it."""
    return [path.removeprefix(f"{root}/") for path in expand_paths([f"{root}/{pattern}"])]


def test_stars_take_folders_to_the_depth_that_they_say(tmp_path: Path) -> None:
    root = put(tmp_path, "a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/y/z/d.jsonl", ".hidden/e.jsonl", "x/.f.jsonl")
    assert found(root, "**/*.jsonl") == ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/y/z/d.jsonl"]
    assert found(root, "**") == found(root, "**/*.jsonl")
    assert found(root, "x/**/*.jsonl") == ["x/b.jsonl", "x/y/c.jsonl", "x/y/z/d.jsonl"]
    assert found(root, "**/y/**/*.jsonl") == ["x/y/c.jsonl", "x/y/z/d.jsonl"]
    assert found(root, "*/*.jsonl") == ["x/b.jsonl"]
    assert found(root, "*/*/*.jsonl") == ["x/y/c.jsonl"]
    assert found(root, "x/.*.jsonl") == ["x/.f.jsonl"]


def test_only_stars_and_question_marks_are_no_letters(tmp_path: Path) -> None:
    root = put(tmp_path, "pairs[v2].jsonl", "pairsv.jsonl", "what?.jsonl", "whats.jsonl", "{a}.jsonl", "a b%20.jsonl")
    assert found(root, "pairs[v2].jsonl") == ["pairs[v2].jsonl"]
    assert found(root, "*[v2].jsonl") == ["pairs[v2].jsonl"]
    assert found(root, "{a}.jsonl") == ["{a}.jsonl"]
    assert found(root, "what?.jsonl") == ["what?.jsonl"], "a path that exists is taken as it stands"
    assert found(root, "wha??.jsonl") == ["what?.jsonl", "whats.jsonl"]
    assert found(root, "a*%20.jsonl") == ["a b%20.jsonl"]


def test_a_file_with_several_names_is_read_once(tmp_path: Path) -> None:
    root = put(tmp_path, "data/b.jsonl")
    (tmp_path / "data" / "a.jsonl").symlink_to(tmp_path / "data" / "b.jsonl")
    (tmp_path / "data" / "c.jsonl").hardlink_to(tmp_path / "data" / "b.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    assert found(root, "**/*.jsonl") == ["data/a.jsonl"]
    assert expand_paths([f"{root}/data/b.jsonl", f"{root}/linked/../data/b.jsonl"]) == [f"{root}/data/b.jsonl"]


def test_a_folder_that_is_linked_into_itself_is_walked_once(tmp_path: Path) -> None:
    root = put(tmp_path, "x/a.jsonl")
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    assert found(root, "**/*.jsonl") == ["x/a.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl", "a[1].jsonl", "a b.jsonl"])
def test_an_address_of_a_file_leads_to_it(name: str, tmp_path: Path) -> None:
    root = put(tmp_path, name)
    for pattern in (name, "*.jsonl"):
        [address] = expand_paths([f"file://{root}/{pattern}"])
        [chunk] = read_chunks(address, prompt_fields(), 10)
        assert chunk.rows == [FILM]


def test_sizes_come_with_the_files(tmp_path: Path) -> None:
    [file] = find_files([f"{put(tmp_path, 'a.jsonl')}/*"])
    assert (file.path, file.size) == (str(tmp_path / "a.jsonl"), (tmp_path / "a.jsonl").stat().st_size)


@given(st.lists(st.integers(0, 2 * TASK_BYTES) | st.integers(0, 9), max_size=200))
def test_every_file_is_in_one_reading_task_and_small_ones_share_theirs(sizes: list[int]) -> None:
    files = [Found(f"{i}.jsonl", size) for i, size in enumerate(sizes)]
    tasks = share_out(files)
    assert [file for task in tasks for file in task] == [(i, file.path) for i, file in enumerate(files)]
    for task in tasks:
        assert 1 <= len(task) <= TASK_FILES
        assert len(task) == 1 or sum(sizes[number] for number, _ in task) <= TASK_BYTES
    assert len(share_out([Found("a.jsonl", 100)] * 300)) == 5


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://datasets/a/b/c.jsonl", "is on a hub, where .*; fetch the files"),
        ("~nosuchuser/a.jsonl", "there is no user 'nosuchuser'; write the directory out"),
    ],
)
def test_a_path_that_cannot_be_followed_is_one_sentence(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        expand_paths([path])
    assert "\n" not in str(error.value)


def test_paths_are_sorted_and_each_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = ["b.jsonl", "a.jsonl", "c.parquet", "deep/d.jsonl", ".hidden.jsonl"]
    for name in names:
        (tmp_path / name).write_text(name)
    root = str(tmp_path)
    assert expand_paths([f"{root}/*.jsonl", f"{root}/a.jsonl"]) == [f"{root}/a.jsonl", f"{root}/b.jsonl"]
    assert expand_paths([f"{root}/*/*.jsonl"]) == [f"{root}/deep/d.jsonl"]
    assert expand_paths([f"{root}/*"]) == [f"{root}/{name}" for name in ("a.jsonl", "b.jsonl", "c.parquet")]
    assert expand_paths([]) == []


def test_a_relative_path_becomes_absolute_and_an_address_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"{put(tmp_path, 'a.jsonl')}/a.jsonl"
    assert expand_paths(["*.jsonl", "a.jsonl"]) == [path]
    [address] = expand_paths([f"file://{tmp_path}/*.jsonl"])
    assert address == f"file://{path}"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.jsonl", "none.jsonl matches no file; check the path"),
        ("*.parquet", r"\*.parquet matches no file"),
        ("no/such/*.jsonl", "matches no file"),
        ("folder", r"matches no file; it is a folder: give .*folder/\*.jsonl"),
        ("rows.csv", "rows.csv is none of .jsonl, .jsonl.gz, .parquet"),
    ],
)
def test_a_pattern_that_leads_nowhere_is_named(pattern: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.csv").write_text("x")
    with pytest.raises(UserError, match=message):
        expand_paths([f"{tmp_path}/{pattern}"])


def test_an_unknown_kind_of_address_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere://there/a.jsonl cannot be reached"):
        expand_paths(["nowhere://there/a.jsonl"])
