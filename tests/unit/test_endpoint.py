"""Laws of judges behind an endpoint: what is planted is found, nothing is lost, and nothing is paid for twice."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.schema import AskedJudge
from raydpo.errors import UserError
from raydpo.evaluate.judgements import Judged, Said, agreement_of_orders, bias_of, unanswered_of
from raydpo.reward import address as addresses
from raydpo.reward.address import Address, remote_address
from raydpo.reward.endpoint import EndpointJudge
from raydpo.reward.judge import Orders, Preference
from raydpo.reward.ledger import Ledger
from tests.endpoint import QUESTION, Endpoint, endpoint

pytestmark = pytest.mark.unit

PROMPTS = [f"prompt {i}" for i in range(60)]
LONG = ["a long answer indeed"] * 60
SHORT = ["brief"] * 60
NO = "I would rather not say."


def draw(*texts: str) -> float:
    """A number in 0..1 that depends on the texts alone."""
    return int.from_bytes(hashlib.blake2b("|".join(texts).encode(), digest_size=6).digest()) / 2**48


def prefers_longer(prompt: str, first: str, second: str) -> str:
    return f"It says more.\nChoice: {'A' if len(first) > len(second) else 'B'}"


def judge_at(asked: Endpoint, path: Path, swap: bool = True, **settings: Any) -> tuple[EndpointJudge, Ledger]:
    section = AskedJudge.model_validate({"model": "planted", "base_url": asked.base_url, "retries": 0} | settings)
    where = Address("planted", asked.base_url, "sk-planted", asked.base_url, "PLANTED_KEY")
    ledger = Ledger(path / "replies.jsonl", "planted endpoint", section.budget, section.prices)
    return EndpointJudge("mine", section, where, QUESTION, ledger, Orders(0, swap)), ledger


def as_judged(preferences: list[Preference]) -> list[Judged]:
    outcomes = {"a": "win", "b": "loss", "tie": "tie", None: None}
    return [
        Judged(
            prompt,
            0,
            outcomes[each.outcome],  # type: ignore[arg-type]  # a mapping has no literal values
            each.arrived,
            [Said(a.verdict, outcomes[a.winner], a.words) for a in each.answers],  # type: ignore[arg-type]
        )
        for prompt, each in zip(PROMPTS, preferences, strict=False)
    ]


def test_a_true_preference_is_found_whatever_the_order_and_what_it_used_is_counted(tmp_path: Path) -> None:
    with endpoint(prefers_longer) as asked:
        judge, ledger = judge_at(asked, tmp_path, prices={"input": 2.0, "output": 8.0})
        preferences = judge(PROMPTS, LONG, SHORT)
    assert [each.outcome for each in preferences] == ["a"] * 60
    assert set(asked.keys) == {"sk-planted"}
    sent = sum(len(message.split()) for message in asked.messages)
    received = 120 * len(["It", "says", "more.", "Choice:", "A"])
    assert (ledger.spent.requests, ledger.spent.input_tokens, ledger.spent.output_tokens) == (120, sent, received)
    assert ledger.cost == pytest.approx((2 * sent + 8 * received) / 1e6)


def test_a_planted_bias_is_reported_and_swapping_cancels_it(tmp_path: Path) -> None:
    def biased(prompt: str, first: str, second: str) -> str:
        place = draw(prompt, first, second) < 0.3  # else by the text: a longer one wins
        return "Choice: A" if place else prefers_longer(prompt, first, second)

    with endpoint(biased) as asked:
        judged = as_judged(judge_at(asked, tmp_path)[0](PROMPTS, LONG, SHORT))
        one_order = as_judged(judge_at(asked, tmp_path, swap=False)[0](PROMPTS, LONG, SHORT))
    bias = bias_of(judged)
    assert bias.first and bias.first.low > 0.5 and bias.chance < 1e-3
    assert bias.first.mean == pytest.approx(0.5 + 0.3 / 2, abs=0.09)
    outcomes = Counter(each.outcome for each in judged)
    assert outcomes["loss"] == 0, "a place alone wins nothing"
    assert Counter(each.outcome for each in one_order)["loss"] > 2, "in one order it does"
    agreed = agreement_of_orders(judged)
    assert agreed.share and outcomes["tie"] == round(60 * (1 - agreed.share.mean))


def test_without_a_bias_none_is_reported(tmp_path: Path) -> None:
    with endpoint(prefers_longer) as asked:
        bias = bias_of(as_judged(judge_at(asked, tmp_path)[0](PROMPTS, LONG, SHORT)))
    assert bias.first and bias.first.mean == 0.5 and bias.chance == 1


def test_refusals_are_asked_again_once_and_then_counted_neither_lost_nor_a_tie(tmp_path: Path) -> None:
    def refuses(prompt: str, first: str, second: str) -> str:
        return NO if draw(prompt, first) < 0.2 else prefers_longer(prompt, first, second)

    with endpoint(refuses) as asked:
        judged = as_judged(judge_at(asked, tmp_path)[0](PROMPTS, LONG, SHORT))
    refused = sum(draw(prompt, first) < 0.2 for prompt in PROMPTS for first in (LONG[0], SHORT[0]))
    assert 12 < refused < 36
    assert len(asked.messages) == 120 + refused
    found = unanswered_of(judged)
    assert found and found.mean == refused / 120
    assert all(each.arrived for each in judged)
    assert Counter(each.outcome for each in judged).keys() == {"win", None}
    assert sum(said.words == NO for each in judged for said in each.answers) == refused


def test_a_firmer_question_gets_the_choice_that_the_first_did_not(tmp_path: Path) -> None:
    def shy(prompt: str, first: str, second: str) -> str:
        return prefers_longer(prompt, first, second) if asked.is_firmer else NO

    with endpoint(shy) as asked:
        preferences = judge_at(asked, tmp_path)[0](PROMPTS[:5], LONG[:5], SHORT[:5])
    assert [each.outcome for each in preferences] == ["a"] * 5
    assert len(asked.messages) == 20


def test_what_was_answered_is_not_asked_again_however_the_judge_ended(tmp_path: Path) -> None:
    def breaks(prompt: str, first: str, second: str) -> str | int:
        return 401 if len(asked.messages) > 60 else prefers_longer(prompt, first, second)

    with endpoint(breaks) as asked, pytest.raises(UserError):
        judge_at(asked, tmp_path)[0](PROMPTS, LONG, SHORT)
    path = tmp_path / "replies.jsonl"
    path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote
    kept = path.read_bytes().count(b"\n")
    assert kept >= 50
    with endpoint(prefers_longer) as asked:
        judge, ledger = judge_at(asked, tmp_path)
        assert {each.outcome for each in judge(PROMPTS, LONG, SHORT)} == {"a"}
        assert len(asked.messages) == 120 - kept
        assert ledger.found == kept
        judge(PROMPTS + PROMPTS, LONG + LONG, SHORT + SHORT)
        assert len(asked.messages) == 120 - kept
    assert [each.outcome for each in judge.known(PROMPTS[:3], LONG[:3], SHORT[:3])] == ["a"] * 3
    [unknown] = judge.known(["another"], ["a"], ["b"])
    assert not unknown.arrived


def test_another_question_model_or_endpoint_is_asked_anew(tmp_path: Path) -> None:
    with endpoint(prefers_longer) as asked:
        for settings in ({}, {"max_tokens": 7}, {"temperature": None}, {"temperature": 0.5}):
            judge_at(asked, tmp_path, **settings)[0](PROMPTS[:3], LONG[:3], SHORT[:3])
        assert len(asked.messages) == 4 * 6
        section = AskedJudge(model="planted")
        other = Ledger(tmp_path / "replies.jsonl", "another endpoint", section.budget, section.prices)
    assert other.spent.requests == 0


@pytest.mark.parametrize("budget", [{"requests": 30}, {"tokens": 1000}, {"cost": 0.001}])
def test_a_budget_is_never_passed_and_what_it_withholds_is_asked_when_it_is_raised(
    tmp_path: Path, budget: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"input": 1.0, "output": 1.0}
    with endpoint(prefers_longer) as asked:
        judge, ledger = judge_at(asked, tmp_path, budget=budget, prices=prices, max_tokens=64)
        preferences = judge(PROMPTS, LONG, SHORT)
        spent = {
            "requests": ledger.spent.requests,
            "tokens": ledger.spent.input_tokens + ledger.spent.output_tokens,
            "cost": ledger.cost,
        }
        [(kind, limit)] = budget.items()
        assert limit / 2 < spent[kind] <= limit
        assert sum(answer.arrived for each in preferences for answer in each.answers) == len(asked.messages)
        assert "Raise it and start again" in capsys.readouterr().err
        before = len(asked.messages)
        again, ledger = judge_at(asked, tmp_path, budget=budget, prices=prices, max_tokens=64)
        again(PROMPTS, LONG, SHORT)
        assert ledger.spent.requests - before <= before // 10, "a restart is no new budget"
        assert all(each.arrived for each in judge_at(asked, tmp_path, max_tokens=64)[0](PROMPTS, LONG, SHORT))
        assert len(asked.messages) == 120


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (401, "rejects the key in PLANTED_KEY"),
        (403, "rejects the key in PLANTED_KEY"),
        (404, "does not know the model 'planted'"),
        (400, "calls every request a bad one"),
        (429, "gave no reply to 8 requests in a row"),
        (503, "gave no reply to 8 requests in a row"),
    ],
)
def test_an_endpoint_of_no_use_is_one_message_and_few_requests(tmp_path: Path, status: int, complaint: str) -> None:
    with endpoint(lambda *texts: status) as asked:
        with pytest.raises(UserError, match=re.escape(complaint)) as caught:
            judge_at(asked, tmp_path)[0](PROMPTS, LONG, SHORT)
        assert len(asked.messages) <= 16
    assert "sk-planted" not in str(caught.value)
    assert type(caught.value) is UserError


def test_a_host_that_is_not_there_is_named(tmp_path: Path) -> None:
    with endpoint(prefers_longer) as asked:
        pass
    with pytest.raises(UserError, match=f"{asked.base_url} gave no reply"):
        judge_at(asked, tmp_path)[0](PROMPTS, LONG, SHORT)


def test_a_busy_endpoint_is_waited_for_as_long_as_it_says(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def busy(prompt: str, first: str, second: str) -> str | int:
        seen[prompt + first] += 1
        return 429 if seen[prompt + first] <= 2 else prefers_longer(prompt, first, second)

    with endpoint(busy, {"Retry-After": "0.01"}) as asked:
        judge, ledger = judge_at(asked, tmp_path, retries=3)
        assert [each.outcome for each in judge(PROMPTS[:5], LONG[:5], SHORT[:5])] == ["a"] * 5
    assert ledger.spent.requests == 10
    assert len(asked.messages) == 30


def test_a_reply_that_does_not_come_is_lacking_not_unanswered(tmp_path: Path) -> None:
    def fails_once(prompt: str, first: str, second: str) -> str | int:
        return 503 if (prompt, first) == ("prompt 3", "brief") else prefers_longer(prompt, first, second)

    with endpoint(fails_once) as asked:
        judged = as_judged(judge_at(asked, tmp_path)[0](PROMPTS[:9], LONG[:9], SHORT[:9]))
    assert [each.prompt for each in judged if not each.arrived] == ["prompt 3"]
    assert [each.outcome for each in judged if each.arrived] == ["win"] * 8


def test_a_request_that_is_called_bad_is_unanswered_and_says_why(tmp_path: Path) -> None:
    def too_long(prompt: str, first: str, second: str) -> str | int:
        return 400 if prompt == "prompt 3" else prefers_longer(prompt, first, second)

    with endpoint(too_long) as asked:
        judged = as_judged(judge_at(asked, tmp_path)[0](PROMPTS[:9], LONG[:9], SHORT[:9]))
    [bad] = [each for each in judged if each.outcome is None]
    assert bad.arrived and "planted" in bad.answers[0].words


def test_a_reply_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    over = threading.Event()

    def hangs(*texts: str) -> str:
        over.wait()
        return "Choice: A"

    with endpoint(hangs) as asked:
        with pytest.raises(UserError, match="Timeout"):
            judge_at(asked, tmp_path, timeout=0.2)[0](PROMPTS, LONG, SHORT)
        over.set()


def test_a_key_goes_to_the_endpoint_it_is_for_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("MINE", "sk-mine")
    assert remote_address("j", AskedJudge(model="m")).api_key == "sk-secret"
    assert remote_address("j", AskedJudge(model="m")).base_url == addresses.OPENAI
    assert remote_address("j", AskedJudge(model="m", base_url="http://other/v1")).api_key != "sk-secret"
    mine = remote_address("j", AskedJudge(model="m", base_url="http://other/v1", api_key_env="MINE"))
    assert mine.api_key == "sk-mine"
    assert "sk-mine" not in repr(mine)
    monkeypatch.delenv("MINE")
    with pytest.raises(UserError, match="the environment has no MINE"):
        remote_address("j", AskedJudge(model="m", base_url="http://other/v1", api_key_env="MINE"))


def test_the_ledger_holds_no_key(tmp_path: Path) -> None:
    with endpoint(prefers_longer) as asked:
        judge_at(asked, tmp_path)[0](PROMPTS[:2], LONG[:2], SHORT[:2])
    lines = (tmp_path / "replies.jsonl").read_text()
    assert "sk-planted" not in lines
    assert all(json.loads(line)["requests"] == 1 for line in lines.splitlines())
