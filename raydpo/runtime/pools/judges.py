"""Judges that can be asked: a reward function, a model that the run serves, or one behind a remote endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from raydpo.config.schema import AskedJudge
from raydpo.model.directory import text_digest, weights_digest
from raydpo.reward.address import Address, remote_address
from raydpo.reward.endpoint import EndpointJudge
from raydpo.reward.judge import Judge, Orders, Preference, Rate, RewardJudge
from raydpo.reward.ledger import Ledger
from raydpo.reward.questions import read_question
from raydpo.runtime.pools.rewards import Group, RewardProcess, reward_process
from raydpo.runtime.pools.serving import not_served, served_judge
from raydpo.workspace.layout import Layout


@dataclass(frozen=True)
class OpenJudge:
    """A judge that can be asked, and what says how much it has used; None: it costs nothing."""

    judge: Judge
    ledger: Ledger | None
    what: str


@contextmanager
def open_judge(name: str, asked: AskedJudge, orders: Orders, layout: Layout) -> Iterator[OpenJudge]:
    """The judge, for the length of the block. UserError for one that cannot be asked."""
    if asked.reward:
        with reward_process(asked.reward) as process:
            yield OpenJudge(RewardJudge(_rate(process), orders), None, f"reward function {asked.reward}")
    elif asked.serve:
        served = _Served(name, asked, orders, layout)
        yield OpenJudge(served, served.ledger, asked.serve)
    else:
        address = remote_address(name, asked)
        ledger = _ledger(name, asked, address.identity, layout)
        judge = EndpointJudge(name, asked, address, read_question(asked.question), ledger, orders)
        yield OpenJudge(judge, ledger, f"{address.model} at {address.base_url}")


class _Served:
    """A judge whose server starts when there is something to ask, which there is not where all has been answered."""

    def __init__(self, name: str, asked: AskedJudge, orders: Orders, layout: Layout) -> None:
        assert asked.serve
        self._name = name
        self._asked = asked
        self._orders = orders
        self._log = layout.logs / f"judge-{name}.log"
        self._identity = f"{weights_digest(asked.serve)} {text_digest(asked.serve)}"
        self.ledger = _ledger(name, asked, self._identity, layout)

    def __call__(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[Preference]:
        """One preference a prompt."""
        known = self._at(not_served(self._identity)).known(prompts, a, b)
        if all(preference.arrived for preference in known):
            return known
        with served_judge(self._asked, self._identity, self._log) as address:
            return self._at(address)(prompts, a, b)

    def _at(self, address: Address) -> EndpointJudge:
        question = read_question(self._asked.question)
        return EndpointJudge(self._name, self._asked, address, question, self.ledger, self._orders)


def _ledger(name: str, asked: AskedJudge, identity: str, layout: Layout) -> Ledger:
    return Ledger(layout.replies / f"{name}.jsonl", identity, asked.budget, asked.prices)


def _rate(process: RewardProcess) -> Rate:
    """One completion a prompt, in the words of judges."""

    def rate(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        rows = enumerate(zip(prompts, completions, strict=True), start=1)
        return [reward for [reward] in process.rate([Group(row, p, [c]) for row, (p, c) in rows])]

    return rate
