"""The circuit breaker of a provider, on a clock of the test's own."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY

from imprimatur.errors import AttemptError, NotBegun, PermanentError, RateLimited, TransientError
from reviewer.engines import timed_by
from reviewer.engines.llm.breaker import LEAST_PATIENCE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker, Circuit

PAUSE = 10.0


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("test", failures=3, pause_seconds=PAUSE, clock=clock, draw=lambda: 0.0)


def outage(code: str = "provider_error") -> TransientError:
    return TransientError("down", code=code)


def call(breaker: Breaker, error: BaseException | None = None) -> None:
    """One call that ends so."""
    with breaker.watching():
        if error is not None:
            raise error


def fail(breaker: Breaker, times: int = 1, make: Callable[[], AttemptError] = outage) -> None:
    for _ in range(times):
        with pytest.raises(AttemptError):
            call(breaker, make())


def shown() -> dict[str, float]:
    """The state's series."""
    found = {
        str(state): REGISTRY.get_sample_value(
            "imprimatur_provider_circuit_state", {"provider": "test", "circuit": state}
        )
        for state in Circuit
    }
    return {name: value for name, value in found.items() if value is not None}


def state(breaker: Breaker) -> Circuit:
    """Asked anew each time."""
    return breaker.state


def refused_for(breaker: Breaker) -> float:
    with pytest.raises(NotBegun) as raised:
        call(breaker)
    assert raised.value.code == "provider_paused"
    return raised.value.retry_after_seconds


@pytest.mark.parametrize("code", ["provider_error", "provider_timeout", "provider_unreachable"])
def test_failures_in_a_row_open_it_for_a_pause(breaker: Breaker, clock: Clock, code: str) -> None:
    fail(breaker, 2, lambda: outage(code))
    assert state(breaker) is Circuit.CLOSED
    fail(breaker, 1, lambda: outage(code))
    assert state(breaker) is Circuit.OPEN
    assert shown() == {"closed": 0, "open": 1, "trying": 0}
    assert refused_for(breaker) == PAUSE
    clock.seconds += 4
    assert refused_for(breaker) == PAUSE - 4


@pytest.mark.parametrize(
    "answered",
    [
        None,
        RateLimited("wait", retry_after_seconds=1),
        PermanentError("no", code="refused"),
        PermanentError("no", code="provider_credentials"),
        TransientError("nonsense", code="invalid_answer"),
    ],
    ids=lambda error: getattr(error, "code", "a good answer"),
)
def test_whatever_the_provider_answers_begins_the_count_anew(breaker: Breaker, answered: AttemptError | None) -> None:
    fail(breaker, 2)
    if answered is None:
        call(breaker)
    else:
        fail(breaker, 1, lambda: answered)
    fail(breaker, 2)
    assert state(breaker) is Circuit.CLOSED


def test_after_the_pause_one_call_goes_through_and_an_answer_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.seconds += PAUSE
    assert shown() == {"closed": 0, "open": 0, "trying": 1}
    with breaker.watching():
        assert state(breaker) is Circuit.TRYING
        assert shown() == {"closed": 0, "open": 0, "trying": 1}
        assert refused_for(breaker) == PAUSE  # all others wait for what comes of it
    assert state(breaker) is Circuit.CLOSED
    fail(breaker, 2)
    assert state(breaker) is Circuit.CLOSED


def test_a_try_in_vain_doubles_the_pause_to_a_limit_and_an_answer_takes_that_back(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, 3)
    pauses = []
    for _ in range(5):
        clock.seconds += 1000
        fail(breaker)
        pauses.append(refused_for(breaker))
    assert pauses == [20.0, 40.0, 80.0, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    clock.seconds += 1000
    call(breaker)
    fail(breaker, 3)
    assert refused_for(breaker) == PAUSE


def test_a_try_that_is_cancelled_leaves_it_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.seconds += PAUSE
    with pytest.raises(asyncio.CancelledError):
        call(breaker, asyncio.CancelledError())
    assert state(breaker) is Circuit.TRYING
    call(breaker)
    assert state(breaker) is Circuit.CLOSED


# --- cut off by the job's time-out -----------------------------------------------------------------------


def cut_off(breaker: Breaker, clock: Clock, *, after_seconds: float = 3.0, by_its_time: bool = True) -> None:
    """A call that does not come back before the job is cancelled, for its time-out or otherwise."""
    with suppress(asyncio.CancelledError), timed_by(lambda: by_its_time), breaker.watching():
        clock.seconds += after_seconds
        raise asyncio.CancelledError


def test_a_provider_that_hangs_until_jobs_time_out_is_left_alone(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        assert state(breaker) is Circuit.CLOSED
        cut_off(breaker, clock)
    assert state(breaker) is Circuit.OPEN


def test_a_job_that_times_out_while_it_tries_prolongs_the_pause(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.seconds += PAUSE
    cut_off(breaker, clock)
    assert refused_for(breaker) == 2 * PAUSE


def test_what_is_cancelled_for_another_reason_says_nothing_of_the_provider(breaker: Breaker, clock: Clock) -> None:
    for _ in range(9):
        cut_off(breaker, clock, by_its_time=False)
    assert state(breaker) is Circuit.CLOSED


def test_a_job_without_time_left_for_the_provider_says_nothing_of_it(breaker: Breaker, clock: Clock) -> None:
    for _ in range(9):
        cut_off(breaker, clock, after_seconds=LEAST_PATIENCE_SECONDS / 2)
    assert state(breaker) is Circuit.CLOSED


@pytest.mark.parametrize("error", [None, RateLimited("wait", retry_after_seconds=1.0)], ids=["answer", "refusal"])
def test_an_impatient_job_is_no_failure_of_a_provider_that_answers_others(
    breaker: Breaker, clock: Clock, error: AttemptError | None
) -> None:
    for _ in range(9):
        with suppress(asyncio.CancelledError), timed_by(lambda: True), breaker.watching():
            clock.seconds += 1
            with suppress(AttemptError):
                call(breaker, error)
            clock.seconds += 9
            raise asyncio.CancelledError
    assert state(breaker) is Circuit.CLOSED


# --- what was under way ----------------------------------------------------------------------------------


def test_an_answer_to_what_was_under_way_when_it_opened_does_not_close_it(breaker: Breaker) -> None:
    with breaker.watching():
        fail(breaker, 3)
    assert state(breaker) is Circuit.OPEN


def test_what_was_under_way_when_it_opened_does_not_prolong_it(breaker: Breaker, clock: Clock) -> None:
    late = outage()
    with suppress(TransientError), breaker.watching():
        fail(breaker, 3)
        clock.seconds += 4
        raise late
    assert refused_for(breaker) == PAUSE - 4


def test_jobs_that_wait_are_spread_over_half_a_pause(clock: Clock) -> None:
    breaker = Breaker("test", failures=1, pause_seconds=PAUSE, clock=clock, draw=lambda: 0.5)
    fail(breaker)
    assert refused_for(breaker) == PAUSE + PAUSE / 4
