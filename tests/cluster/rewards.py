"""Reward functions with faults, for the tests of the sample stage."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path


def breaks_late(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Counts the letter e; raises at one late prompt until the file that an environment variable names is there."""
    mended = Path(os.environ["RAYDPO_TEST_MENDED"]).exists()
    for prompt in prompts:
        if prompt.startswith("40 ") and not mended:
            raise ConnectionError("the judge is away")
    return [float(completion.count("e")) for completion in completions]


def never_returns(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Hangs where no signal reaches: a regular expression holds the interpreter."""
    Path(os.environ["RAYDPO_TEST_MENDED"]).touch()
    re.match(r"(a+)+$", "a" * 60 + "b")
    return [0.0] * len(completions)


def dies(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Takes its process down, as a lack of memory does."""
    os._exit(1)


def takes_long(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Comes back in the end."""
    time.sleep(4)
    return [1.0] * len(completions)
