"""What follows a failed attempt."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprimatur.errors import (
    AttemptError,
    BudgetExhausted,
    NotBegun,
    PermanentError,
    Postponed,
    RateLimited,
    TimedOut,
    TransientError,
    UnreviewableInput,
)
from imprimatur.retry import LONGEST_PAUSE_SECONDS, Again, Backoff, GiveUp, after_error, after_loss

BACKOFF = Backoff(first_seconds=2.0, cap_seconds=60.0)
DAY = 86_400.0

jitters = st.floats(0, 1, exclude_max=True)
postponed = st.builds(
    lambda kind, seconds: kind("wait", retry_after_seconds=seconds),
    st.sampled_from([RateLimited, NotBegun]),
    st.floats(),
)
errors = (
    st.sampled_from([TransientError("down"), TimedOut("slow"), PermanentError("no"), UnreviewableInput("bad")])
    | postponed
)


def after(
    error: AttemptError,
    *,
    attempts_before: int = 0,
    max_attempts: int = 3,
    remaining_seconds: float = DAY,
    jitter: float = 0.5,
) -> Again | GiveUp:
    return after_error(
        error,
        attempts_before=attempts_before,
        max_attempts=max_attempts,
        remaining_seconds=remaining_seconds,
        backoff=BACKOFF,
        jitter=jitter,
    )


@pytest.mark.parametrize(
    ("spent", "ceiling"), [(1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0), (5, 32.0), (6, 60.0), (7, 60.0), (1000, 60.0)]
)
def test_the_ceiling_doubles_up_to_the_cap(spent: int, ceiling: float) -> None:
    assert BACKOFF.seconds(spent, 1.0) == ceiling
    assert BACKOFF.seconds(spent, 0.5) == ceiling / 2
    assert BACKOFF.seconds(spent, 0.0) == 0.0


@given(first=st.floats(0.001, 3600), cap=st.floats(0.001, 86_400), spent=st.integers(1, 1000), jitter=jitters)
def test_a_pause_is_never_below_zero_or_above_its_ceiling(first: float, cap: float, spent: int, jitter: float) -> None:
    pause = Backoff(first_seconds=first, cap_seconds=cap).seconds(spent, jitter)
    assert 0 <= pause <= cap
    assert pause <= first * 2.0 ** (spent - 1)


@pytest.mark.parametrize(("before", "again"), [(0, True), (1, True), (2, False), (3, False)])
def test_attempts_are_spent_until_none_is_left(before: int, again: bool) -> None:
    decided = after(TransientError("down"), attempts_before=before)
    if again:
        assert decided == Again(delay_seconds=BACKOFF.seconds(before + 1, 0.5), spends_attempt=True)
    else:
        assert decided == GiveUp()


def test_a_single_attempt_is_not_repeated() -> None:
    assert after(TransientError("down"), max_attempts=1) == GiveUp()


@pytest.mark.parametrize("error", [PermanentError("no"), UnreviewableInput("bad"), BudgetExhausted("no")])
def test_what_cannot_pass_by_itself_is_not_tried_again(error: AttemptError) -> None:
    assert after(error, max_attempts=20) == GiveUp()


def test_a_time_out_is_tried_again_like_any_passing_fault() -> None:
    assert after(TimedOut("slow")) == after(TransientError("down"))


@pytest.mark.parametrize(("asked", "pause"), [(7.0, 7.0), (0.0, 0.0), (-5.0, 0.0), (10**6, 3600.0)])
def test_a_rate_limit_is_honoured_and_spends_no_attempt(asked: float, pause: float) -> None:
    error = RateLimited("wait", retry_after_seconds=asked)
    assert after(error, attempts_before=99) == Again(delay_seconds=pause + 1.0, spends_attempt=False)


@pytest.mark.parametrize(("asked", "pause"), [(7.0, 7.0), (-5.0, 0.0), (10**6, 3600.0)])
def test_what_was_not_begun_comes_back_exactly_when_it_was_told_to(asked: float, pause: float) -> None:
    error = NotBegun("wait", retry_after_seconds=asked)
    assert after(error, attempts_before=99) == Again(delay_seconds=pause, spends_attempt=False)


def test_no_attempt_begins_at_or_after_the_deadline() -> None:
    waits = RateLimited("wait", retry_after_seconds=9.0)
    assert after(waits, remaining_seconds=10.0) == GiveUp()
    assert after(waits, remaining_seconds=10.001) == Again(delay_seconds=10.0, spends_attempt=False)
    assert after(TransientError("down"), remaining_seconds=1.0) == GiveUp()
    assert after(TransientError("down"), remaining_seconds=1.001) == Again(delay_seconds=1.0, spends_attempt=True)


@given(
    error=errors,
    before=st.integers(0, 30),
    most=st.integers(1, 20),
    remaining=st.floats(-10, DAY * 30),
    jitter=jitters,
)
def test_whatever_happens_the_next_attempt_is_bounded(
    error: AttemptError, before: int, most: int, remaining: float, jitter: float
) -> None:
    decided = after(error, attempts_before=before, max_attempts=most, remaining_seconds=remaining, jitter=jitter)
    if isinstance(decided, Again):
        assert math.isfinite(decided.delay_seconds)
        assert 0 <= decided.delay_seconds < remaining
        assert decided.delay_seconds <= LONGEST_PAUSE_SECONDS + BACKOFF.first_seconds
        assert decided.spends_attempt == (not isinstance(error, Postponed))
        assert isinstance(error, Postponed) or before + 1 < most
        assert not isinstance(error, PermanentError)


def test_lost_workers_are_chance_at_first_and_then_draw_the_tries_apart() -> None:
    pauses = [after_loss(losses, by_chance=2) for losses in range(10)]
    assert pauses == [0, 0, 0, 2, 4, 8, 16, 32, 64, 128]
