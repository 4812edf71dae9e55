"""Judges that can be asked: a reward function, a model that the run serves, or one behind a remote endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from raydpo.config.schema import AskedJudge
from raydpo.model.directory import text_digest, weights_digest
from raydpo.reward.address import Address, remote_address
from raydpo.reward.endpoint import EndpointJudge
from raydpo.reward.judge import Judge, Orders, Rate, RewardJudge
from raydpo.reward.ledger import Ledger
from raydpo.reward.questions import read_question
from raydpo.runtime.pools.rewards import Group, RewardProcess, reward_process
from raydpo.runtime.pools.serving import served_judge
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
        identity = f"{weights_digest(asked.serve)} {text_digest(asked.serve)}"
        with served_judge(asked, identity, layout.logs / f"judge-{name}.log") as address:
            yield _behind(name, asked, address, orders, layout, asked.serve)
    else:
        address = remote_address(name, asked)
        yield _behind(name, asked, address, orders, layout, f"{address.model} at {address.base_url}")


def _behind(name: str, asked: AskedJudge, address: Address, orders: Orders, layout: Layout, what: str) -> OpenJudge:
    ledger = Ledger(layout.replies / f"{name}.jsonl", address.identity, asked.budget, asked.prices)
    question = read_question(asked.question)
    return OpenJudge(EndpointJudge(name, asked, address, question, ledger, orders), ledger, what)


def _rate(process: RewardProcess) -> Rate:
    """One completion a prompt, in the words of judges."""

    def rate(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        rows = enumerate(zip(prompts, completions, strict=True), start=1)
        return [reward for [reward] in process.rate([Group(row, p, [c]) for row, (p, c) in rows])]

    return rate
