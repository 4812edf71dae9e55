"""Waits that end: what takes too long becomes an error that names the rank and the place."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_OUT_OF_TIME = re.compile(r"timed? ?out", re.IGNORECASE)


class Whereabouts:
    """Where a rank is in its work, kept true by whoever does it."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.at = "starting"

    def __str__(self) -> str:
        return f"rank {self._rank}, {self.at}"


def within(items: Iterable[T], seconds: float, place: Whereabouts) -> Iterator[T]:
    """The items as they come, made in a thread one ahead. TimeoutError with the place when the next takes longer."""
    arrived: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)

    def fetch() -> None:
        try:
            for item in items:
                arrived.put((item, None))
        except BaseException as error:  # it is raised where the items are used
            arrived.put((None, error))
        else:
            arrived.put((None, StopIteration()))

    threading.Thread(target=fetch, name="fetch", daemon=True).start()
    while True:
        try:
            item, error = arrived.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"{place}: nothing came for {seconds:g} s.") from None
        if isinstance(error, StopIteration):
            return
        if error:
            raise error
        yield item  # type: ignore[misc]  # None comes with an error only


@contextmanager
def named(place: Whereabouts) -> Iterator[None]:
    """A collective that runs out of time inside the block is a TimeoutError with the place; gloo's names a socket."""
    try:
        yield
    except RuntimeError as error:
        if not _OUT_OF_TIME.search(str(error)):
            raise
        raise TimeoutError(f"{place}: another rank is late. {error}") from error
