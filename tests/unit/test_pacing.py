"""Turns at a provider: calls lie apart, nobody is kept for long, and who was there before goes first."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from imprimatur.pacing import Line, Turn, take

START = datetime(2026, 1, 1, tzinfo=UTC)
EMPTY = Line(free_at=START, ends_at=START)
INTERVAL, HOLD = 0.5, 0.5


def ask(line: Line, *, at: float = 0.0, was_here: bool = False) -> tuple[Line, Turn]:
    now = START + timedelta(seconds=at)
    return take(line, now=now, interval_seconds=INTERVAL, hold_seconds=HOLD, was_here=was_here)


def test_of_many_at_once_some_have_turns_and_the_others_come_back_one_interval_behind_the_other() -> None:
    line, turns = EMPTY, []
    for _ in range(6):
        line, turn = ask(line)
        turns.append((turn.taken, turn.wait_seconds))
    assert turns == [(True, 0.0), (True, 0.5), (False, 1.0), (False, 1.5), (False, 2.0), (False, 2.5)]


def test_who_comes_later_queues_behind_those_who_wait() -> None:
    line = EMPTY
    for _ in range(6):
        line, _ = ask(line)
    line, returned = ask(line, at=1.0, was_here=True)
    assert returned == Turn(taken=True, wait_seconds=0.0)
    _, new = ask(line, at=1.0)
    assert new == Turn(taken=False, wait_seconds=2.0)


def test_a_line_that_is_over_holds_nobody_up() -> None:
    line = EMPTY
    for _ in range(6):
        line, _ = ask(line)
    _, turn = ask(line, at=60.0)
    assert turn == Turn(taken=True, wait_seconds=0.0)


def test_those_who_come_back_too_late_all_at_once_are_drawn_apart_again() -> None:
    line = EMPTY
    for _ in range(6):
        line, _ = ask(line)
    turns = []
    for _ in range(4):
        line, turn = ask(line, at=60.0, was_here=True)
        turns.append((turn.taken, turn.wait_seconds))
    assert turns == [(True, 0.0), (True, 0.5), (False, 1.0), (False, 1.5)]


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60), st.floats(0.01, 5), st.floats(0, 2))
def test_calls_lie_an_interval_apart_and_nobody_is_held_for_longer_than_said(
    arrivals: list[tuple[float, bool]], interval: float, hold: float
) -> None:
    line, now, calls = EMPTY, START, []
    for pause, was_here in arrivals:
        now += timedelta(seconds=pause)
        line, turn = take(line, now=now, interval_seconds=interval, hold_seconds=hold, was_here=was_here)
        assert turn.wait_seconds >= 0
        if turn.taken:
            assert turn.wait_seconds <= hold + 1e-6
            calls.append(now + timedelta(seconds=turn.wait_seconds))
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(calls)]
    assert all(gap >= interval - 1e-5 for gap in gaps)


@given(st.integers(1, 200))
def test_a_burst_is_worked_off_at_the_full_rate_and_each_comes_back_once(jobs: int) -> None:
    line, back = EMPTY, []
    for _ in range(jobs):
        line, turn = ask(line)
        if not turn.taken:
            back.append(turn.wait_seconds)
    for at in back:
        line, turn = ask(line, at=at, was_here=True)
        assert turn == Turn(taken=True, wait_seconds=0.0)
