"""What a worker does with a job: claim it, keep the lease, report; and how it loses it. The end: `conclusions`.

Every write is fenced: it needs state RUNNING and the claim's own `claim_no`. No row changed means that the job
was cancelled or taken over meanwhile; the result is discarded, but what it cost is booked on the attempt.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    Row,
    Uuid,
    and_,
    case,
    func,
    literal,
    not_,
    or_,
    select,
    update,
)

from imprimatur.errors import Locked
from imprimatur.job import (
    LOSSES_OF_A_SUSPECT,
    MOST_LOSSES,
    AttemptOutcome,
    Claim,
    Happening,
    JobError,
    JobType,
    Priority,
    State,
)
from imprimatur.retry import after_loss
from imprimatur.storage import attempts, clock, landings, outbox, workers
from imprimatur.storage.database import Transaction
from imprimatur.storage.locks import by_no_index, in_locked
from imprimatur.storage.many import Each, Many
from imprimatur.storage.schema import jobs
from imprimatur.storage.transitions import TOLD, Moves, is_job, move
from imprimatur.storage.workers import Worker
from imprimatur.wire.messages import JobChange

#: The id of a job, and the number of its claim.
Held: TypeAlias = tuple[uuid.UUID, int]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A claim that is asked for.

    `release_no` is the message's: a stale or duplicate one claims nothing. `claim_id` is chosen by the caller, and the
    same on every repetition.
    """

    job_id: uuid.UUID
    release_no: int
    claim_id: uuid.UUID


# --- taking ----------------------------------------------------------------------------------------------


async def claim(
    tx: Transaction, worker: Worker, wanted: Sequence[Wanted], *, lease_seconds: float
) -> list[Claim | Locked | None]:
    """Take released jobs, or find the claims again whose answers were lost. Waits for nobody.

    Returns:
        For each of `wanted`, in order; None for a job that is not (any more) there to be claimed, and Locked for one
        that others keep locked: they may be about to change it, and it may be there to be claimed after that.
    """
    given = [
        {
            "job_id": one.job_id,
            "release_no": one.release_no,
            "claim_id": one.claim_id,
            "worker_id": worker.id,
            "lease_seconds": lease_seconds,
            "details": {"worker": worker.name},
        }
        for one in sorted(wanted, key=lambda one: one.job_id)
    ]
    rows = await _CLAIM.execute(tx, given)
    if not tx.on_postgresql:
        await attempts.begin(tx, rows, worker.name)
    if missing := {one.claim_id for one in wanted} - {row.claim_id for row in rows}:
        rows += await _look_for(tx, [one for one in wanted if one.claim_id in missing])
    claimed = {row.claim_id: _claim_of(row) for row in rows if row.state == State.RUNNING}
    locked = {(row.id, row.release_no) for row in rows if row.state == State.QUEUED}
    return [
        Locked("others keep the job locked") if (one.job_id, one.release_no) in locked else claimed.get(one.claim_id)
        for one in wanted
    ]


async def _look_for(tx: Transaction, missing: Sequence[Wanted]) -> Sequence[Row[Any]]:
    """The jobs that were claimed before with these claims' ids; and those that may still be claimed, so that somebody
    must have kept them from being."""
    state = by_no_index(jobs.c.state)
    mine = and_(state == State.RUNNING, jobs.c.claim_id.in_(sorted(one.claim_id for one in missing)))
    these = jobs.c.id.in_(sorted({one.job_id for one in missing}))
    looking = select(*_CLAIMED).where(these, or_(mine, and_(state == State.QUEUED, *_CLAIMABLE)))
    found: Any = await tx.connection.execute(looking)
    return list(found.all())


#: What a worker needs of a job.
_CLAIMED = (
    *TOLD,
    *(jobs.c.claim_id, jobs.c.claim_no, jobs.c.input, jobs.c.attempts, jobs.c.max_attempts, jobs.c.timeout_seconds),
    *(jobs.c.deadline_at, jobs.c.deadline_seconds, jobs.c.updated_at, jobs.c.run_at, jobs.c.priority, jobs.c.losses),
    *(jobs.c.traceparent, jobs.c.appeal_of, jobs.c.evidence_since, jobs.c.release_no),
)
#: Besides its state.
_CLAIMABLE = (jobs.c.released_at.is_not(None), jobs.c.deadline_at > clock.now())


def _claiming(each: Each) -> tuple[Sequence[ColumnElement[bool]], Mapping[str, Any]]:
    conditions = (jobs.c.release_no == each["release_no"], *_CLAIMABLE)
    values = {
        "claim_no": jobs.c.claim_no + 1,
        "claim_id": each["claim_id"],
        "worker_id": each["worker_id"],
        "lease_until": clock.after(each["lease_seconds"]),
        "started_at": func.coalesce(jobs.c.started_at, clock.now(), type_=jobs.c.started_at.type),
    }
    return conditions, values


_CLAIM = Moves(
    Happening.CLAIMED,
    {"job_id": Uuid(), "release_no": Integer(), "claim_id": Uuid(), "worker_id": Uuid(), "lease_seconds": Float()},
    _claiming,
    returning=_CLAIMED,
    waits=False,
    also=lambda changed: attempts.beginning(changed, changed.c.said["worker"].as_string()),
)


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
        appeal_of=row.appeal_of,
        evidence_since=row.evidence_since,
    )


# --- keeping ---------------------------------------------------------------------------------------------


def _held(claim: Claim) -> ColumnElement[bool]:
    """The fence."""
    return and_(is_job(claim.job_id), by_no_index(jobs.c.state) == State.RUNNING, jobs.c.claim_no == claim.claim_no)


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What became of leases that were to be renewed, as (job id, claim_no) pairs; those in neither are lost.

    Attributes:
        locked_out: held and not renewed, since others keep their jobs locked just now.
    """

    renewed: frozenset[Held]
    locked_out: frozenset[Held]


async def renew(tx: Transaction, worker: Worker, held: Collection[Held], *, lease_seconds: float) -> Renewal:
    """Prolong the leases of these pairs, and record that their worker lives. Waits for nobody: a worker that cannot
    prolong a lease says so where nobody else writes, and for as long as a lease nothing of it is swept."""
    given = [
        {"job_id": job_id, "claim_no": claim_no, "lease_seconds": lease_seconds} for job_id, claim_no in sorted(held)
    ]
    renewed = frozenset((row.id, row.claim_no) for row in await _RENEW.execute(tx, given))
    missing = [one for one in given if (one["job_id"], one["claim_no"]) not in renewed]
    locked_out = frozenset((row.id, row.claim_no) for row in await _STILL_HELD.execute(tx, missing))
    locked_out_seconds = lease_seconds if locked_out else None
    await workers.seen(tx, worker, running=len(held), locked_out_seconds=locked_out_seconds)
    return Renewal(renewed=renewed, locked_out=locked_out)


_RENEW = Many(
    {"job_id": Uuid(), "claim_no": Integer(), "lease_seconds": Float()},
    lambda each: (
        update(jobs)
        .where(
            each.free(jobs.c.id, "job_id"),
            jobs.c.id == each["job_id"],
            jobs.c.claim_no == each["claim_no"],
            by_no_index(jobs.c.state) == State.RUNNING,
        )
        .values(lease_until=clock.after(each["lease_seconds"]))
        .returning(jobs.c.id, jobs.c.claim_no)
    ),
)
_STILL_HELD = Many(
    {"job_id": Uuid(), "claim_no": Integer()},
    lambda each: select(jobs.c.id, jobs.c.claim_no).where(
        jobs.c.id == each["job_id"],
        jobs.c.claim_no == each["claim_no"],
        by_no_index(jobs.c.state) == State.RUNNING,
    ),
)


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
    change = JobChange(job_id=claim.job_id, tenant_id=row.tenant_id, version=row.version, state=State.RUNNING)
    await outbox.add(tx, outbox.jobs_changed([change], kind="progress", outcome=False))
    return True


# --- losing ----------------------------------------------------------------------------------------------

#: By the losses before this one.
_PAUSE_AFTER_LOSS = case(
    {losses: after_loss(losses + 1, by_chance=LOSSES_OF_A_SUSPECT) for losses in range(MOST_LOSSES)},
    value=jobs.c.losses,
)
_WORKER_LOST = JobError(code="worker_lost", message="the worker fell silent; the job runs again", retryable=True)


#: A sweep that begins later than this after the decision to sweep was itself held up on its way.
_SWEEP_WITHIN_SECONDS = 1.0


@lru_cache(16)
def _expired(limit: int) -> ColumnElement[bool]:
    expired = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.RUNNING,
            jobs.c.lease_until < clock.now(),
            not_(workers.is_locked_out()),
            jobs.c.losses < MOST_LOSSES - 1,
        )
        .order_by(jobs.c.lease_until)  # by id, the planner would rather read the whole history
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return in_locked(jobs.c.id, expired)


async def lost_leases(tx: Transaction, *, as_of: datetime, limit: int) -> list[Row[Any]]:
    """Queue again the running jobs whose lease ran out; counted apart from attempts. Those that have lost too
    many workers are `dispatch.LOST_TOO_OFTEN`. Waits for nobody: who keeps a job locked is about to change it, or
    keeps its worker from renewing the lease, and a later sweep sees which.

    Call only after a whole lease of uninterrupted contact with the database: see `gateway.recovery`.

    Args:
        as_of: when that contact was last sure, by the database's clock. A statement that reaches the database much
            later changes nothing: what kept it may have kept the renewals.
    """
    in_time = clock.now() < clock.after(_SWEEP_WITHIN_SECONDS, literal(as_of, clock.Instant()))
    rows = await move(
        tx,
        Happening.LEASE_LOST,
        _expired(limit),
        jobs.c.lease_until < clock.now(),
        in_time,
        values={"losses": jobs.c.losses + 1, "run_at": clock.after(_PAUSE_AFTER_LOSS)},
        details={"reason": "its worker fell silent"},
    )
    await attempts.end_open(tx, rows, AttemptOutcome.LOST, _WORKER_LOST)
    await landings.let_go(tx, rows, waits=False)
    return rows
