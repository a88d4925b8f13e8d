"""What a request may hold. Turns a checked request into the domain's values; every refusal names its field.

Limits are stated in the comments of the protos; here they are kept.
"""

import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.access import Caller
from imprimatur.errors import InvalidRequest, NotFound, PermissionDenied, Unimplemented
from imprimatur.evidence import Category
from imprimatur.guard import Guard
from imprimatur.identity import new_id
from imprimatur.job import JobType, NewJob, Priority, State
from imprimatur.policy import Decision, Trigger
from imprimatur.storage.jobs import Filter
from imprimatur.v1 import creative_pb2, job_pb2, job_service_pb2
from imprimatur.wire.enums import from_wire

DEFAULT_MAX_ATTEMPTS = 3
DEFAULT_TIMEOUT_SECONDS = 120.0
DEFAULT_DEADLINE_SECONDS = 24 * 3600.0
MOST_BATCH_ITEMS = 1000
_FARTHEST_RUN_AT = timedelta(days=366)
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_E = TypeVar("_E", Category, Decision, JobType, Priority, State, Trigger)


# --- single values ---------------------------------------------------------------------------------------


def id_of(text: str, field: str = "job_id") -> uuid.UUID:
    """A UUID from its text."""
    return _uuid(text, field)


def text_within(value: str, field: str, most: int, *, required: bool = False) -> str:
    """A text of at most `most` characters."""
    if required and not value.strip():
        raise InvalidRequest(field, "is required", reason="FIELD_REQUIRED")
    if len(value) > most:
        raise InvalidRequest(field, f"has {len(value)} characters, at most {most} are allowed", reason="FIELD_TOO_LONG")
    return value


def page_size_within(value: int, default: int, most: int) -> int:
    """How many items a page holds."""
    if value < 0:
        raise InvalidRequest("page_size", f"is {value}, must not be negative")
    return min(value or default, most)


def seconds_within(span: Duration, field: str, least: float, most: float, default: float) -> float:
    """A duration in seconds; unset ones take the default."""
    if span == Duration():
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
    if stamp == Timestamp():
        return None
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(field, "is not a valid point in time") from None


def members_of(wrapper: Any, prefix: str, values: Iterable[int], kind: type[_E], field: str) -> frozenset[_E]:
    """Enum members of a repeated field."""
    return frozenset(_member(wrapper, prefix, value, kind, f"{field}[{place}]") for place, value in enumerate(values))


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


def _uuid(text: str, field: str) -> uuid.UUID:
    if not text:
        raise InvalidRequest(field, "is required", reason="FIELD_REQUIRED")
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequest(field, "is not a UUID") from None


def _member(wrapper: Any, prefix: str, value: int, kind: type[_E], field: str) -> _E:
    member = from_wire(wrapper, prefix, value, kind)
    if member is None:
        allowed = ", ".join(name for name in list(wrapper.keys()) if not name.endswith("_UNSPECIFIED"))
        raise InvalidRequest(field, f"{value} is not one of {allowed}")
    return member


# --- a job to be accepted --------------------------------------------------------------------------------


def new_job(request: job_service_pb2.SubmitJobRequest, caller: Caller, guard: Guard, now: datetime) -> NewJob:
    """Check a submission and make the job to be stored.

    Raises:
        InvalidRequest: naming the field and what is allowed.
        PermissionDenied: another user's name with a user-bound key.
        Unimplemented: a field that this server does not serve yet.
    """
    without_nul(request)
    if request.concurrency_key:
        raise Unimplemented("concurrency_key: not supported yet; leave it empty", field="concurrency_key")
    user_id = _user_of(request.user_id, caller)
    job_type, subject_id, parameters, task_input = _task(request)
    if request.callback_url:
        text_within(request.callback_url, "callback_url", 2000)
        guard.check_url(request.callback_url, "callback_url")
    return NewJob(
        id=new_id(),
        tenant_id=caller.tenant_id,
        type=job_type,
        user_id=user_id,
        priority=_priority(request.priority),
        request_id=text_within(request.request_id, "request_id", 200) or None,
        content_hash=_content_hash(request, user_id),
        subject_id=subject_id,
        labels=_labels(request.labels),
        parameters=parameters,
        input=task_input,
        callback_url=request.callback_url,
        max_attempts=_max_attempts(request.max_attempts),
        timeout_seconds=seconds_within(request.timeout, "timeout", 1, 3600, DEFAULT_TIMEOUT_SECONDS),
        run_at=_run_at(request.run_at, now),
        deadline_seconds=seconds_within(request.deadline, "deadline", 1, 30 * 86400, DEFAULT_DEADLINE_SECONDS),
    )


def _user_of(asked: str, caller: Caller) -> str:
    bound = caller.owner.user_id
    if bound and asked not in ("", bound):
        raise PermissionDenied("user_id: this key is bound to another user", reason="USER_NOT_ALLOWED", field="user_id")
    return bound or text_within(asked, "user_id", 200)


def _content_hash(request: job_service_pb2.SubmitJobRequest, user_id: str) -> bytes:
    """Over the parsed message in canonical form, so that neither field order nor unknown fields matter."""
    content = job_service_pb2.SubmitJobRequest()
    content.CopyFrom(request)
    content.DiscardUnknownFields()
    content.ClearField("request_id")
    content.user_id = user_id
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def _priority(value: int) -> Priority:
    if value == job_pb2.PRIORITY_UNSPECIFIED:
        return Priority.NORMAL
    return _member(job_pb2.Priority, "PRIORITY", value, Priority, "priority")


def _labels(labels: Mapping[str, str], field: str = "labels", most: int = 32) -> dict[str, str]:
    if len(labels) > most:
        raise InvalidRequest(field, f"has {len(labels)} entries, at most {most} are allowed")
    for key, value in labels.items():
        if not 1 <= len(key) <= 63:
            raise InvalidRequest(field, f"the key {key[:70]!r} must have 1 to 63 characters")
        text_within(value, f"{field}[{key}]", 255)
    return dict(labels)


def _max_attempts(value: int) -> int:
    if not 0 <= value <= 20:
        raise InvalidRequest("max_attempts", f"is {value}, must be from 1 to 20 (0: {DEFAULT_MAX_ATTEMPTS})")
    return value or DEFAULT_MAX_ATTEMPTS


def _run_at(stamp: Timestamp, now: datetime) -> datetime | None:
    run_at = instant_of(stamp, "run_at")
    if run_at is not None and run_at > now + _FARTHEST_RUN_AT:
        raise InvalidRequest("run_at", f"is more than {_FARTHEST_RUN_AT.days} days ahead")
    return run_at


def _task(request: job_service_pb2.SubmitJobRequest) -> tuple[JobType, str, dict[str, str], bytes]:
    """(type, subject id, parameters to show, canonical input)."""
    if request.WhichOneof("task") == "creative_review":
        creative = request.creative_review.creative
        _check_creative(creative, "creative_review.creative")
        return (
            JobType.CREATIVE_REVIEW,
            creative.creative_id,
            _shown(creative),
            request.creative_review.SerializeToString(deterministic=True),
        )
    raise InvalidRequest("task", "is required: set creative_review", reason="TASK_REQUIRED")


# --- a creative ------------------------------------------------------------------------------------------

_TEXT_LIMITS = {
    "name": 500,
    "format": 100,
    "headline": 1000,
    "body": 50_000,
    "call_to_action": 500,
    "advertiser": 500,
    "landing_page_url": 2000,
    "language": 35,
}


def _check_creative(creative: creative_pb2.Creative, path: str) -> None:
    text_within(creative.creative_id, f"{path}.creative_id", 200, required=True)
    for name, most in _TEXT_LIMITS.items():
        text_within(getattr(creative, name), f"{path}.{name}", most)
    if creative.language and not _LANGUAGE_TAG.fullmatch(creative.language):
        raise InvalidRequest(f"{path}.language", 'is not a BCP 47 tag such as "en" or "de-AT"')
    if creative.landing_page_url:
        _web_url(creative.landing_page_url, f"{path}.landing_page_url")
    _check_categories(creative, f"{path}.declared_categories")
    _check_media(creative, path)
    if not any(text.strip() for text in (creative.headline, creative.body, creative.call_to_action)) and not (
        creative.images or creative.video_urls or creative.audio_urls
    ):
        raise InvalidRequest(path, "has nothing to review: give a text, an image, a video or an audio")


def _check_categories(creative: creative_pb2.Creative, field: str) -> None:
    declared = members_of(creative_pb2.Category, "CATEGORY", creative.declared_categories, Category, field)
    if len(declared) < len(creative.declared_categories):
        raise InvalidRequest(field, "names a category twice")


def _check_media(creative: creative_pb2.Creative, path: str) -> None:
    for name in ("images", "video_urls", "audio_urls"):
        if len(getattr(creative, name)) > 10:
            raise InvalidRequest(f"{path}.{name}", "has more than 10 entries")
    for place, image in enumerate(creative.images):
        where = f"{path}.images[{place}]"
        text_within(image.name, f"{where}.name", 200)
        if not image.data:
            raise InvalidRequest(f"{where}.data", "is required", reason="FIELD_REQUIRED")
        if not _looks_like_an_image(image.data):
            raise InvalidRequest(f"{where}.data", "is not a PNG, JPEG, GIF or WebP image", reason="NOT_AN_IMAGE")
    for name in ("video_urls", "audio_urls"):
        for place, url in enumerate(getattr(creative, name)):
            _web_url(text_within(url, f"{path}.{name}[{place}]", 2000), f"{path}.{name}[{place}]")


def _looks_like_an_image(data: bytes) -> bool:
    return data.startswith(_IMAGE_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _web_url(url: str, field: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise InvalidRequest(field, "is not an http or https URL")


def _shown(creative: creative_pb2.Creative) -> dict[str, str]:
    shown = {
        "creative_id": creative.creative_id,
        "name": creative.name,
        "format": creative.format,
        "headline": creative.headline[:120],
        "images": str(len(creative.images)) if creative.images else "",
    }
    return {key: value for key, value in shown.items() if value}


# --- a selection of jobs ---------------------------------------------------------------------------------


def filter_of(asked: job_service_pb2.JobFilter) -> Filter:
    """Check a filter."""
    without_nul(asked, "filter.")
    return Filter(
        states=members_of(job_pb2.JobState, "JOB_STATE", asked.states, State, "filter.states"),
        types=members_of(job_pb2.JobType, "JOB_TYPE", asked.types, JobType, "filter.types"),
        labels=_labels(asked.labels, "filter.labels", 8),
        user_id=text_within(asked.user_id, "filter.user_id", 200),
        decisions=members_of(creative_pb2.Decision, "DECISION", asked.decisions, Decision, "filter.decisions"),
        triggers=members_of(
            creative_pb2.PolicyTrigger, "POLICY_TRIGGER", asked.policy_triggered, Trigger, "filter.policy_triggered"
        ),
        subject_id=text_within(asked.subject_id, "filter.subject_id", 200),
        created_from=instant_of(asked.created_from, "filter.created_from"),
        created_before=instant_of(asked.created_before, "filter.created_before"),
    )


def job_not_found(job_id: uuid.UUID) -> NotFound:
    """The one answer for jobs that do not exist and for those of others."""
    return NotFound(f"there is no job {job_id}", reason="JOB_NOT_FOUND", job_id=str(job_id))
