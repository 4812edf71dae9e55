"""Seconds, memory and the machine's name. On a CPU time is that of all threads, so other processes do not count."""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BUSY = "GPU s" if DEVICE == "cuda" else "CPU s"


@dataclass(frozen=True)
class Spent:
    """busy: CPU seconds of all threads of the process, or seconds between CUDA events; wall: seconds of the clock."""

    busy: float
    wall: float


class Stopwatch:
    """Starts when it is made."""

    def __init__(self) -> None:
        if DEVICE == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda.synchronize()
            self._events[0].record()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Spent:
        """What was spent since the start; on a GPU, once all that was asked of it is done."""
        if DEVICE == "cuda":
            self._events[1].record()
            torch.cuda.synchronize()
            busy = self._events[0].elapsed_time(self._events[1]) / 1000
        else:
            busy = time.process_time() - self._cpu
        return Spent(busy, time.perf_counter() - self._wall)


def busy_seconds(work: Callable[[], object]) -> float:
    """Busy seconds of one call."""
    watch = Stopwatch()
    work()
    return watch.stop().busy


def device_seconds(busy: float) -> float:
    """Seconds that the whole device was in use: CPU seconds are divided by the threads that shared them."""
    return busy if DEVICE == "cuda" else busy / torch.get_num_threads()


def peak_memory() -> int:
    """Bytes that this process has held at most: on the GPU where there is one, else resident in memory."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_rss("self")


def give_back_memory() -> None:
    """Hand freed memory back to the system, so that a contender does not crowd out the next while it waits."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak_rss(process: int | str) -> int:
    """High-water mark of a process's resident memory, in bytes, as the Linux kernel keeps it; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    marks = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(marks[0].split()[1]) * 1024 if marks else 0


def conditions() -> str:
    """The machine, the date and the versions, for the line above a table."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{device}, {datetime.date.today()}, {versions}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
