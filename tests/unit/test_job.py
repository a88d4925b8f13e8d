"""The transition table, whole: each state with each happening."""

import pytest

from imprimatur.errors import (
    AttemptError,
    BudgetExhausted,
    NotBegun,
    PermanentError,
    RateLimited,
    TimedOut,
    TransientError,
    UnreviewableInput,
)
from imprimatur.job import (
    DEFAULTS,
    SUBMITTED,
    TERMINAL,
    TRANSITIONS,
    WEBHOOK_EVENT_TYPES,
    Happening,
    JobError,
    JobType,
    State,
    after_giving_up,
)

#: All that may happen, as the design says it: (from, happening) -> (to, webhook). Everything else may not.
TABLE = {
    (State.QUEUED, Happening.CLAIMED): (State.RUNNING, ""),
    (State.QUEUED, Happening.CANCELLED): (State.CANCELLED, "job.cancelled"),
    (State.QUEUED, Happening.REFERRED): (State.AWAITING_REVIEW, "job.awaiting_review"),
    (State.QUEUED, Happening.GAVE_UP): (State.FAILED, "job.failed"),
    (State.RUNNING, Happening.COMPLETED): (State.SUCCEEDED, "job.succeeded"),
    (State.RUNNING, Happening.REFERRED): (State.AWAITING_REVIEW, "job.awaiting_review"),
    (State.RUNNING, Happening.GAVE_UP): (State.FAILED, "job.failed"),
    (State.RUNNING, Happening.RETRY_SCHEDULED): (State.QUEUED, ""),
    (State.RUNNING, Happening.HANDED_BACK): (State.QUEUED, ""),
    (State.RUNNING, Happening.WAITING_FOR_TWIN): (State.QUEUED, ""),
    (State.RUNNING, Happening.LEASE_LOST): (State.QUEUED, ""),
    (State.RUNNING, Happening.CANCELLED): (State.CANCELLED, "job.cancelled"),
    (State.AWAITING_REVIEW, Happening.HELD_BY_PERSON): (State.AWAITING_REVIEW, ""),
    (State.AWAITING_REVIEW, Happening.RELEASED_BY_PERSON): (State.AWAITING_REVIEW, ""),
    (State.AWAITING_REVIEW, Happening.HOLD_EXPIRED): (State.AWAITING_REVIEW, ""),
    (State.AWAITING_REVIEW, Happening.DECIDED): (State.SUCCEEDED, "job.succeeded"),
    (State.AWAITING_REVIEW, Happening.REDECIDED): (State.SUCCEEDED, "job.succeeded"),
    (State.AWAITING_REVIEW, Happening.CANCELLED): (State.CANCELLED, "job.cancelled"),
    (State.AWAITING_REVIEW, Happening.REVIEW_AGAIN): (State.QUEUED, ""),
}


def test_a_job_goes_where_the_table_says_and_nowhere_else() -> None:
    stated = {
        (state, happening): (transition.target, transition.notifies)
        for happening, transition in TRANSITIONS.items()
        for state in transition.sources
    }
    assert stated == TABLE
    assert set(TRANSITIONS) == set(Happening)


def test_terminal_is_final() -> None:
    assert frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED}) == TERMINAL
    for state in State:
        assert state.terminal == (state in TERMINAL)
    for transition in TRANSITIONS.values():
        assert not transition.sources & TERMINAL


def test_every_state_can_be_reached_and_every_other_one_can_be_left() -> None:
    targets = {transition.target for transition in TRANSITIONS.values()}
    sources = {state for transition in TRANSITIONS.values() for state in transition.sources}
    assert targets == set(State)
    assert sources == set(State) - TERMINAL


def test_a_webhook_tells_of_every_terminal_state_and_of_waiting_for_a_person() -> None:
    for transition in TRANSITIONS.values():
        enters = transition.target not in transition.sources
        told = transition.target in TERMINAL or (transition.target is State.AWAITING_REVIEW and enters)
        assert bool(transition.notifies) == told
    assert WEBHOOK_EVENT_TYPES == ("job.awaiting_review", "job.cancelled", "job.failed", "job.succeeded")


def test_each_kind_of_event_has_a_name_of_its_own() -> None:
    assert len({SUBMITTED, *Happening}) == len(Happening) + 1


@pytest.mark.parametrize(
    ("error", "happening"),
    [
        (TransientError("down"), Happening.REFERRED),
        (TimedOut("slow"), Happening.REFERRED),
        (RateLimited("wait", retry_after_seconds=1), Happening.REFERRED),
        (NotBegun("the provider keeps failing", retry_after_seconds=1), Happening.REFERRED),
        (PermanentError("the engine refuses"), Happening.REFERRED),
        (BudgetExhausted("the day's budget is used up"), Happening.REFERRED),
        (UnreviewableInput("no image"), Happening.GAVE_UP),
    ],
)
def test_a_creative_that_can_be_reviewed_goes_to_a_person(error: AttemptError, happening: Happening) -> None:
    assert after_giving_up(JobType.CREATIVE_REVIEW, error) is happening


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (
            TransientError("down", stage="engine"),
            JobError(code="transient", message="down", stage="engine", retryable=True),
        ),
        (TimedOut("slow"), JobError(code="timed_out", message="slow", retryable=True)),
        (RateLimited("wait", retry_after_seconds=1), JobError(code="rate_limited", message="wait", retryable=True)),
        (PermanentError("no", code="refused"), JobError(code="refused", message="no", retryable=False)),
        (UnreviewableInput("bad"), JobError(code="unreviewable_input", message="bad", retryable=False)),
    ],
)
def test_what_is_kept_of_an_error_says_whether_a_retry_can_help(error: AttemptError, kept: JobError) -> None:
    assert JobError.of(error) == kept


def test_every_job_type_has_defaults() -> None:
    assert set(DEFAULTS) == set(JobType)
