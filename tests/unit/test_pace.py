"""How many jobs are put up beyond the free slots: by the pace at which they start, and not by that of a moment."""

import pytest

from gateway.dispatcher import Pace


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("gateway.dispatcher.time.monotonic", made)
    return made


def test_what_starts_within_the_next_100_ms_is_put_up_beforehand(clock: Clock) -> None:
    pace = Pace()
    for _ in range(10):
        pace.heard(20)
        clock.now += 0.1
    assert pace.ahead() == 1 + 20


def test_a_moment_in_which_many_start_is_no_pace(clock: Clock) -> None:
    pace = Pace()
    pace.heard(64)  # all slots of a worker, claimed together
    clock.now += 0.05
    assert pace.ahead() == 1, "not 64 more, which would start before whoever comes now"
    clock.now += 0.35
    pace.heard(16)
    clock.now += 0.1
    assert pace.ahead() == 1 + 16


def test_a_lull_is_not_taken_for_the_end(clock: Clock) -> None:
    pace = Pace()
    pace.heard(500)
    clock.now += 0.5
    assert pace.ahead() == 1 + 100
    clock.now += 0.5
    assert pace.ahead() == 1 + 61  # 1,000 a second, e^-0.5 of it after half a second
    clock.now += 60.0
    assert pace.ahead() == 1 + 1


def test_there_is_a_most(clock: Clock) -> None:
    pace = Pace()
    pace.heard(1_000_000)
    clock.now += 0.5
    assert pace.ahead() == 512
