"""Laws of files and of what is said of them: whole or absent, and a full disk is named with the file."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from raydpo.errors import UserError
from raydpo.storage.files import storage_refusal, whole_file

pytestmark = pytest.mark.unit


def test_a_write_that_fails_leaves_the_file_as_it_was_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("before")
    with pytest.raises(OSError, match="No space left") as failed:
        write_half(path)
    assert failed.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_is_for_the_user_to_mend(number: int) -> None:
    refusal = storage_refusal(OSError(number, "the reason", "out/metrics.jsonl"))
    assert refusal
    assert str(refusal).startswith("out/metrics.jsonl cannot be written: the reason. Make room")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "a broken disk"), ValueError("a defect"), None])
def test_other_errors_are_not(error: Exception | None) -> None:
    assert storage_refusal(error) is None


def test_a_message_to_the_user_arrives_as_it_was_written() -> None:
    error = UserError("row 71 is too long")
    error.args = ("row 71 is too long\nFailed to apply UDF transform after 1/1 attempts",)  # as Ray Data does
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "row 71 is too long"
