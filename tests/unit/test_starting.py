"""Laws of waiting for room: it is said, it ends, and a stop ends it at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.execution.callback_manager import CallbackManager
from ray.train.v2._internal.execution.controller.state import InitializingState, RunningState, TrainControllerState

from raydpo.config.schema import Timeouts, Workers
from raydpo.errors import UserError
from raydpo.runtime.trainer import starting
from raydpo.runtime.trainer.starting import RoomWatch
from raydpo.runtime.trainer.stopping import STOP
from raydpo.workspace.outcome import Stopped

pytestmark = pytest.mark.unit

Look = Callable[[TrainControllerState], None]


class Clock:
    """Time that passes in waits only."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(starting, "time", clock)
    return clock


@pytest.fixture
def look(clock: Clock, tmp_path: Path) -> Look:
    """What Ray Train's controller does at the end of each turn of its loop."""
    watch = RoomWatch(tmp_path / "train", Workers(count=4, min_count=2, cpus=1.5), Timeouts(start=20))
    manager = CallbackManager([watch])
    (tmp_path / "train").mkdir()
    return lambda state: manager.invoke("after_controller_state_update", state, state)


def wait(look: Look, clock: Clock, seconds: float) -> None:
    until = clock.now + seconds
    while clock.now < until:
        look(InitializingState())


def test_a_short_wait_is_not_worth_a_word(look: Look, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    wait(look, clock, 9)
    assert capsys.readouterr().out == ""


def test_a_long_one_is_said_once_and_ends_after_three_times_the_time_out(
    look: Look, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ControllerError) as ended:
        wait(look, clock, 100)
    assert 60 <= clock.now < 61
    told = "room for 2 workers with 1.5 CPUs and 0 GPUs each"
    assert capsys.readouterr().out == f"train: waits for {told}, 60 s at most\n"
    reason = ended.value.controller_failure
    assert isinstance(reason, UserError)
    assert str(reason).startswith(f"there was no {told} for 60 s, three times timeouts.start.")


def test_every_wait_has_all_of_its_time(look: Look, clock: Clock) -> None:
    for _ in range(3):
        wait(look, clock, 50)
        look(RunningState())
    assert clock.now >= 150


def test_a_stop_ends_it_at_once(look: Look, clock: Clock, tmp_path: Path) -> None:
    wait(look, clock, 5)
    (tmp_path / "train" / STOP).touch()
    with pytest.raises(ControllerError) as ended:
        look(InitializingState())
    assert isinstance(ended.value.controller_failure, Stopped)
