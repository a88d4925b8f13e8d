"""The body of a webhook message."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from imprimatur.human import Agreement, Appeal
from imprimatur.job import Happening, Job, JobEvent, JobType, Priority, State
from imprimatur.policy import Confidence, Decision, Trigger, Verdict
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.creatives import ai_result, human_result
from imprimatur.wire.webhooks import body_of, event_type
from tests.makers import evidence

AT = datetime(2026, 3, 1, 12, 30, 15, 250000, tzinfo=UTC)
JOB_ID = uuid.UUID("0195512a-0000-7000-8000-000000000001")
INPUT = pb.CreativeReviewTask(
    creative=pb.Creative(creative_id="crea-1", name="Grüße ✓", format="display_300x250", headline="Hello")
).SerializeToString()


def result(decision: Decision, trigger: Trigger = Trigger.AUTO_APPROVE, *, engine_ran: bool = True) -> bytes:
    verdict = Verdict(
        decision=decision,
        trigger=trigger,
        reason="It was looked at.",
        confidence=Confidence.HIGH if engine_ran else None,
        confidence_score=0.95 if engine_ran else 0.0,
    )
    return ai_result(verdict, evidence() if engine_ran else None, policy_version=1, reviewed_at=AT)


def job(**changes: Any) -> Job:
    made = Job(
        id=JOB_ID,
        tenant_id=uuid.UUID(int=7),
        type=JobType.CREATIVE_REVIEW,
        state=State.SUCCEEDED,
        user_id="ann",
        priority=Priority.NORMAL,
        version=3,
        request_id=None,
        subject_id="crea-1",
        labels={"campaign": "spring"},
        parameters={},
        callback_url="",
        max_attempts=3,
        attempts=1,
        timeout_seconds=120.0,
        progress_percent=100,
        progress_stage="",
        progress_message="",
        error=None,
        decision="approved",
        policy_triggered="auto_approve",
        result=result(Decision.APPROVED),
        result_count=1,
        retry_of=None,
        appeal_of=None,
        superseded_by=None,
        supersedes=None,
        concurrency_key=None,
        revision=None,
        estimated_seconds=None,
        created_at=AT,
        updated_at=AT,
        started_at=AT,
        finished_at=AT,
        run_at=AT,
        deadline_at=AT + timedelta(hours=1),
    )
    return replace(made, **changes)


def event(happening: Happening, state: State, *, version: int = 3) -> JobEvent:
    return JobEvent(version=version, kind=happening, state=state, at=AT, details={})


COMPLETED = event(Happening.COMPLETED, State.SUCCEEDED)
REFERRED = event(Happening.REFERRED, State.AWAITING_REVIEW)
DECIDED = event(Happening.DECIDED, State.SUCCEEDED, version=4)
CANCELLED = event(Happening.CANCELLED, State.CANCELLED)
GAVE_UP = event(Happening.GAVE_UP, State.FAILED)


def told(of: Job, at: JobEvent, task_input: bytes = INPUT) -> Any:
    return json.loads(body_of(of, at, task_input))


def decided_by_a_person() -> Job:
    referred = result(Decision.PENDING, Trigger.LOW_CONFIDENCE)
    both = human_result(
        referred,
        decision=Decision.REJECTED,
        reason="Misleading.",
        reviewer="bea",
        decided_at=AT + timedelta(minutes=5),
        agreement=Agreement.OVERRODE,
    )
    return job(result=both, decision="rejected", version=4)


def test_an_approval_is_told_in_full() -> None:
    assert told(job(), COMPLETED) == {
        "type": "job.succeeded",
        "timestamp": "2026-03-01T12:30:15.250000Z",
        "data": {
            "object_type": "creative",
            "object_id": "crea-1",
            "status": "approved",
            "timestamp": "2026-03-01T12:30:15.250000Z",
            "job_id": "0195512a-0000-7000-8000-000000000001",
            "job_state": "succeeded",
            "version": 3,
            "labels": {"campaign": "spring"},
            "user_id": "ann",
            "creative_data": {
                "creative_id": "crea-1",
                "name": "Grüße ✓",
                "format": "display_300x250",
                "status": "approved",
                "ai_review": {
                    "decision": "approved",
                    "reason": "It was looked at.",
                    "confidence": "high",
                    "confidence_score": 0.95,
                    "policy_triggered": "auto_approve",
                    "reviewed_at": "2026-03-01T12:30:15.250000Z",
                    "engine": {"name": "test", "version": "1", "model": ""},
                },
            },
        },
    }


def test_the_body_is_compact_sorted_utf8_and_the_same_every_time() -> None:
    body = body_of(job(), COMPLETED, INPUT)

    assert body == body_of(job(), COMPLETED, INPUT)
    assert "Grüße ✓".encode() in body
    assert body == json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_rejection_is_told() -> None:
    rejected = job(result=result(Decision.REJECTED, Trigger.AUTO_REJECT), decision="rejected")

    data = told(rejected, COMPLETED)["data"]

    assert data["status"] == data["creative_data"]["status"] == "rejected"


def test_what_waits_for_a_person_is_pending() -> None:
    waiting = job(state=State.AWAITING_REVIEW, result=result(Decision.PENDING, Trigger.LOW_CONFIDENCE))

    message = told(waiting, REFERRED)

    assert message["type"] == "job.awaiting_review"
    assert message["data"]["status"] == "pending"
    assert message["data"]["creative_data"]["ai_review"]["policy_triggered"] == "low_confidence"
    assert "human_review" not in message["data"]["creative_data"]


def test_a_persons_decision_is_told_beside_the_ais() -> None:
    message = told(decided_by_a_person(), DECIDED)

    assert message["type"] == "job.succeeded"
    assert message["data"]["status"] == "rejected"
    assert message["data"]["creative_data"]["ai_review"]["decision"] == "pending"
    assert message["data"]["creative_data"]["human_review"] == {
        "decision": "rejected",
        "reason": "Misleading.",
        "reviewer": "bea",
        "decided_at": "2026-03-01T12:35:15.250000Z",
        "agreement": "overrode",
    }


def test_an_appeal_is_told_with_what_became_of_it() -> None:
    appeal = Appeal(reason="It is a parody.", appellant="ann", former_decision=Decision.APPROVED, former_reviewer="al")
    older = uuid.UUID(int=9)
    waits = job(
        state=State.AWAITING_REVIEW,
        result=result(Decision.PENDING, Trigger.AUTO_APPROVE),
        appeal_of=older,
        appeal=appeal.document(),
    )
    decided = replace(decided_by_a_person(), appeal_of=older, appeal=appeal.document())
    expected = {
        "reason": "It is a parody.",
        "appellant": "ann",
        "former_decision": "approved",
        "former_reviewer": "al",
    }
    assert told(waits, REFERRED)["data"]["appeal"] == {**expected, "outcome": None}
    data = told(decided, DECIDED)["data"]
    assert (data["appeal_of"], data["appeal"]) == (str(older), {**expected, "outcome": "overturned"})


def test_an_event_told_late_still_tells_the_state_at_the_event() -> None:
    early = job(state=State.AWAITING_REVIEW, result=result(Decision.PENDING, Trigger.LOW_CONFIDENCE))

    assert body_of(decided_by_a_person(), REFERRED, INPUT) == body_of(early, REFERRED, INPUT)


def test_an_engine_that_failed_leaves_the_creative_pending_with_the_error() -> None:
    failed = result(Decision.PENDING, Trigger.ENGINE_ERROR, engine_ran=False)
    timed_out = {"error": "timed_out", "error_message": "the engine took longer than 120 s"}

    data = told(job(state=State.AWAITING_REVIEW, result=failed), replace(REFERRED, details=timed_out))["data"]

    assert data["status"] == "pending"
    assert data["error"] == {"code": "timed_out", "message": "the engine took longer than 120 s"}
    review = data["creative_data"]["ai_review"]
    assert (review["policy_triggered"], review["confidence"], review["confidence_score"], review["engine"]) == (
        "engine_error",
        None,
        None,
        None,
    )


def test_a_referral_told_after_the_engine_was_asked_anew_tells_of_the_review_that_failed() -> None:
    failed = {"error": "timed_out", "error_message": "the engine took longer than 120 s"}
    decided = {"decision": "pending", "policy_triggered": "budget_exhausted", "reason": "It was looked at."}
    stored = result(Decision.PENDING, Trigger.BUDGET_EXHAUSTED, engine_ran=False)
    at_once = told(job(result=stored), replace(REFERRED, details=failed | decided))

    assert told(job(result=None), replace(REFERRED, details=failed | decided)) == at_once
    by_itself = told(job(result=None), replace(REFERRED, details=failed))["data"]["creative_data"]["ai_review"]
    assert (by_itself["policy_triggered"], by_itself["reason"]) == ("engine_error", failed["error_message"])


def test_a_job_that_failed_is_pending_and_was_never_reviewed() -> None:
    unreviewable = {"error": "unreviewable_input", "error_message": "images[0] is not an image"}

    message = told(job(state=State.FAILED, result=None), replace(GAVE_UP, details=unreviewable))

    assert message["type"] == "job.failed"
    assert message["data"]["status"] == "pending"
    assert message["data"]["job_state"] == "failed"
    assert message["data"]["error"]["code"] == "unreviewable_input"
    assert message["data"]["creative_data"]["ai_review"] is None


def test_a_superseded_job_names_its_successor() -> None:
    newer = uuid.UUID(int=9)

    message = told(job(state=State.CANCELLED, result=None, superseded_by=newer), CANCELLED)

    assert message["type"] == "job.cancelled"
    assert message["data"]["status"] == "pending"
    assert message["data"]["superseded_by"] == str(newer)


def test_a_job_that_took_another_s_place_names_it() -> None:
    assert told(job(supersedes=uuid.UUID(int=4)), COMPLETED)["data"]["supersedes"] == str(uuid.UUID(int=4))


def test_a_retry_names_the_job_it_tries_again() -> None:
    assert told(job(retry_of=uuid.UUID(int=5)), COMPLETED)["data"]["retry_of"] == str(uuid.UUID(int=5))


def test_an_input_that_cannot_be_read_does_not_keep_the_outcome_from_being_told() -> None:
    data = told(job(), COMPLETED, b"\xff\xff not protobuf")["data"]

    assert data["object_id"] == "crea-1"
    assert data["creative_data"]["name"] == ""


@pytest.mark.parametrize(
    "happening", [Happening.CLAIMED, Happening.RETRY_SCHEDULED, Happening.HELD_BY_PERSON, Happening.REVIEW_AGAIN]
)
def test_no_webhook_tells_of_the_steps_between(happening: Happening) -> None:
    assert event_type(event(happening, State.RUNNING)) == ""
