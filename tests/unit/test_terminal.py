"""The terminal shows our lines alone; whatever else is printed, by whom and how ever, is in the log file."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.track.say import MARK, say
from raydpo.track.terminal import _Sorter, only_our_lines

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).parents[2]
NOISE = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from raydpo.track.say import say
from raydpo.track.progress import Progress
from raydpo.track.terminal import only_our_lines

handler = logging.StreamHandler()  # made before: it keeps stderr as it was
logging.getLogger().addHandler(handler)
with only_our_lines(Path(sys.argv[1])):
    print("a library's line")
    print("\\x1b[36m(Worker pid=7)\\x1b[0m a library's line in a worker")
    print("\\x1b[36m(Worker pid=7)\\x1b[0m [raydpo] ours in a worker")
    print("\\x1b[36m(Worker pid=7)\\x1b[0m [raydpo] ours in a worker \\x1b[32m [repeated 2x across cluster]\\x1b[0m")
    os.write(1, b"from C++\\n")
    os.write(2, b"an error from C++\\n")
    subprocess.run(["echo", "a child's line"])
    warnings.warn("a warning", FutureWarning)
    logging.getLogger().warning("a log record")
    say("ours\\nin two lines")
    say("ours as an error", sys.stderr)
    with Progress("prepare", total=2, unit="rows") as progress:
        progress.advance(2)
print("after")
logging.getLogger().warning("a late record")
os.write(1, b"late, from C++\\n")
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What a noisy job has shown, and the lines of its log."""
    log = tmp_path_factory.mktemp("out") / "logs" / "run.log"
    answer = subprocess.run(
        [sys.executable, "-c", NOISE, str(log)], capture_output=True, text=True, cwd=CHECKOUT, check=True
    )
    return answer, log.read_text().splitlines()


def test_the_terminal_shows_our_lines_without_marks_and_colours(
    noisy: tuple[subprocess.CompletedProcess[str], list[str]],
) -> None:
    shown = noisy[0]
    assert shown.stdout.splitlines() == ["ours in a worker", "ours", "in two lines", "after", "late, from C++"]
    first, *progress, late = shown.stderr.splitlines()
    assert (first, late) == ("ours as an error", "a late record")
    assert progress and all(line.startswith("prepare: ") for line in progress)


def test_the_log_holds_everything_that_was_printed_meanwhile(
    noisy: tuple[subprocess.CompletedProcess[str], list[str]],
) -> None:
    _, log = noisy
    for line in (
        "a library's line",
        "(Worker pid=7) a library's line in a worker",
        f"(Worker pid=7) {MARK}ours in a worker",
        "from C++",
        "an error from C++",
        "a child's line",
        "a log record",
        f"{MARK}ours",
        f"{MARK}ours as an error",
    ):
        assert line in log
    assert any("FutureWarning: a warning" in line for line in log)
    assert not [line for line in log if "\x1b" in line]
    assert not {"after", "a late record", "late, from C++"} & set(log)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d run begins", log[0])


def test_a_second_job_adds_to_the_log(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with only_our_lines(tmp_path / "run.log"):
            print(text)
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert (len(lines), lines[1], lines[3]) == (4, "one", "two")


def test_lines_are_plain_where_nobody_sorts_them(capsys: pytest.CaptureFixture[str]) -> None:
    say("ours")
    assert capsys.readouterr().out == "ours\n"


def test_streams_and_descriptors_are_as_before_whatever_happens_inside(tmp_path: Path) -> None:
    before = (sys.stdout, sys.stderr, os.fstat(1), os.fstat(2), dict(os.environ))
    with suppress(ZeroDivisionError), only_our_lines(tmp_path / "run.log"):
        assert os.fstat(1).st_ino == (tmp_path / "run.log").stat().st_ino
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr, os.fstat(1), os.fstat(2), dict(os.environ)) == before


def test_a_handler_that_outlives_the_block_writes_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_our_lines(tmp_path / "run.log"):
        handler = logging.StreamHandler(sys.stderr)
        print("begun", end="", file=sys.stderr)
    handler.emit(logging.makeLogRecord({"msg": "late"}))
    assert capsys.readouterr().err == "late\n"
    assert (tmp_path / "run.log").read_text().endswith("begun\n")


def test_a_log_on_a_full_disk_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        sorter = _Sorter(full, sys.stdout)
        sorter.write(f"a library's line\n{MARK}ours\n")
        sorter.release(sys.stdout)
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert capsys.readouterr().out == "ours\n"


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n\x1b", exclude_categories=["Cs"]))), data=st.data())
def test_lines_are_sorted_the_same_in_whatever_pieces_they_come(lines: list[str], data: st.DataObject) -> None:
    ours = [data.draw(st.booleans()) for _ in lines]
    text = "".join(f"{MARK if mine else ''}{line}\n" for line, mine in zip(lines, ours, strict=True))
    log, terminal = _Pieces(), _Pieces()
    sorter = _Sorter(log, terminal)
    while text:
        size = data.draw(st.integers(1, len(text)))
        sorter.write(text[:size])
        text = text[size:]
    assert terminal.text == "".join(f"{line}\n" for line, mine in zip(lines, ours, strict=True) if mine)
    assert log.text.count("\n") == len(lines)


class _Pieces:
    """A stream in memory that leaves line ends as they are."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass
