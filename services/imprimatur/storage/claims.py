"""What a worker does with a job: claim it, keep the lease, report, end the attempt.

Every write is fenced: it needs state RUNNING and the claim's own `claim_no`. No row changed means that the job
was cancelled or taken over meanwhile; the result is discarded, but what it cost is booked on the attempt.
"""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, func, literal, select, tuple_, update

from imprimatur.job import (
    LOSSES_OF_A_SUSPECT,
    MOST_LOSSES,
    AttemptOutcome,
    Claim,
    Happening,
    Job,
    JobError,
    JobType,
    Priority,
    State,
)
from imprimatur.retry import after_loss
from imprimatur.storage import attempts, clock, outbox
from imprimatur.storage.attempts import Spent
from imprimatur.storage.database import Transaction
from imprimatur.storage.jobs import job_of
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import jobs
from imprimatur.storage.transitions import is_job, move
from imprimatur.storage.workers import Worker
from imprimatur.wire.messages import JobChanged


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What one attempt makes of its job, as `review` and `retry` decided it.

    `delay_seconds` is when it may run again, for happenings that queue it. Columns in `shown` are set as given.
    """

    happening: Happening
    outcome: AttemptOutcome
    spends_attempt: bool = True
    delay_seconds: float = 0.0
    error: JobError | None = None
    shown: Mapping[str, Any] | None = None
    details: Mapping[str, str] | None = None


async def claim(
    tx: Transaction,
    worker: Worker,
    *,
    job_id: uuid.UUID,
    release_no: int,
    claim_id: uuid.UUID,
    lease_seconds: float,
) -> Claim | None:
    """Take a released job, or find the claim again whose answer was lost.

    Args:
        release_no: from the message; a stale or duplicate one claims nothing.
        claim_id: chosen by the caller and the same on every repetition of this call.

    Returns:
        None when the job is not (any more) there to be claimed.
    """
    rows: list[Row[Any]] = await move(
        tx,
        Happening.CLAIMED,
        is_job(job_id),
        jobs.c.release_no == release_no,
        jobs.c.released_at.is_not(None),
        jobs.c.deadline_at > clock.now(),
        values={
            "claim_no": jobs.c.claim_no + 1,
            "claim_id": claim_id,
            "worker_id": worker.id,
            "lease_until": clock.after(lease_seconds),
            "started_at": _first_start(),
        },
        details={"worker": worker.name},
    )
    if rows:
        await attempts.begin(tx, job_id, rows[0].claim_no, worker.name)
    else:
        mine = and_(is_job(job_id), jobs.c.claim_id == claim_id, jobs.c.state == State.RUNNING)
        rows = list((await tx.connection.execute(select(*jobs.c).where(mine))).all())
    return _claim_of(rows[0]) if rows else None


def _first_start() -> ColumnElement[Any]:
    return func.coalesce(jobs.c.started_at, clock.now(), type_=jobs.c.started_at.type)


def _claim_of(row: Row[Any]) -> Claim:
    return Claim(
        job_id=row.id,
        claim_no=row.claim_no,
        tenant_id=row.tenant_id,
        type=JobType(row.type),
        input=row.input,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        timeout_seconds=row.timeout_seconds,
        remaining_seconds=(row.deadline_at - row.updated_at).total_seconds(),
        priority=Priority(row.priority),
        first_wait_seconds=(row.updated_at - row.run_at).total_seconds() if row.claim_no == 1 else None,
        first_due_at=row.deadline_at - timedelta(seconds=row.deadline_seconds),
        losses=row.losses,
        traceparent=row.traceparent,
    )


def _held(claim: Claim) -> ColumnElement[bool]:
    """The fence."""
    return and_(is_job(claim.job_id), jobs.c.state == State.RUNNING, jobs.c.claim_no == claim.claim_no)


async def renew(
    tx: Transaction, held: Collection[tuple[uuid.UUID, int]], *, lease_seconds: float
) -> set[tuple[uuid.UUID, int]]:
    """Prolong the leases of these (job id, claim_no) pairs; those not returned are lost to their holder."""
    if not held:
        return set()
    pairs = sorted(held)
    still_held = (
        select(jobs.c.id)
        .where(
            jobs.c.id.in_({job_id for job_id, _ in pairs}),  # SQLite finds pairs by no index
            tuple_(jobs.c.id, jobs.c.claim_no).in_(pairs),
            jobs.c.state == State.RUNNING,
        )
        .order_by(jobs.c.id)
        .with_for_update()
    )
    rows = await tx.connection.execute(
        update(jobs)
        .where(in_locked(jobs.c.id, still_held), jobs.c.state == State.RUNNING)
        .values(lease_until=clock.after(lease_seconds))
        .returning(jobs.c.id, jobs.c.claim_no)
    )
    return {(row.id, row.claim_no) for row in rows} & set(held)


async def report_progress(tx: Transaction, claim: Claim, *, percent: int, stage: str, message: str) -> bool:
    """Show how far the job is. Never backwards within an attempt; broadcast, not part of the history."""
    row = (
        await tx.connection.execute(
            update(jobs)
            .where(_held(claim), jobs.c.progress_percent <= percent)
            .values(
                progress_percent=percent,
                progress_stage=stage,
                progress_message=message,
                version=jobs.c.version + 1,
                updated_at=clock.now(),
            )
            .returning(jobs.c.tenant_id, jobs.c.version)
        )
    ).one_or_none()
    if row is None:
        return False
    change = JobChanged(job_id=claim.job_id, tenant_id=row.tenant_id, version=row.version, state=State.RUNNING)
    await outbox.add(tx, [outbox.job_changed(change, kind="progress", outcome=False)])
    return True


async def conclude(tx: Transaction, claim: Claim, conclusion: Conclusion, spent: Spent) -> Job | None:
    """End the attempt and move the job. None: fenced off, nothing changed but the attempt's bookkeeping."""
    queues = conclusion.happening in (Happening.RETRY_SCHEDULED, Happening.HANDED_BACK)
    values: dict[str, Any] = {
        "attempts": jobs.c.attempts + (1 if conclusion.spends_attempt else 0),
        "error": asdict(conclusion.error) if conclusion.error else None,
        **(conclusion.shown or {}),
    }
    if queues:
        values["run_at"] = clock.after(conclusion.delay_seconds)
    rows = await move(tx, conclusion.happening, _held(claim), values=values, details=conclusion.details)
    await book(tx, claim, conclusion, spent)
    return job_of(rows[0]) if rows else None


async def book(tx: Transaction, claim: Claim, conclusion: Conclusion, spent: Spent) -> None:
    """Write the attempt's end and what it used, whatever became of the job.

    An attempt that was ended as lost had a worker that lives: it only was slow, or cut off. Its loss is no sign
    that the job kills workers, and is taken back; once for each job, which may be what stalls them.
    """
    outcome = await attempts.end(
        tx, claim.job_id, claim.claim_no, conclusion.outcome, error=conclusion.error, spent=spent
    )
    if outcome is AttemptOutcome.LOST and await attempts.has_returned(tx, claim.job_id, claim.claim_no):
        unfinished = jobs.c.state.in_((State.QUEUED, State.RUNNING))
        await tx.connection.execute(
            update(jobs).where(is_job(claim.job_id), unfinished, jobs.c.losses > 0).values(losses=jobs.c.losses - 1)
        )


#: By the losses before this one.
_PAUSE_AFTER_LOSS = case(
    {losses: after_loss(losses + 1, by_chance=LOSSES_OF_A_SUSPECT) for losses in range(MOST_LOSSES)},
    value=jobs.c.losses,
)
_WORKER_LOST = JobError(code="worker_lost", message="the worker fell silent; the job runs again", retryable=True)


#: A sweep that begins later than this after the decision to sweep was itself held up on its way.
_SWEEP_WITHIN_SECONDS = 1.0


async def lost_leases(tx: Transaction, *, as_of: datetime, limit: int) -> list[Row[Any]]:
    """Queue again the running jobs whose lease ran out; counted apart from attempts. Those that have lost too
    many workers are `dispatch.LOST_TOO_OFTEN`.

    Call only after a whole lease of uninterrupted contact with the database: see `gateway.dispatcher`.

    Args:
        as_of: when that contact was last sure, by the database's clock. A statement that reaches the database much
            later changes nothing: what kept it may have kept the renewals.
    """
    in_time = clock.now() < clock.after(_SWEEP_WITHIN_SECONDS, literal(as_of, clock.Instant()))
    expired = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.RUNNING,
            jobs.c.lease_until < clock.now(),
            jobs.c.losses < MOST_LOSSES - 1,
        )
        .order_by(jobs.c.lease_until)  # by id, the planner would rather read the whole history
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = await move(
        tx,
        Happening.LEASE_LOST,
        in_locked(jobs.c.id, expired),
        jobs.c.lease_until < clock.now(),
        in_time,
        values={"losses": jobs.c.losses + 1, "run_at": clock.after(_PAUSE_AFTER_LOSS)},
        details={"reason": "its worker fell silent"},
    )
    await attempts.end_open(tx, rows, AttemptOutcome.LOST, _WORKER_LOST)
    return rows
