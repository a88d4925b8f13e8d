"""What the values in a request may be; every refusal names its field. Whole submissions are `gateway.submissions`.

Limits are stated in the comments of the protos; here they are kept.
"""

import unicodedata
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from imprimatur.errors import InvalidRequest, NotFound
from imprimatur.evidence import Category
from imprimatur.human import AuditAction
from imprimatur.job import JobType, Priority, State, WhenBusy
from imprimatur.policy import Decision, Trigger
from imprimatur.retention import Retention
from imprimatur.storage.jobs import Filter
from imprimatur.v1 import creative_pb2, job_pb2, job_service_pb2
from imprimatur.wire.enums import from_wire

#: Letters and symbols by their category that are shown as nothing: Hangul fillers, and braille without a dot.
_BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800")

_E = TypeVar("_E", AuditAction, Category, Decision, JobType, Priority, State, Trigger, WhenBusy)


# --- single values ---------------------------------------------------------------------------------------


def id_of(text: str, field: str = "job_id") -> uuid.UUID:
    """A UUID from its text."""
    return _uuid(text, field)


def text_within(value: str, field: str, most: int, *, required: bool = False) -> str:
    """A text of at most `most` characters; of what is required, one at least can be seen."""
    if required and not any(map(_is_seen, value)):
        raise InvalidRequest(field, "is required", reason="FIELD_REQUIRED")
    if len(value) > most:
        raise InvalidRequest(field, f"has {len(value)} characters, at most {most} are allowed", reason="FIELD_TOO_LONG")
    return value


def _is_seen(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS" and character not in _BLANKS


def page_size_within(value: int, default: int, most: int) -> int:
    """How many items a page holds."""
    if value < 0:
        raise InvalidRequest("page_size", f"is {value}, must not be negative")
    return min(value or default, most)


def limit_within(value: int, most: int) -> int:
    """How many are taken at a time."""
    if not 0 <= value <= most:
        raise InvalidRequest("limit", f"is {value}, must be from 1 to {most} (0: {most})")
    return value or most


def version_within(value: int, field: str) -> int | None:
    """The number of a policy's version; None for 0."""
    if value < 0:
        raise InvalidRequest(field, f"is {value}, must not be negative")
    return value or None


def seconds_within(span: Duration, field: str, least: float, most: float, default: float) -> float:
    """A duration in seconds; unset ones take the default."""
    if not (span.seconds or span.nanos):
        return default
    try:
        span.ToJsonString()  # ToTimedelta takes any nanos
        seconds = span.ToTimedelta().total_seconds()
    except (ValueError, OverflowError):
        raise InvalidRequest(field, "is not a valid duration") from None
    if not least <= seconds <= most:
        raise InvalidRequest(field, f"is {seconds:g} s, must be from {least:g} s to {most:g} s")
    return seconds


def instant_of(stamp: Timestamp, field: str) -> datetime | None:
    """An aware datetime; None when unset."""
    if not (stamp.seconds or stamp.nanos):
        return None
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(field, "is not a valid point in time") from None


def members_of(wrapper: Any, prefix: str, values: Iterable[int], kind: type[_E], field: str) -> frozenset[_E]:
    """Enum members of a repeated field."""
    return frozenset(member_of(wrapper, prefix, value, kind, f"{field}[{place}]") for place, value in enumerate(values))


def without_nul(message: Message, path: str = "") -> None:
    """Refuse NUL characters in any text, however deep: PostgreSQL cannot store them."""
    for field, value in message.ListFields():
        where = f"{path}{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, entry in value.items():
                if "\0" in str(key) or "\0" in str(entry):
                    raise InvalidRequest(where, "holds a NUL character", reason="NUL_CHARACTER")
            continue
        items = enumerate(value) if field.is_repeated else [(None, value)]
        for place, item in items:
            here = where if place is None else f"{where}[{place}]"
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                without_nul(item, f"{here}.")
            elif field.type == FieldDescriptor.TYPE_STRING and "\0" in item:
                raise InvalidRequest(here, "holds a NUL character", reason="NUL_CHARACTER")


def labels_within(labels: Mapping[str, str], field: str, most: int) -> dict[str, str]:
    """Labels: at most `most`, with keys of 1 to 63 and values of at most 255 characters."""
    if len(labels) > most:
        raise InvalidRequest(field, f"has {len(labels)} entries, at most {most} are allowed")
    for key, value in labels.items():
        if not 1 <= len(key) <= 63:
            raise InvalidRequest(field, f"the key {key[:70]!r} must have 1 to 63 characters")
        text_within(value, f"{field}[{key}]", 255)
    return dict(labels)


def _uuid(text: str, field: str) -> uuid.UUID:
    if not text:
        raise InvalidRequest(field, "is required", reason="FIELD_REQUIRED")
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequest(field, "is not a UUID") from None


def member_of(wrapper: Any, prefix: str, value: int, kind: type[_E], field: str) -> _E:
    """An enum member; UNSPECIFIED and unknown numbers are refused."""
    member = from_wire(wrapper, prefix, value, kind)
    if member is None:
        allowed = ", ".join(name for name in list(wrapper.keys()) if not name.endswith("_UNSPECIFIED"))
        raise InvalidRequest(field, f"{value} is not one of {allowed}")
    return member


# --- a selection of jobs ---------------------------------------------------------------------------------


def filter_of(asked: job_service_pb2.JobFilter) -> Filter:
    """Check a filter."""
    without_nul(asked, "filter.")
    return Filter(
        states=members_of(job_pb2.JobState, "JOB_STATE", asked.states, State, "filter.states"),
        types=members_of(job_pb2.JobType, "JOB_TYPE", asked.types, JobType, "filter.types"),
        labels=labels_within(asked.labels, "filter.labels", 8),
        user_id=text_within(asked.user_id, "filter.user_id", 200),
        decisions=members_of(creative_pb2.Decision, "DECISION", asked.decisions, Decision, "filter.decisions"),
        triggers=members_of(
            creative_pb2.PolicyTrigger, "POLICY_TRIGGER", asked.policy_triggered, Trigger, "filter.policy_triggered"
        ),
        subject_id=text_within(asked.subject_id, "filter.subject_id", 200),
        created_from=instant_of(asked.created_from, "filter.created_from"),
        created_before=instant_of(asked.created_before, "filter.created_before"),
    )


def job_not_found(job_id: uuid.UUID, retention: Retention) -> NotFound:
    """The one answer for jobs that do not exist, for those of others, and for those that were cleaned up."""
    days = retention.job_days
    kept = f"; finished jobs are kept for {days} {'day' if days == 1 else 'days'}" if days else ""
    return NotFound(f"there is no job {job_id}{kept}", reason="JOB_NOT_FOUND", job_id=str(job_id))
