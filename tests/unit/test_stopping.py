"""Laws of stopping early: the first SIGTERM asks, the second one does not; rank 0 passes each request on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import PreemptionInfo

from raydpo.runtime.trainer import stopping
from raydpo.runtime.trainer.stopping import Requests, stop_asked, stop_on_sigterm

pytestmark = pytest.mark.unit


@pytest.fixture
def word(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What Ray Train has told this worker of nodes that will be taken away."""
    context = SimpleNamespace(preemption_info=None)
    monkeypatch.setattr(stopping, "get_train_context", lambda: SimpleNamespace(preemption_context=context))
    return context


def test_the_first_sigterm_asks_the_workers_and_the_second_does_what_it_did_before(tmp_path: Path) -> None:
    ended = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        with stop_on_sigterm(tmp_path):
            assert not stop_asked(tmp_path)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_asked(tmp_path)
            assert ended == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [signal.SIGTERM] * 2
        with stop_on_sigterm(tmp_path):
            assert not stop_asked(tmp_path), "the stop of an earlier job must not stop this one"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stop_stands_until_it_is_obeyed_and_rank_0_alone_says_so(tmp_path: Path, word: SimpleNamespace) -> None:
    first, second = (Requests(tmp_path, rank=rank) for rank in (0, 1))
    assert first.poll() == {"stop": 0, "notice": 0}
    (tmp_path / stopping.STOP).touch()
    assert [first.poll()["stop"], first.poll()["stop"], second.poll()["stop"]] == [1, 1, 0]


def test_each_notice_asks_for_one_save(tmp_path: Path, word: SimpleNamespace) -> None:
    requests = Requests(tmp_path, rank=0)
    seen = []
    for nodes in ({}, {"a": [1]}, {"a": [1]}, {"a": [1], "b": [0]}, {"a": [1], "b": [0]}):
        word.preemption_info = PreemptionInfo(deadline_ms=8000, preempted_node_to_ranks=nodes) if nodes else None
        seen.append(requests.poll()["notice"])
    assert seen == [0, 1, 0, 1, 0]
