"""ReviewService: what waits for a person, who holds it, what they decide, and the record of all that."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from gateway import review_record, review_statistics, validation
from gateway.access import Caller, caller
from gateway.deadlines import allowed_seconds
from gateway.following import Followers
from gateway.holds import tell_ended
from gateway.review_filters import place_in, token_behind, wanted_of
from gateway.review_queue import SNAPSHOT_COMPLETE, Queue
from gateway.review_refusals import nobody_holds, why_not
from gateway.validation import id_of
from imprimatur import metrics
from imprimatur.errors import InvalidRequest, PermissionDenied
from imprimatur.human import Agreement, Appeal, AuditAction, DueHours, agreement
from imprimatur.policy import Decision, Trigger
from imprimatur.retention import Retention
from imprimatur.storage import audit, clock, jobs, people, review_queue
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.review_queue import Choice, Waiting
from imprimatur.tenancy import Role
from imprimatur.v1 import creative_pb2
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.v1.review_service_pb2_grpc import ReviewServiceServicer
from imprimatur.wire.creatives import human_result, recommendation_of, timestamp
from imprimatur.wire.enums import from_wire
from imprimatur.wire.jobs import job_to_wire
from imprimatur.wire.reviews import pending_to_wire

DEFAULT_HOLD_SECONDS = 15 * 60.0
_MOST_PASSED_OVER = 500
_DECISIONS = (Decision.APPROVED, Decision.REJECTED)
_DAY, _LONGEST_WINDOW = timedelta(days=1), timedelta(days=31)
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)


class Reviews(ReviewServiceServicer):
    """The service for the people who decide."""

    def __init__(self, database: Database, followers: Followers, retention: Retention, due: DueHours) -> None:
        self._database = database
        self._followers = followers
        self._retention = retention
        self._due = due

    # --- look --------------------------------------------------------------------------------------------

    async def ListPendingReviews(
        self, request: pb.ListPendingReviewsRequest, context: Any
    ) -> pb.ListPendingReviewsResponse:
        """A page of what waits, most urgent first."""
        who = caller()
        size = validation.page_size_within(request.page_size, 50, 500)
        after = place_in(request)
        asked = pb.ReviewFilter()
        asked.CopyFrom(request.filter)
        asked.unclaimed_only = asked.unclaimed_only or request.unclaimed_only
        wanted = wanted_of(asked, _reviewer("", who))
        async with self._database.read() as reader:
            now = await clock.present(reader)
            as_of = after.as_of if after is not None else now
            found = await review_queue.page(
                reader, who.owner, wanted, due=self._due, as_of=as_of, after=after, limit=size + 1
            )
        page = found[:size]
        return pb.ListPendingReviewsResponse(
            reviews=[self._shown(one, who, now) for one in page],
            next_page_token=token_behind(review_queue.place_of(page[-1], self._due, as_of), request)
            if len(found) > size
            else "",
        )

    async def WatchReviewQueue(self, request: pb.WatchReviewQueueRequest, context: Any) -> AsyncGenerator[Any]:
        """What waits now, and whatever enters, changes or leaves. Gives WatchReviewQueueResponses as bytes."""
        who = caller()
        queue = Queue(self._database, who, wanted_of(request.filter, _reviewer("", who)), self._due)
        within = allowed_seconds(context)
        async with aclosing(self._followers.follow(who.tenant_id, queue, open_within_seconds=within)) as news:
            async for one in news:
                yield SNAPSHOT_COMPLETE if one is None else one

    # --- hold --------------------------------------------------------------------------------------------

    async def ClaimReview(self, request: pb.ClaimReviewRequest, context: Any) -> pb.ClaimReviewResponse:
        """Take one for a while, or prolong one's claim."""
        who = caller()
        validation.without_nul(request)
        job_id, token = id_of(request.job_id), _token(request.token)
        seconds = _lease(request.lease)
        by = _actor(request.reviewer, who)
        async with self._database.begin() as tx:
            prolonged = token is not None and await people.renew(
                tx, who.owner, job_id, reviewer=by.person, seconds=seconds, token=token
            )
            waiting = prolonged or await self._claim(tx, who, job_id, by, seconds=seconds, token=token)
            if not waiting:
                raise await why_not(tx, who, job_id, self._retention, by=by, token=token)
            now = await clock.present(tx)
        if not prolonged:
            metrics.review_claims.labels("claimed").inc()
        review = self._shown(waiting, who, now, for_its_holder=True)
        return pb.ClaimReviewResponse(review=review)

    async def ClaimNextReview(self, request: pb.ClaimNextReviewRequest, context: Any) -> pb.ClaimNextReviewResponse:
        """Take the most urgent that nobody holds."""
        who = caller()
        validation.without_nul(request)
        by, token = _actor(request.reviewer, who), _token(request.token) or uuid.uuid4()
        seconds = _lease(request.lease)
        if len(request.except_job_ids) > _MOST_PASSED_OVER:
            many = len(request.except_job_ids)
            raise InvalidRequest("except_job_ids", f"has {many} entries, at most {_MOST_PASSED_OVER} are allowed")
        passed_over = {id_of(text, f"except_job_ids[{at}]") for at, text in enumerate(request.except_job_ids)}
        wanted = wanted_of(request.filter, by.person, to_claim=True)
        choice = Choice(wanted=wanted, reviewer=by.person, passed_over=frozenset(passed_over))
        async with self._database.begin() as tx:
            waiting = await self._claimed_with(tx, who, by, token, seconds)
            fresh = waiting is None
            if waiting is None:
                job_id = await review_queue.next_free(tx, who.owner, choice, self._due)
                if job_id is not None:
                    waiting = await self._claim(tx, who, job_id, by, seconds=seconds, token=token)
            left = await review_queue.count_free(tx, who.owner, choice, self._due)
            now = await clock.present(tx)
        if waiting is None:
            return pb.ClaimNextReviewResponse()
        if fresh:
            metrics.review_claims.labels("claimed").inc()
        review = self._shown(waiting, who, now, for_its_holder=True)
        return pb.ClaimNextReviewResponse(review=review, left=left)

    async def _claimed_with(
        self, tx: Transaction, who: Caller, by: Actor, token: uuid.UUID, seconds: float
    ) -> Waiting | None:
        """What a call with this token was answered with before; its answer was lost."""
        job_id = await review_queue.held_with(tx, who.owner, reviewer=by.person, token=token)
        if job_id is None:
            return None
        return await people.renew(tx, who.owner, job_id, reviewer=by.person, seconds=seconds, token=token)

    async def _claim(
        self, tx: Transaction, who: Caller, job_id: uuid.UUID, by: Actor, *, seconds: float, token: uuid.UUID | None
    ) -> Waiting | None:
        if await jobs.find(tx, who.owner, job_id) is None:
            return None
        await tell_ended(tx, await people.end_holds(tx, job_ids=[job_id]))
        waiting = await people.hold(tx, who.owner, job_id, by=by, seconds=seconds, token=token)
        if waiting is not None and waiting.held_until is not None:
            details = {"claimed_until": waiting.held_until.isoformat()}
            await audit.record(tx, AuditAction.CLAIMED, waiting.job, by, details=details)
        return waiting

    async def RenewReview(self, request: pb.RenewReviewRequest, context: Any) -> pb.RenewReviewResponse:
        """Prolong one's claim."""
        who = caller()
        validation.without_nul(request)
        job_id, token = id_of(request.job_id), id_of(request.token, "token")
        seconds, by = _lease(request.lease), _actor(request.reviewer, who)
        async with self._database.begin() as tx:
            waiting = await people.renew(tx, who.owner, job_id, reviewer=by.person, seconds=seconds, token=token)
            if waiting is None:
                raise await why_not(tx, who, job_id, self._retention, by=by, token=token)
        return pb.RenewReviewResponse(claimed_until=timestamp(waiting.held_until) if waiting.held_until else None)

    async def ReleaseReview(self, request: pb.ReleaseReviewRequest, context: Any) -> pb.ReleaseReviewResponse:
        """Give a claim back."""
        who = caller()
        validation.without_nul(request)
        job_id, token, by = id_of(request.job_id), _token(request.token), _actor(request.reviewer, who)
        reason = validation.text_within(request.reason, "reason", 1000, required=request.of_anybody)
        if request.of_anybody and who.role is not Role.ADMIN:
            raise PermissionDenied("of_anybody: only an admin ends other people's claims", role=who.role)
        async with self._database.begin() as tx:
            released = await people.release(tx, who.owner, job_id, by=by, token=token, of_anybody=request.of_anybody)
            if released is None:
                error = await why_not(tx, who, job_id, self._retention, by=by, token=token)
                raise nobody_holds(error, job_id, token)
            details = {"claimed_by": released.held_by}
            await audit.record(tx, AuditAction.RELEASED, released.job, by, reason=reason, details=details)
        metrics.review_claims.labels("released").inc()
        return pb.ReleaseReviewResponse(job=job_to_wire(released.job, who.tenant_name))

    # --- decide ------------------------------------------------------------------------------------------

    async def DecideReview(self, request: pb.DecideReviewRequest, context: Any) -> pb.DecideReviewResponse:
        """Decide one."""
        who = caller()
        validation.without_nul(request)
        job_id, token = id_of(request.job_id), _token(request.token)
        decision = from_wire(creative_pb2.Decision, "DECISION", request.decision, Decision)
        if decision not in _DECISIONS:
            raise InvalidRequest("decision", "must be DECISION_APPROVED or DECISION_REJECTED")
        reason = validation.text_within(request.reason, "reason", 5000, required=True)
        by = _actor(request.reviewer, who)
        async with self._database.begin() as tx:
            waiting = await people.lock_waiting(tx, who.owner, job_id, reviewer=by.person, token=token)
            if waiting is None:
                raise await why_not(tx, who, job_id, self._retention, by=by, token=token)
            await tell_ended(tx, await people.end_holds(tx, job_ids=[job_id]))
            decided = _decided(waiting, decision, reason, by, await clock.present(tx))
            job = await people.decide(tx, waiting, decided, result=_result(waiting, decision, decided))
            await audit.record(tx, AuditAction.DECIDED, job, by, reason=reason, details=_told(decided, waiting))
        _count(waiting, decided)
        return pb.DecideReviewResponse(job=job_to_wire(job, who.tenant_name))

    # --- look back ---------------------------------------------------------------------------------------

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, context: Any) -> pb.ListAuditEntriesResponse:
        """A page of the record, newest first."""
        return await review_record.page(self._database, caller().owner, request)

    async def GetReviewStats(self, request: pb.GetReviewStatsRequest, context: Any) -> pb.GetReviewStatsResponse:
        """What waits now, and what people decided in a window of time."""
        until = validation.instant_of(request.until, "until") or datetime.now(UTC)
        since = validation.instant_of(request.since, "since") or until - min(_DAY, until - _FIRST_INSTANT)
        if not timedelta(0) < until - since <= _LONGEST_WINDOW:
            raise InvalidRequest("since", f"must be before until, by {_LONGEST_WINDOW.days} days at most")
        return await review_statistics.stats(self._database, caller().owner, since, until, self._due)

    def _shown(self, waiting: Waiting, who: Caller, now: datetime, *, for_its_holder: bool = False) -> pb.PendingReview:
        return pending_to_wire(waiting, who.tenant_name, self._due, now, for_its_holder=for_its_holder)


def _reviewer(named: str, who: Caller) -> str:
    """Who acts: the key's user, else whom the request names, else the key."""
    validation.text_within(named, "reviewer", 200)
    if who.user_id and named not in ("", who.user_id):
        raise PermissionDenied(
            "reviewer: this key is bound to another user", reason="USER_NOT_ALLOWED", field="reviewer"
        )
    return who.user_id or named or who.key_name


def _actor(named: str, who: Caller) -> Actor:
    return Actor(
        person=_reviewer(named, who),
        key_id=who.key_id,
        key_name=who.key_name,
        known=bool(who.user_id or named),
        bound=bool(who.user_id),
    )


def _token(text: str) -> uuid.UUID | None:
    return id_of(text, "token") if text else None


def _lease(lease: Duration) -> float:
    return validation.seconds_within(lease, "lease", 10, 8 * 3600, DEFAULT_HOLD_SECONDS)


# --- a decision ------------------------------------------------------------------------------------------


def _decided(waiting: Waiting, decision: Decision, reason: str, by: Actor, now: datetime) -> HumanDecision:
    advice = recommendation_of(waiting.job.result)
    stands = agreement(advice, decision)
    return HumanDecision(
        reviewer=by.person,
        decision=decision,
        reason=reason,
        ai_recommendation=advice or "",
        overrides_ai=stands is Agreement.OVERRODE,
        decided_at=now,
        agreement=stands,
        person_known=by.known,
    )


def _result(waiting: Waiting, decision: Decision, decided: HumanDecision) -> bytes:
    return human_result(
        waiting.job.result,
        decision=decision,
        reason=decided.reason,
        reviewer=decided.reviewer,
        decided_at=decided.decided_at,
        agreement=decided.agreement,
    )


def _told(decided: HumanDecision, waiting: Waiting) -> dict[str, str]:
    """What the record says of a decision besides its reason."""
    told = {
        "decision": decided.decision,
        "agreement": str(decided.agreement),
        "ai_recommendation": decided.ai_recommendation,
        "policy_triggered": waiting.job.policy_triggered,
    }
    if waiting.job.appeal_of is not None:
        told["appeal_of"] = str(waiting.job.appeal_of)
    return {name: value for name, value in told.items() if value}


def _count(waiting: Waiting, decided: HumanDecision) -> None:
    metrics.human_decisions.labels(decided.decision, str(decided.overrides_ai).lower()).inc()
    trigger = waiting.job.policy_triggered
    if trigger in set(Trigger):
        metrics.human_agreement.labels(decided.agreement, trigger).inc()
    seconds = (decided.decided_at - waiting.since).total_seconds()
    metrics.time_to_decision_seconds.labels(waiting.job.priority.name.lower()).observe(max(0.0, seconds))
    if waiting.job.appeal and (outcome := Appeal.of(waiting.job.appeal).outcome(decided.decision)):
        metrics.appeals.labels(outcome).inc()
