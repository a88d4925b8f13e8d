"""ReviewService: what waits for a person, who holds it, and what they decide."""

import uuid
from datetime import UTC, datetime
from textwrap import shorten
from typing import Any

from gateway import validation
from gateway.access import Caller, caller
from gateway.paging import foreign_token, position_of, token_of
from gateway.validation import id_of, job_not_found
from imprimatur import metrics
from imprimatur.errors import FailedPrecondition, InvalidRequest, PermissionDenied, RequestError
from imprimatur.evidence import Recommendation
from imprimatur.job import Priority, State
from imprimatur.policy import Decision
from imprimatur.retention import Retention
from imprimatur.storage import clock, jobs, people
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.people import HumanDecision, Position, Waiting
from imprimatur.v1 import creative_pb2
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.v1.review_service_pb2_grpc import ReviewServiceServicer
from imprimatur.wire.creatives import human_result, recommendation_of, summary_of, timestamp
from imprimatur.wire.enums import from_wire
from imprimatur.wire.jobs import job_to_wire

DEFAULT_HOLD_SECONDS = 15 * 60.0
_AGREES = {
    Decision.APPROVED: Recommendation.APPROVE,
    Decision.REJECTED: Recommendation.REJECT,
}


class Reviews(ReviewServiceServicer):
    """The service for the people who decide."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    async def ListPendingReviews(
        self, request: pb.ListPendingReviewsRequest, context: Any
    ) -> pb.ListPendingReviewsResponse:
        """A page of what waits, most urgent first."""
        who = caller()
        size = validation.page_size_within(request.page_size, 50, 500)
        async with self._database.read() as reader:
            found = await people.waiting(
                reader,
                who.owner,
                reviewer=_reviewer("", who),
                unclaimed_only=request.unclaimed_only,
                after=_position(request.page_token),
                limit=size + 1,
            )
            now = await clock.present(reader)
        page = found[:size]
        return pb.ListPendingReviewsResponse(
            reviews=[_pending(waiting, who, now, with_images=False) for waiting in page],
            next_page_token=_token(page[-1]) if len(found) > size else "",
        )

    async def ClaimReview(self, request: pb.ClaimReviewRequest, context: Any) -> pb.ClaimReviewResponse:
        """Take one for a while."""
        who = caller()
        validation.without_nul(request)
        job_id = id_of(request.job_id)
        seconds = validation.seconds_within(request.lease, "lease", 10, 8 * 3600, DEFAULT_HOLD_SECONDS)
        reviewer = _reviewer(request.reviewer, who)
        async with self._database.begin() as tx:
            waiting = await people.hold(tx, who.owner, job_id, reviewer=reviewer, seconds=seconds)
            if waiting is None:
                raise await _why_not(tx, who, job_id, self._retention)
            now = await clock.present(tx)
        return pb.ClaimReviewResponse(review=_pending(waiting, who, now, with_images=True))

    async def DecideReview(self, request: pb.DecideReviewRequest, context: Any) -> pb.DecideReviewResponse:
        """Decide one."""
        who = caller()
        validation.without_nul(request)
        job_id = id_of(request.job_id)
        decision = from_wire(creative_pb2.Decision, "DECISION", request.decision, Decision)
        if decision not in _AGREES:
            raise InvalidRequest("decision", "must be DECISION_APPROVED or DECISION_REJECTED")
        reason = validation.text_within(request.reason, "reason", 5000, required=True)
        reviewer = _reviewer(request.reviewer, who)
        async with self._database.begin() as tx:
            waiting = await people.lock_waiting(tx, who.owner, job_id, reviewer=reviewer)
            if waiting is None:
                raise await _why_not(tx, who, job_id, self._retention)
            decided = _decided(waiting, decision, reason, reviewer, await clock.present(tx))
            job = await people.decide(tx, waiting, decided, result=_result(waiting, decision, decided))
        metrics.human_decisions.labels(decision, str(decided.overrides_ai).lower()).inc()
        return pb.DecideReviewResponse(job=job_to_wire(job, who.tenant_name))


def _reviewer(named: str, who: Caller) -> str:
    """Who acts: the key's user, else whom the request names, else the key."""
    validation.text_within(named, "reviewer", 200)
    if who.user_id and named not in ("", who.user_id):
        raise PermissionDenied(
            "reviewer: this key is bound to another user", reason="USER_NOT_ALLOWED", field="reviewer"
        )
    return who.user_id or named or who.key_name


def _decided(waiting: Waiting, decision: Decision, reason: str, reviewer: str, now: datetime) -> HumanDecision:
    advice = recommendation_of(waiting.job.result)
    return HumanDecision(
        reviewer=reviewer,
        decision=decision,
        reason=reason,
        ai_recommendation=advice or "",
        overrides_ai=advice in (Recommendation.APPROVE, Recommendation.REJECT) and advice is not _AGREES[decision],
        decided_at=now,
    )


def _result(waiting: Waiting, decision: Decision, decided: HumanDecision) -> bytes:
    return human_result(
        waiting.job.result,
        decision=decision,
        reason=decided.reason,
        reviewer=decided.reviewer,
        decided_at=decided.decided_at,
        overrides_ai=decided.overrides_ai,
    )


def _pending(waiting: Waiting, who: Caller, now: datetime, *, with_images: bool) -> pb.PendingReview:
    shown = job_to_wire(waiting.job, who.tenant_name)
    held = bool(waiting.held_by) and waiting.held_until is not None and waiting.held_until > now
    return pb.PendingReview(
        job=shown,
        creative=summary_of(waiting.input, with_images=with_images),
        waiting_since=shown.creative_review.ai_review.reviewed_at,
        claimed_by=waiting.held_by if held else "",
        claimed_until=timestamp(waiting.held_until) if held and waiting.held_until else None,
    )


async def _why_not(reader: Reader, who: Caller, job_id: uuid.UUID, retention: Retention) -> RequestError:
    """Why a review can be neither taken nor decided."""
    job = await jobs.find(reader, who.owner, job_id)
    if job is None:
        return job_not_found(job_id, retention)
    if holder := await people.holder(reader, job_id):
        return FailedPrecondition(f"{holder} is reviewing this one now", reason="CLAIMED_BY_ANOTHER", claimed_by=holder)
    decided = await people.latest_decision(reader, job_id)
    if job.state is State.SUCCEEDED and decided is not None:
        return FailedPrecondition(
            f"{decided.reviewer} has already {decided.decision} it: {shorten(decided.reason, 100)}",
            reason="ALREADY_DECIDED",
            reviewer=decided.reviewer,
            decision=decided.decision,
            decided_at=decided.decided_at.isoformat(),
        )
    if job.superseded_by is not None:
        return FailedPrecondition(
            f"the job is {job.state}: {job.superseded_by} has taken its place, with other content",
            reason="WRONG_STATE",
            state=job.state,
            superseded_by=str(job.superseded_by),
        )
    return FailedPrecondition(
        f"the job is {job.state}; only jobs that await a review can be decided", reason="WRONG_STATE", state=job.state
    )


def _token(waiting: Waiting) -> str:
    priority, created_at, job_id = people.position_of(waiting)
    return token_of([str(priority), created_at.isoformat(), str(job_id)])


def _position(token: str) -> Position | None:
    parts = position_of(token, 3)
    if parts is None:
        return None
    try:
        priority, created_at, job_id = Priority(int(parts[0])), datetime.fromisoformat(parts[1]), uuid.UUID(parts[2])
    except ValueError:
        raise foreign_token() from None
    if created_at.tzinfo is not UTC:
        raise foreign_token()
    return int(priority), created_at, job_id
