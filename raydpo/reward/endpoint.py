"""A model behind an OpenAI-compatible endpoint as a judge: asked in parallel, patiently, and within its budget."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from raydpo.config.schema import AskedJudge
from raydpo.errors import UserError, reason
from raydpo.reward.address import Address
from raydpo.reward.judge import Orders, Preference, Ruling
from raydpo.reward.ledger import Ledger, OutOfBudget, Reply, Room, Usage
from raydpo.reward.questions import firmer_wording, first_wording, read_choice
from raydpo.track.progress import Progress
from raydpo.track.say import say

GIVE_UP_AFTER = 8  # requests in a row that came to nothing, each after its retries
_NO_REPLY = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)


Texts = tuple[str, str, str]  # prompt and both completions


@dataclass(frozen=True)
class _Line:
    """The way to the endpoint while one event loop runs."""

    client: openai.AsyncOpenAI
    room: Room


class EndpointJudge:
    """Asks a model which completion is better. What it has answered before is read from the ledger."""

    def __init__(
        self, name: str, asked: AskedJudge, address: Address, question: str, ledger: Ledger, orders: Orders
    ) -> None:
        self._name = name
        self._who = f"judge {name}: {address.base_url}"  # as messages call it
        self._asked = asked
        self._address = address
        self._question = question
        self._ledger = ledger
        self._orders = orders
        self._stopped = False  # by the budget
        self._in_vain = 0  # requests in a row without a reply
        self._refused = 0  # the same, that the endpoint has called bad

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[Preference]:
        """One preference a prompt. An answer that the budget or the endpoint withholds has not arrived.

        Raises UserError for a key that is rejected, a model or host that is not there, an endpoint that has nothing
        but errors. Every reply until then is kept.
        """
        try:
            return asyncio.run(self._prefer(list(zip(prompts, a, b, strict=True))))
        except BaseExceptionGroup as group:
            raise _first(group) from None

    def known(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[Preference]:
        """The same from the ledger alone: what it does not hold has not arrived. Nobody is asked."""
        return asyncio.run(self._known(list(zip(prompts, a, b, strict=True))))

    async def _known(self, comparisons: Sequence[Texts]) -> list[Preference]:
        return [
            Preference(tuple([await self._answer(None, texts, a_first) for a_first in self._orders.of(*texts)]))
            for texts in comparisons
        ]

    async def _prefer(self, comparisons: Sequence[Texts]) -> list[Preference]:
        orders = {texts: self._orders.of(*texts) for texts in comparisons}  # what comes twice is asked once
        questions = [(texts, a_first) for texts, places in orders.items() for a_first in places]
        gate = asyncio.Semaphore(self._asked.parallel)
        with Progress(f"judge {self._name}", total=len(questions), unit="answers") as progress:

            async def answer(line: _Line, texts: Texts, a_first: bool) -> Ruling:
                async with gate:
                    found = await self._answer(line, texts, a_first)
                progress.advance(1, requests=self._ledger.spent.requests, cost=self._ledger.cost)
                return found

            async with self._client() as client, asyncio.TaskGroup() as group:
                line = _Line(client, Room(self._ledger))
                tasks = {question: group.create_task(answer(line, *question)) for question in questions}
        if self._stopped:
            self._say_budget()
        return [Preference(tuple(tasks[texts, a_first].result() for a_first in orders[texts])) for texts in comparisons]

    def _client(self) -> openai.AsyncOpenAI:
        """It tries again by itself: after timeouts, lost connections, 429 (as long as told to wait) and 5xx."""
        return openai.AsyncOpenAI(
            api_key=self._address.api_key,
            base_url=self._address.base_url,
            timeout=self._asked.timeout,
            max_retries=self._asked.retries,
        )

    async def _answer(self, line: _Line | None, texts: Texts, a_first: bool) -> Ruling:
        """In one order; a reply without a choice is asked for once more, in firmer words."""
        prompt, a, b = texts
        shown = {"prompt": prompt, "first": a if a_first else b, "second": b if a_first else a}
        words = ""
        for wording in (first_wording, firmer_wording):
            try:
                reply = await self._reply(line, wording(self._question, **shown))
            except openai.APIStatusError as error:  # this request is bad, as one that is too long
                return Ruling(a_first, None, reason(error))
            if reply is None:
                return Ruling(a_first, None, "", arrived=False)
            words = reply.text
            if verdict := read_choice(words):
                return Ruling(a_first, verdict, words)
        return Ruling(a_first, None, words)

    async def _reply(self, line: _Line | None, text: str) -> Reply | None:
        """From the ledger, or from the endpoint; None where there is none to be had now."""
        request: dict[str, Any] = {
            "model": self._address.model,
            "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": self._asked.max_tokens,
        }
        if self._asked.temperature is not None:
            request["temperature"] = self._asked.temperature
        if found := self._ledger.find(request):
            return found
        if self._stopped or line is None:
            return None
        # A token is at least a byte, so no question has more; what the chat template adds is counted generously.
        most = Usage(1, len(text.encode()) + 64, self._asked.max_tokens)
        try:
            async with line.room.reserve(most):
                reply = await self._request(line.client, request, most)
                if reply is not None:
                    self._ledger.keep(request, reply)
                return reply
        except OutOfBudget:
            self._stopped = True
            return None

    async def _request(self, client: openai.AsyncOpenAI, request: dict[str, Any], most: Usage) -> Reply | None:
        """Ask once, whatever the client has to try for it. UserError for what no other request would mend."""
        try:
            completion = await client.chat.completions.create(**request)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._rejects_key(error) from error
        except openai.NotFoundError as error:
            raise self._not_there(error) from error
        except _NO_REPLY as error:
            self._count_in_vain(error)
            return None
        except openai.APIStatusError as error:
            self._count_refused(error)
            raise
        if not isinstance(completion, ChatCompletion):
            raise UserError(f"{self._who} is no OpenAI-compatible endpoint; mend base_url.")
        self._in_vain = 0
        self._refused = 0
        usage = completion.usage
        used = Usage(1, usage.prompt_tokens, usage.completion_tokens) if usage else most  # some servers do not count
        message = completion.choices[0].message if completion.choices else None
        return Reply((message and (message.content or message.refusal)) or "", used)

    def _count_in_vain(self, error: openai.APIError) -> None:
        self._in_vain += 1
        spent_out = getattr(error, "code", None) == "insufficient_quota"
        if spent_out or self._in_vain >= GIVE_UP_AFTER:
            tries = f"{self._in_vain} requests in a row, each tried {self._asked.retries + 1} times"
            what = "has no quota left" if spent_out else f"gave no reply to {tries}"
            raise UserError(
                f"{self._who} {what} ({reason(error)}). Look at the address, and raise "
                f"timeout={self._asked.timeout:g} or lower parallel={self._asked.parallel} where it is busy. "
                "Start again then: replies that have come are kept, and only the rest is asked."
            ) from error

    def _rejects_key(self, error: openai.APIStatusError) -> UserError:
        source = self._address.key_from
        key = f"the key in {source}" if source else "requests without a key"
        return UserError(
            f"{self._who} rejects {key} ({error.status_code}: {reason(error)}); put one that "
            "may use the model into a variable of the environment, and its name into api_key_env."
        )

    def _not_there(self, error: openai.APIStatusError) -> UserError:
        return UserError(
            f"{self._who} does not know the model {self._address.model!r} ({reason(error)}); "
            "mend its model or base_url."
        )

    def _count_refused(self, error: openai.APIStatusError) -> None:
        self._refused += 1
        if self._refused >= GIVE_UP_AFTER:
            raise UserError(
                f"{self._who} calls every request a bad one ({reason(error)}); mend what it "
                "names. temperature: null leaves the temperature out."
            ) from error

    def _say_budget(self) -> None:
        used = self._ledger.spent
        say(
            f"judge {self._name}: its budget ({self._asked.budget}) has no room for another request after "
            f"{used.requests} requests, {used.input_tokens + used.output_tokens} tokens and a cost of "
            f"{self._ledger.cost:.4g}. Raise it and start again: only what lacks is asked.",
            sys.stderr,
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Several requests in flight may tell the same; one of them is enough."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
