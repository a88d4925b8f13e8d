"""Jobs, their attempts and their history, as clients see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from imprimatur import keys
from imprimatur.human import Appeal
from imprimatur.job import Attempt, Job, JobError, JobEvent, JobType, Priority, State
from imprimatur.v1 import creative_pb2, job_pb2
from imprimatur.wire.creatives import timestamp
from imprimatur.wire.enums import to_wire


def job_to_wire(job: Job, tenant: str, attempts: Sequence[Attempt] = ()) -> job_pb2.Job:
    """A job as clients see it.

    Args:
        tenant: the tenant's name.
        attempts: its history, where the answer has one.
    """
    shown = job_pb2.Job(
        id=str(job.id),
        tenant=tenant,
        user_id=job.user_id,
        type=type_to_wire(job.type),
        state=state_to_wire(job.state),
        priority=priority_to_wire(job.priority),
        version=job.version,
        progress=job_pb2.Progress(percent=job.progress_percent, stage=job.progress_stage, message=job.progress_message),
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        attempt_history=[_attempt(attempt) for attempt in attempts],
        error=_error(job.error),
        result_count=job.result_count,
        parameters=job.parameters,
        subject_id=job.subject_id,
        estimated_duration=duration(job.estimated_seconds),
        create_time=timestamp(job.created_at),
        update_time=timestamp(job.updated_at),
        start_time=_moment(job.started_at),
        finish_time=_moment(job.finished_at),
        run_at=timestamp(job.run_at),
        deadline=timestamp(job.deadline_at),
        timeout=duration(job.timeout_seconds),
        labels=job.labels,
        request_id=job.request_id or "",
        callback_url=job.callback_url,
        retry_of=str(job.retry_of or ""),
        appeal_of=str(job.appeal_of or ""),
        superseded_by=str(job.superseded_by or ""),
        supersedes=str(job.supersedes or ""),
        concurrency_key=keys.name_given(job.concurrency_key),
        revision=job.revision,
    )
    if job.finished_at is not None and job.started_at is not None:
        shown.actual_duration.FromTimedelta(job.finished_at - job.started_at)
    _put_result(shown, job)
    if job.appeal is not None:
        shown.appeal.CopyFrom(_appeal(Appeal.of(job.appeal), job))
    return shown


def _appeal(appeal: Appeal, job: Job) -> job_pb2.Appeal:
    outcome = appeal.outcome(job.decision) if job.state is State.SUCCEEDED else None
    return job_pb2.Appeal(
        reason=appeal.reason,
        appellant=appeal.appellant,
        former_decision=to_wire(creative_pb2.Decision, "DECISION", appeal.former_decision),
        former_reviewer=appeal.former_reviewer,
        former_reason=appeal.former_reason,
        outcome=to_wire(job_pb2.AppealOutcome, "APPEAL_OUTCOME", outcome),
    )


def _put_result(shown: job_pb2.Job, job: Job) -> None:
    if job.result is None:
        return
    if job.type is JobType.CREATIVE_REVIEW:
        shown.creative_review.CopyFrom(creative_pb2.CreativeReviewResult.FromString(job.result))


def event_to_wire(event: JobEvent) -> job_pb2.JobEvent:
    """One line of a job's history."""
    return job_pb2.JobEvent(
        version=event.version,
        kind=event.kind,
        state=state_to_wire(event.state),
        time=timestamp(event.at),
        details=event.details,
    )


def type_to_wire(job_type: JobType) -> Any:
    """A job's type."""
    return to_wire(job_pb2.JobType, "JOB_TYPE", job_type)


def state_to_wire(state: State) -> Any:
    """A job's state."""
    return to_wire(job_pb2.JobState, "JOB_STATE", state)


def priority_to_wire(priority: Priority) -> Any:
    """A job's priority."""
    return to_wire(job_pb2.Priority, "PRIORITY", priority)


def duration(seconds: float | None) -> Duration | None:
    """Seconds as a protobuf Duration; None stays absent."""
    if seconds is None:
        return None
    whole, part = divmod(round(seconds * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=part * 1000)


def _attempt(attempt: Attempt) -> job_pb2.Attempt:
    return job_pb2.Attempt(
        claim_no=attempt.claim_no,
        worker=attempt.worker,
        start_time=timestamp(attempt.started_at),
        finish_time=_moment(attempt.finished_at),
        outcome=to_wire(job_pb2.AttemptOutcome, "ATTEMPT_OUTCOME", attempt.outcome),
        error=_error(attempt.error),
        engine=attempt.engine,
        input_tokens=attempt.input_tokens,
        output_tokens=attempt.output_tokens,
        cost_micros=attempt.cost_micros,
        reused_from=str(attempt.reused_from or ""),
    )


def _error(error: JobError | None) -> job_pb2.JobError | None:
    if error is None:
        return None
    return job_pb2.JobError(code=error.code, message=error.message, stage=error.stage, retryable=error.retryable)


def _moment(instant: datetime | None) -> Timestamp | None:
    return timestamp(instant) if instant is not None else None
