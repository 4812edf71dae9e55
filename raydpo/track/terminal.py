"""The terminal of a job: it shows our own lines. What libraries print, here or in a worker, is kept in a log file.

Ray, torch and vLLM print through Python, through logging and from C++, in this process and in others whose output Ray
forwards. So the descriptors of stdout and stderr lead to the log, and in front of them a sorter looks for our mark.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from raydpo.track.say import MARK, MARKED

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REPEATED = " [repeated "  # Ray's word for a line that others have said before
_SORTED = (("stdout", 1), ("stderr", 2))


@contextmanager
def only_our_lines(log: Path) -> Iterator[None]:
    """Inside the block say() reaches the terminal, and everything that is printed is appended to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writing = stack.enter_context(log.open("a", encoding="utf-8", buffering=1))
        writing.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {log.stem} begins\n")
        os.environ[MARKED] = "1"
        stack.callback(os.environ.pop, MARKED)
        for name, descriptor in _SORTED:
            stack.enter_context(_led_to(writing, name, descriptor))
        yield


def screen() -> TextIO:
    """Stderr as it was before sorting, which is where a bar is drawn."""
    return sys.stderr.terminal if isinstance(sys.stderr, _Sorter) else sys.stderr


@contextmanager
def _led_to(log: TextIO, name: str, descriptor: int) -> Iterator[None]:
    """One of stdout and stderr, as an object of Python's and as a descriptor."""
    stream: TextIO = getattr(sys, name)
    stream.flush()
    saved = os.dup(descriptor)
    with _terminal_of(stream, descriptor) as terminal:
        sorter = _Sorter(log, terminal)
        os.dup2(log.fileno(), descriptor)
        setattr(sys, name, sorter)
        try:
            yield
        finally:
            sorter.release(stream)
            setattr(sys, name, stream)
            with suppress(OSError):  # of a full disk, which has nothing to do with what was to be done
                stream.flush()
            os.dup2(saved, descriptor)
            os.close(saved)


@contextmanager
def _terminal_of(stream: TextIO, descriptor: int) -> Iterator[TextIO]:
    """A stream that goes on to where this one leads, though its descriptor is led elsewhere."""
    try:
        follows = stream.fileno() == descriptor
    except (OSError, ValueError):  # a stream in memory has none
        follows = False
    if not follows:
        yield stream
        return
    with open(os.dup(descriptor), "w", encoding=stream.encoding, errors=stream.errors, buffering=1) as copy:
        yield copy


class _Sorter:
    """Stands for stdout or stderr: every line goes to the log, and ours to the terminal too."""

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self._log = log
        self.terminal = terminal
        self._begun = ""  # of a line whose end has not come

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._sort(_COLOURS.sub("", line))
        return len(text)

    def _sort(self, line: str) -> None:
        with suppress(OSError):  # a full disk must not end a job for what is only told of it
            self._log.write(line + "\n")
        _, mark, ours = line.partition(MARK)  # in front of it Ray says who has said it
        if mark and _REPEATED not in ours and self.terminal is not self._log:
            print(ours, file=self.terminal, flush=True)

    def release(self, stream: TextIO) -> None:
        """From now on everything goes to this stream: handlers of logging may keep the sorter for long."""
        if self._begun:
            self.write("\n")
        self._log = self.terminal = stream

    def flush(self) -> None:
        with suppress(OSError):
            self._log.flush()

    def __getattr__(self, name: str) -> Any:
        """Whatever else a stream has is the log's: no terminal, a descriptor, an encoding."""
        return getattr(self._log, name)
