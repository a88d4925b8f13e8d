"""A job to be accepted: checks a submission field by field and makes the domain's `NewJob` of it.

Limits are stated in the comments of the protos; here they are kept.
"""

import hashlib
import re
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.access import Caller
from gateway.assets import checked_id
from gateway.validation import (
    instant_of,
    labels_within,
    member_of,
    members_of,
    seconds_within,
    text_within,
    without_nul,
)
from imprimatur import keys, tracing
from imprimatur.assets import HEAD_BYTES, media_type_of
from imprimatur.errors import InvalidRequest, PermissionDenied
from imprimatur.evidence import Category
from imprimatur.guard import Guard
from imprimatur.identity import new_id
from imprimatur.job import DEFAULTS, JobType, NewJob, Priority, WhenBusy
from imprimatur.v1 import creative_pb2, job_pb2, job_service_pb2
from imprimatur.wire.creatives import asset_ids_of

MOST_BATCH_ITEMS = 1000
_FARTHEST_RUN_AT = timedelta(days=366)
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


def new_job(request: job_service_pb2.SubmitJobRequest, caller: Caller, guard: Guard, now: datetime) -> NewJob:
    """Check a submission and make the job to be stored.

    Raises:
        InvalidRequest: naming the field and what is allowed.
        PermissionDenied: another user's name with a user-bound key.
    """
    without_nul(request)
    user_id = _user_of(request.user_id, caller)
    job_type, subject_id, parameters, task_input = _task(request, guard)
    defaults = DEFAULTS[job_type]
    key, when_busy = _key(request, job_type, subject_id, caller)
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
        labels=labels_within(request.labels, "labels", 32),
        parameters=parameters,
        input=task_input,
        callback_url=request.callback_url,
        max_attempts=_max_attempts(request.max_attempts, defaults.max_attempts),
        timeout_seconds=seconds_within(request.timeout, "timeout", 1, 3600, defaults.timeout_seconds),
        run_at=_run_at(request.run_at, now),
        deadline_seconds=seconds_within(request.deadline, "deadline", 1, 30 * 86400, defaults.deadline_seconds),
        traceparent=tracing.traceparent(),
        concurrency_key=key,
        when_busy=when_busy,
        revision=_revision(request),
        asset_ids=asset_ids_of(request.creative_review.creative),
        fresh=request.fresh,
    )


def _key(
    request: job_service_pb2.SubmitJobRequest, job_type: JobType, subject_id: str, caller: Caller
) -> tuple[str | None, WhenBusy]:
    """The job's concurrency key, and what becomes of the job when that is busy."""
    name = text_within(request.concurrency_key, "concurrency_key", 200)
    bound_to = caller.owner.user_id
    if name:
        return keys.given(name, bound_to=bound_to), _when_busy(request.when_busy)
    if request.when_busy != job_service_pb2.WHEN_BUSY_UNSPECIFIED:
        raise InvalidRequest("when_busy", "goes with a concurrency_key")
    key = keys.of_creative(subject_id, bound_to=bound_to) if job_type is JobType.CREATIVE_REVIEW else None
    return key, WhenBusy.SUPERSEDE


def _when_busy(value: int) -> WhenBusy:
    if value == job_service_pb2.WHEN_BUSY_UNSPECIFIED:
        return WhenBusy.REFUSE
    return member_of(job_service_pb2.WhenBusy, "WHEN_BUSY", value, WhenBusy, "when_busy")


def _revision(request: job_service_pb2.SubmitJobRequest) -> int | None:
    if not request.HasField("revision"):
        return None
    if request.revision < 0:
        raise InvalidRequest("revision", f"is {request.revision}, must not be negative")
    return request.revision


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
    content.ClearField("when_busy")
    content.user_id = user_id
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def _priority(value: int) -> Priority:
    if value == job_pb2.PRIORITY_UNSPECIFIED:
        return Priority.NORMAL
    return member_of(job_pb2.Priority, "PRIORITY", value, Priority, "priority")


def _max_attempts(value: int, default: int) -> int:
    if not 0 <= value <= 20:
        raise InvalidRequest("max_attempts", f"is {value}, must be from 1 to 20 (0: {default})")
    return value or default


def _run_at(stamp: Timestamp, now: datetime) -> datetime | None:
    run_at = instant_of(stamp, "run_at")
    if run_at is not None and run_at > now + _FARTHEST_RUN_AT:
        raise InvalidRequest("run_at", f"is more than {_FARTHEST_RUN_AT.days} days ahead")
    return run_at


def _task(request: job_service_pb2.SubmitJobRequest, guard: Guard) -> tuple[JobType, str, dict[str, str], bytes]:
    """(type, subject id, parameters to show, canonical input)."""
    if request.WhichOneof("task") == "creative_review":
        creative = request.creative_review.creative
        _check_creative(creative, "creative_review.creative", guard)
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


def _check_creative(creative: creative_pb2.Creative, path: str, guard: Guard) -> None:
    text_within(creative.creative_id, f"{path}.creative_id", 200, required=True)
    for name, most in _TEXT_LIMITS.items():
        text_within(getattr(creative, name), f"{path}.{name}", most)
    if creative.language and not _LANGUAGE_TAG.fullmatch(creative.language):
        raise InvalidRequest(f"{path}.language", 'is not a BCP 47 tag such as "en" or "de-AT"')
    if creative.landing_page_url:
        _web_url(creative.landing_page_url, f"{path}.landing_page_url")
    _check_categories(creative, f"{path}.declared_categories")
    _check_media(creative, path, guard)
    if not any(text.strip() for text in (creative.headline, creative.body, creative.call_to_action)) and not (
        creative.images or creative.video_urls or creative.audio_urls
    ):
        raise InvalidRequest(path, "has nothing to review: give a text, an image, a video or an audio")


def _check_categories(creative: creative_pb2.Creative, field: str) -> None:
    declared = members_of(creative_pb2.Category, "CATEGORY", creative.declared_categories, Category, field)
    if len(declared) < len(creative.declared_categories):
        raise InvalidRequest(field, "names a category twice")


def _check_media(creative: creative_pb2.Creative, path: str, guard: Guard) -> None:
    for name in ("images", "video_urls", "audio_urls"):
        if len(getattr(creative, name)) > 10:
            raise InvalidRequest(f"{path}.{name}", "has more than 10 entries")
    for place, image in enumerate(creative.images):
        _check_image(image, f"{path}.images[{place}]", guard)
    for name in ("video_urls", "audio_urls"):
        for place, url in enumerate(getattr(creative, name)):
            _web_url(text_within(url, f"{path}.{name}[{place}]", 2000), f"{path}.{name}[{place}]")


def _check_image(image: creative_pb2.CreativeImage, where: str, guard: Guard) -> None:
    text_within(image.name, f"{where}.name", 200)
    source = image.WhichOneof("source")
    if source == "asset_id":
        checked_id(image.asset_id, f"{where}.asset_id")
    elif source == "url":
        guard.check_url(image.url, f"{where}.url")
    elif not image.data:
        raise InvalidRequest(f"{where}.data", "is required: or asset_id, or url", reason="FIELD_REQUIRED")
    elif media_type_of(image.data[:HEAD_BYTES]) is None:
        raise InvalidRequest(f"{where}.data", "is not a PNG, JPEG, GIF or WebP image", reason="NOT_AN_IMAGE")


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
