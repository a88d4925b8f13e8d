"""The body of a webhook message: an envelope after Standard Webhooks, as bytes that are stored and never made again.

It tells the state *at its event*: one that is handled late must not tell of what came after.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from imprimatur.human import Agreement, Appeal
from imprimatur.job import TRANSITIONS, Happening, Job, JobEvent, JobType, State
from imprimatur.policy import Confidence, Decision, Trigger
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.enums import from_wire

_Message = TypeVar("_Message", bound=Message)


def event_type(event: JobEvent) -> str:
    """The webhook event type, such as "job.succeeded"; empty for an event that no webhook tells of."""
    return TRANSITIONS[Happening(event.kind)].notifies if event.kind in set(Happening) else ""


def body_of(job: Job, event: JobEvent, task_input: bytes) -> bytes:
    """Compact, sorted UTF-8 JSON: {"type", "timestamp", "data"}.

    Args:
        job: as it stands now, which may be later than the event; without its result where the engine was asked
            anew since.
        task_input: the job's stored input.
    """
    envelope = {
        "type": event_type(event),
        "timestamp": _iso(event.at),
        "data": {**_of_any_job(job, event), **_DATA[job.type](job, event, task_input)},
    }
    return json.dumps(envelope, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _of_any_job(job: Job, event: JobEvent) -> dict[str, Any]:
    data: dict[str, Any] = {
        "timestamp": _iso(event.at),
        "job_id": str(job.id),
        "job_state": str(event.state),
        "version": event.version,
        "labels": dict(job.labels),
        "user_id": job.user_id,
    }
    if job.retry_of is not None:
        data["retry_of"] = str(job.retry_of)
    if job.superseded_by is not None and event.state is State.CANCELLED:
        data["superseded_by"] = str(job.superseded_by)
    if job.supersedes is not None:
        data["supersedes"] = str(job.supersedes)
    if job.appeal_of is not None:
        data["appeal_of"] = str(job.appeal_of)
        data["appeal"] = _appeal(job, event)
    if "error" in event.details:
        data["error"] = {"code": event.details["error"], "message": event.details["error_message"]}
    return data


def _appeal(job: Job, event: JobEvent) -> dict[str, Any]:
    """What is appealed against, and, once it is decided, what became of that."""
    appeal = Appeal.of(job.appeal or {"reason": "", "appellant": "", "former_decision": Decision.PENDING})
    return {
        "reason": appeal.reason,
        "appellant": appeal.appellant,
        "former_decision": str(appeal.former_decision),
        "former_reviewer": appeal.former_reviewer,
        "outcome": appeal.outcome(job.decision) if event.state is State.SUCCEEDED else None,
    }


# --- creative_review -------------------------------------------------------------------------------------


def _of_creative_review(job: Job, event: JobEvent, task_input: bytes) -> dict[str, Any]:
    creative = _parsed(pb.CreativeReviewTask(), task_input).creative
    result = _parsed(pb.CreativeReviewResult(), job.result or b"")
    status = _status(event, result)
    told = {
        "creative_id": creative.creative_id or job.subject_id,
        "name": creative.name,
        "format": creative.format,
        "status": status,
        "ai_review": _review_at(event, result.ai_review) if result.HasField("ai_review") else _review_of_event(event),
    }
    if event.kind == Happening.DECIDED and result.HasField("human_review"):
        told["human_review"] = _human_review(result.human_review)
    return {"object_type": "creative", "object_id": told["creative_id"], "status": status, "creative_data": told}


_DATA: Mapping[JobType, Callable[[Job, JobEvent, bytes], dict[str, Any]]] = {
    JobType.CREATIVE_REVIEW: _of_creative_review,
}


def _status(event: JobEvent, result: pb.CreativeReviewResult) -> str:
    """Only a job that succeeded has been decided."""
    if event.state is not State.SUCCEEDED:
        return str(Decision.PENDING)
    return str(_named(pb.Decision, "DECISION", result.decision, Decision) or Decision.PENDING)


def _review_at(event: JobEvent, review: pb.AiReview) -> dict[str, Any]:
    """The AI's side as it was at the event: a referral is told as one, though a changed policy has decided since."""
    told = _ai_review(review)
    before = _review_of_event(event)
    if before is not None and told["decision"] != before["decision"]:
        told |= {name: before[name] for name in ("decision", "reason", "policy_triggered", "reviewed_at")}
    return told


def _ai_review(review: pb.AiReview) -> dict[str, Any]:
    engine_ran = review.HasField("evidence")
    engine = review.evidence.engine
    return {
        "decision": _named(pb.Decision, "DECISION", review.decision, Decision),
        "reason": review.reason,
        "confidence": _named(pb.Confidence, "CONFIDENCE", review.confidence, Confidence),
        "confidence_score": round(review.confidence_score, 6) if engine_ran else None,
        "policy_triggered": _named(pb.PolicyTrigger, "POLICY_TRIGGER", review.policy_triggered, Trigger),
        "reviewed_at": _iso_of(review.reviewed_at),
        "engine": {"name": engine.name, "version": engine.version, "model": engine.model} if engine_ran else None,
    }


def _review_of_event(event: JobEvent) -> dict[str, Any] | None:
    """What a referral says by itself, after the engine was asked anew and the job's result is of that review: only
    a review in which no engine ran can be asked for again. Nothing of any other event."""
    if event.kind != Happening.REFERRED:
        return None
    return {
        "decision": str(Decision.PENDING),
        "reason": event.details.get("reason") or event.details.get("error_message", ""),
        "confidence": None,
        "confidence_score": None,
        "policy_triggered": event.details.get("policy_triggered") or str(Trigger.ENGINE_ERROR),
        "reviewed_at": _iso(event.at),
        "engine": None,
    }


def _human_review(review: pb.HumanReview) -> dict[str, Any]:
    return {
        "decision": _named(pb.Decision, "DECISION", review.decision, Decision),
        "reason": review.reason,
        "reviewer": review.reviewer,
        "decided_at": _iso_of(review.decided_at),
        "agreement": _named(pb.Agreement, "AGREEMENT", review.agreement, Agreement),
    }


# --- spelling --------------------------------------------------------------------------------------------


def _parsed(empty: _Message, data: bytes) -> _Message:
    """What of a stored message can be read: one that cannot must not keep its outcome from being told."""
    try:
        empty.ParseFromString(data)
    except DecodeError:
        empty.Clear()
    return empty


def _named(wrapper: Any, prefix: str, value: int, kind: Any) -> str | None:
    member = from_wire(wrapper, prefix, value, kind)
    return None if member is None else str(member)


def _iso_of(stamp: Timestamp) -> str | None:
    return _iso(stamp.ToDatetime(tzinfo=UTC)) if stamp.ByteSize() else None


def _iso(instant: datetime) -> str:
    """RFC 3339 in UTC with microseconds."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
