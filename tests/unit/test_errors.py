"""The exception tree: whether something may be retried is its class, and each answer has a code and a reason."""

import re
from collections.abc import Iterator

import grpc
import pytest

from imprimatur import errors
from imprimatur.errors import (
    AttemptError,
    ImprimaturError,
    InvalidRequest,
    NotFound,
    PermanentError,
    Postponed,
    RateLimited,
    RequestError,
    TimedOut,
    TransientError,
    Unavailable,
    UnreviewableInput,
)


def below(root: type[Exception]) -> Iterator[type[Exception]]:
    for child in root.__subclasses__():
        yield child
        yield from below(child)


def test_everything_raised_on_purpose_has_one_root() -> None:
    declared = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)}
    assert declared - {ImprimaturError} <= set(below(ImprimaturError))


@pytest.mark.parametrize("kind", sorted(below(RequestError), key=str))
def test_every_answer_has_a_status_and_a_stable_reason(kind: type[RequestError]) -> None:
    assert kind.code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", kind.reason)  # AIP-193
    assert len(kind.reason) <= 63


@pytest.mark.parametrize("kind", sorted(below(AttemptError), key=str))
def test_every_end_of_an_attempt_has_a_snake_case_code(kind: type[AttemptError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


def test_one_error_is_either_passing_or_permanent_or_no_fault_of_the_job() -> None:
    branches = (TransientError, PermanentError, Postponed)
    for kind in below(AttemptError):
        assert sum(issubclass(kind, branch) for branch in branches) == 1, kind
    assert issubclass(TimedOut, TransientError)
    assert issubclass(UnreviewableInput, PermanentError)


def test_an_invalid_request_names_its_field() -> None:
    error = InvalidRequest("items[3].task", "is required", reason="TASK_MISSING", limit="1")
    assert str(error) == error.message == "items[3].task: is required"
    assert (error.field, error.description, error.reason) == ("items[3].task", "is required", "TASK_MISSING")
    assert error.metadata == {"field": "items[3].task", "limit": "1"}
    assert InvalidRequest("x", "y").reason == "INVALID_FIELD"


def test_an_answer_may_be_more_precise_than_its_class() -> None:
    assert NotFound("no such job").reason == "NOT_FOUND"
    assert NotFound("no such key", reason="KEY_NOT_FOUND", key="7").metadata == {"key": "7"}
    assert Unavailable("later").code is grpc.StatusCode.UNAVAILABLE


def test_the_end_of_an_attempt_says_where_and_what() -> None:
    error = TransientError("the provider is down", stage="engine")
    assert (str(error), error.message, error.stage, error.code) == (
        "the provider is down",
        "the provider is down",
        "engine",
        "transient",
    )
    assert PermanentError("no", code="refused").code == "refused"
    assert RateLimited("wait", retry_after_seconds=3.5, stage="engine").retry_after_seconds == 3.5
