"""What an endpoint has answered and what that cost, on the disk: nothing is paid for twice, no budget is passed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydpo.config.schema import Budget, Prices
from raydpo.storage.journal import Journal


class OutOfBudget(Exception):
    """The next question might pass the budget, so it is not asked."""


@dataclass(frozen=True)
class Usage:
    """Requests that were answered, and their tokens."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return self + Usage(-other.requests, -other.input_tokens, -other.output_tokens)

    def cost(self, prices: Prices) -> float:
        """In the currency of the prices."""
        return (self.input_tokens * prices.input + self.output_tokens * prices.output) / 1e6


@dataclass(frozen=True)
class Reply:
    """What came back for one request."""

    text: str
    usage: Usage


class Ledger:
    """The replies of one endpoint, found by the content of the request.

    Replies of other endpoints in the same file stay there, unread, and are not counted.
    """

    def __init__(self, path: Path, identity: str, budget: Budget, prices: Prices) -> None:
        self._journal = Journal(path)
        self._identity = identity
        self._budget = budget
        self._prices = prices
        own = [entry for entry in self._journal.entries if entry.get("identity") == identity]
        self._replies = {entry["key"]: _reply(entry) for entry in own}
        self.spent = sum((_reply(entry).usage for entry in own), Usage())
        self.found = 0  # requests that needed no asking

    @property
    def cost(self) -> float:
        """Of everything that was ever asked of this endpoint for the run."""
        return self.spent.cost(self._prices)

    def find(self, request: Mapping[str, Any]) -> Reply | None:
        """The reply to a request that was made before."""
        found = self._replies.get(self._key(request))
        self.found += found is not None
        return found

    def keep(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Put a reply on the disk, with what it has used."""
        key = self._key(request)
        self._journal.add({"key": key, "identity": self._identity, "text": reply.text, **asdict(reply.usage)})
        self._replies[key] = reply
        self.spent += reply.usage

    def has_room(self, reserved: Usage) -> bool:
        """Whether the budget allows what is reserved beside what is spent."""
        after = self.spent + reserved
        budget = self._budget
        return not (
            (budget.requests is not None and after.requests > budget.requests)
            or (budget.tokens is not None and after.input_tokens + after.output_tokens > budget.tokens)
            or (budget.cost is not None and after.cost(self._prices) > budget.cost)
        )

    def _key(self, request: Mapping[str, Any]) -> str:
        content = json.dumps([self._identity, request], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class Room:
    """What the budget still allows, shared by the requests in flight of one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reserved = Usage()
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, most: Usage) -> AsyncIterator[None]:
        """Keep room for the most that a request can use, for the length of the block.

        Waits while requests in flight hold what it needs. Raises OutOfBudget where there would be no room without them.
        """
        async with self._freed:
            while not self._ledger.has_room(self._reserved + most):
                if self._reserved == Usage():
                    raise OutOfBudget
                await self._freed.wait()
            self._reserved += most
        try:
            yield
        finally:
            async with self._freed:
                self._reserved -= most
                self._freed.notify_all()


def _reply(entry: Mapping[str, Any]) -> Reply:
    return Reply(entry["text"], Usage(entry["requests"], entry["input_tokens"], entry["output_tokens"]))
