"""Lines for the user, wherever the process that has them runs."""

from __future__ import annotations

import os
import sys
from typing import TextIO

MARK = "[raydpo] "  # tells our lines from those of libraries, where a job sorts them
MARKED = "RAYDPO_MARKED"  # an environment variable: lines of this process are sorted by somebody


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines that the user is meant to see, on stdout or another stream. Everything else goes to a log file.

    Workers say them too: Ray brings what they print to the job, which sorts it.
    """
    mark = MARK if os.environ.get(MARKED) else ""
    for line in text.splitlines():
        print(mark + line, file=file or sys.stdout, flush=True)
