"""The commit protocol: nothing counts before its marker, and whatever is killed leaves the newest commit intact."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raydpo.train.checkpoint import commits
from raydpo.train.checkpoint.commits import MANIFEST, MARKER, Commit, Cursor
from raydpo.train.checkpoint.state import WEIGHT, SavedState
from tests.commits import flip_a_bit, save

pytestmark = pytest.mark.unit

FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def killed_at(operation: int, function: Callable[[], Any]) -> bool:
    """Run in a child that is killed just before its nth operation on files; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = operation

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event in FILE_OPERATIONS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        function()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def loads(commit: Commit | None) -> int:
    """The step of a commit whose state is whole and its own."""
    assert commit is not None
    assert (SavedState(commit.path).whole(WEIGHT, "w") == commit.cursor.step).all()
    return commit.cursor.step


def test_wherever_saving_is_killed_the_newest_commit_loads_and_the_next_run_tidies_up(tmp_path: Path) -> None:
    points, resumed_from = 0, []
    while True:
        directory = tmp_path / str(points)
        save(directory, 1)
        survived = not killed_at(points, partial(save, directory, 2))
        resumed_from.append(loads(commits.newest(directory)))
        assert not list(directory.glob("broken-*")), "a kill never looks like a broken commit"
        commits.clear(directory)
        assert [commit.path for commit in commits.commits(directory)] == sorted(directory.iterdir())
        save(directory, 3)
        assert loads(commits.newest(directory)) == 3
        if survived:
            break
        points += 1
    assert points >= 8
    assert sorted(resumed_from) == resumed_from, "once committed, it stays committed"
    assert {1, 2} == set(resumed_from)


def test_what_a_marker_vouches_for_is_on_the_disk_before_the_marker_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk, rename, flush = set(), Path.replace, os.fsync

    def flushed(descriptor: int) -> None:
        flush(descriptor)
        on_disk.add(os.fstat(descriptor).st_ino)

    def renamed(path: Path, target: Path) -> Path:
        if target.name == MARKER:
            vouched_for = {target.parent.parent, *target.parent.parent.rglob("*")}
            lost.extend(each.name for each in vouched_for if each.stat().st_ino not in on_disk)
        return rename(path, target)

    lost: list[str] = []
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    path = tmp_path / "step-000007.attempt-a"
    (path / "model").mkdir(parents=True)
    config = path / "model" / "config.json"
    config.write_text("{}")  # as transformers does, which flushes nothing
    commits.write_part(path, 0, [config])
    commits.commit_parts(path, Cursor(7, "run", 1, 2), timeout_s=5, cancelled=lambda: False)
    assert commits.read_commit(path)
    assert lost == []


def test_commits_come_by_rising_step_with_what_was_committed(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    [found] = commits.commits(tmp_path)
    assert found.path == path
    assert found.cursor == Cursor(7, "run", 2, 2)
    assert set(found.files) == {"rank-00000.safetensors", "rank-00001.safetensors"}
    assert found.size == sum((path / name).stat().st_size for name in found.files)


def test_nothing_is_committed_while_a_rank_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.attempt-a"
    (path / "file").parent.mkdir()
    (path / "file").write_text("")
    commits.write_part(path, 0, [path / "file"])
    with pytest.raises(TimeoutError, match=r"ranks \[1\] did not write their parts"):
        commits.commit_parts(path, Cursor(1, "run", 2, 2), timeout_s=0.1, cancelled=lambda: False)
    commits.commit_parts(path, Cursor(1, "run", 2, 2), timeout_s=5, cancelled=lambda: True)
    assert commits.latest(tmp_path) is None


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["rank-00001.safetensors", MANIFEST])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, Path.unlink])
def test_a_damaged_commit_is_set_aside_for_the_one_before(
    damage: Callable[[Path], None], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (save(tmp_path / str(step), step) for step in (1, 2))
    second = second.rename(first.parent / second.name)
    damage(second / name)
    commits.clear(first.parent)
    assert loads(commits.newest(first.parent)) == 1
    assert sorted(path.name for path in first.parent.iterdir()) == [f"broken-{second.name}", first.name]
    assert f"{name} is missing or does not match its hash" in capsys.readouterr().out


def test_a_garbled_marker_commits_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / MARKER).write_text("")
    assert commits.newest(tmp_path) is None


def test_tidying_up_leaves_what_no_run_has_written(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-000002.attempt-killed").mkdir()
    mine = tmp_path / "step-by-step"
    mine.mkdir()
    commits.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001.attempt-1", mine.name]
