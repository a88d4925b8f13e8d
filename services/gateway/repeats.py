"""Work done again: one retry, and many jobs at a time (RetryJobs, ReviewJobsAgain; which, is `storage.repeats`)."""

import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.access import Caller
from gateway.quotas import Quotas
from gateway.validation import filter_of, id_of, instant_of, limit_within
from imprimatur import metrics, tracing
from imprimatur.errors import InvalidRequest
from imprimatur.identity import new_id
from imprimatur.job import RETRYABLE, JobType, NewJob, Priority, State
from imprimatur.storage import clock, repeats
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.jobs import Filter
from imprimatur.storage.repeats import SENT_BACK, Scope
from imprimatur.tracing import SpanContext
from imprimatur.v1 import job_service_pb2 as pb
from imprimatur.wire.creatives import asset_ids_in, timestamp

#: At a time: what one transaction changes, and one answer lists.
MOST_AT_ONCE = 1000

_WAITING = frozenset({State.AWAITING_REVIEW})


def retry_of(old: Any, request_id: str, *, fresh: bool = False) -> NewJob:
    """A new job with the old one's content, in the trace of the call that asks for it."""
    tracing.current().link(SpanContext.read(old.traceparent))
    kept = {name: getattr(old, name) for name in repeats.KEPT}
    return NewJob(
        **{**kept, "type": JobType(old.type), "priority": Priority(old.priority)},
        id=new_id(),
        request_id=request_id or None,
        run_at=None,
        retry_of=old.id,
        traceparent=tracing.traceparent(),
        asset_ids=asset_ids_in(old.input),
        fresh=fresh,
    )


async def retry_jobs(
    database: Database, quotas: Quotas, who: Caller, request: pb.RetryJobsRequest
) -> pb.RetryJobsResponse:
    """Retry what matches and is not retried yet."""
    limit = limit_within(request.limit, MOST_AT_ONCE)
    wanted = filter_of(request.filter)
    _require(wanted.states <= set(RETRYABLE), "filter.states", "may hold JOB_STATE_FAILED and JOB_STATE_CANCELLED only")
    if wanted.empty:
        raise _nothing_named("name the states to retry all jobs that failed or were cancelled")
    asked_as_of = instant_of(request.as_of, "as_of")
    made: Sequence[Any] = []
    with nullcontext() if request.dry_run else await quotas.admit_up_to(who, limit) as admission:
        async with database.begin() as tx:
            scope = await _scope(tx, who, wanted, asked_as_of, None)
            if admission is not None:
                made = await repeats.retry(
                    tx, scope, limit=admission.number, traceparent=tracing.traceparent(), fresh=request.fresh
                )
            left = await repeats.count_retryable(tx, scope)
        if admission is not None:
            admission.stored(len(made))
    for row in made:
        metrics.jobs_submitted.labels(row.type, Priority(row.priority).name.lower()).inc()
    return pb.RetryJobsResponse(
        retried=[pb.RetriedJob(retry_of=str(row.retry_of), job_id=str(row.id)) for row in made],
        left=left,
        as_of=_as_told(request.as_of, scope),
    )


async def review_jobs_again(
    database: Database, who: Caller, request: pb.ReviewJobsAgainRequest
) -> pb.ReviewJobsAgainResponse:
    """Send back to the engine what waits for a person because it failed."""
    limit = limit_within(request.limit, MOST_AT_ONCE)
    wanted = filter_of(request.filter)
    _require(wanted.states <= _WAITING, "filter.states", "may hold JOB_STATE_AWAITING_REVIEW only")
    _require(
        wanted.triggers <= SENT_BACK,
        "filter.policy_triggered",
        "may hold POLICY_TRIGGER_ENGINE_ERROR, POLICY_TRIGGER_BUDGET_EXHAUSTED and POLICY_TRIGGER_HUMAN_REQUIRED only: "
        "the rest is not the engine's failure, and a person decides it",
    )
    ids = _ids(request)
    if wanted.empty and ids is None:
        raise _nothing_named("give job_ids, or name the triggers to send back everything that the engine failed at")
    asked_as_of = instant_of(request.as_of, "as_of")
    async with database.begin() as tx:
        scope = await _scope(tx, who, wanted, asked_as_of, ids)
        asked_by = who.user_id or who.key_name
        queued = (
            []
            if request.dry_run
            else await repeats.review_again(tx, scope, limit=limit, asked_by=asked_by, fresh=request.fresh)
        )
        waiting = await repeats.count_waiting(tx, scope)
    for row in queued:
        metrics.reviewed_again.labels(row.type).inc()
    return pb.ReviewJobsAgainResponse(
        job_ids=[str(row.id) for row in queued],
        held=waiting.held,
        left=waiting.free,
        as_of=_as_told(request.as_of, scope),
    )


async def _scope(
    reader: Reader, who: Caller, wanted: Filter, as_of: datetime | None, ids: frozenset[uuid.UUID] | None
) -> Scope:
    return Scope(owner=who.owner, wanted=wanted, as_of=as_of or await clock.present(reader), ids=ids)


def _as_told(asked: Timestamp, scope: Scope) -> Timestamp:
    return asked if asked != Timestamp() else timestamp(scope.as_of)


def _ids(request: pb.ReviewJobsAgainRequest) -> frozenset[uuid.UUID] | None:
    if len(request.job_ids) > MOST_AT_ONCE:
        raise InvalidRequest("job_ids", f"has {len(request.job_ids)} entries, at most {MOST_AT_ONCE} are allowed")
    if not request.job_ids:
        return None
    return frozenset(id_of(text, f"job_ids[{place}]") for place, text in enumerate(request.job_ids))


def _require(holds: bool, field: str, description: str) -> None:
    if not holds:
        raise InvalidRequest(field, description)


def _nothing_named(advice: str) -> InvalidRequest:
    return InvalidRequest("filter", f"is empty; {advice}", reason="FILTER_REQUIRED")
