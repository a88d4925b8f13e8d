"""The human queue: what waits for a person, who holds it, and what they decided."""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, insert, literal, or_, select, tuple_

from imprimatur.identity import new_id
from imprimatur.job import Happening, Job, State
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import Owner, job_of
from imprimatur.storage.schema import human_decisions, jobs
from imprimatur.storage.transitions import is_job, move


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A job that waits for a person."""

    job: Job
    input: bytes
    held_by: str
    held_until: datetime | None


@dataclass(frozen=True, kw_only=True)
class HumanDecision:
    """One line of the append-only record."""

    reviewer: str
    decision: str
    reason: str
    ai_recommendation: str
    overrides_ai: bool
    decided_at: datetime


def _waiting_of(row: Row[Any]) -> Waiting:
    return Waiting(job=job_of(row), input=row.input, held_by=row.held_by, held_until=row.held_until)


def _free_for(reviewer: str) -> ColumnElement[bool]:
    return or_(
        jobs.c.held_by == "",
        jobs.c.held_by == reviewer,
        jobs.c.held_until.is_(None),
        jobs.c.held_until < clock.now(),
    )


#: The order of the queue, and so the position in it that a page token carries.
Position = tuple[int, datetime, uuid.UUID]


def position_of(waiting: Waiting) -> Position:
    """Where in the queue it stands."""
    return (int(waiting.job.priority), waiting.job.created_at, waiting.job.id)


async def waiting(
    reader: Reader,
    owner: Owner,
    *,
    reviewer: str,
    unclaimed_only: bool,
    after: Position | None,
    limit: int,
) -> Sequence[Waiting]:
    """What waits, HIGH priority first, then the oldest."""
    order = (jobs.c.priority, jobs.c.created_at, jobs.c.id)
    statement = (
        select(*jobs.c).where(jobs.c.state == State.AWAITING_REVIEW, owner.condition()).order_by(*order).limit(limit)
    )
    if unclaimed_only:
        statement = statement.where(_free_for(reviewer))
    if after is not None:
        statement = statement.where(tuple_(*order) > tuple_(*_bound(after)))
    return [_waiting_of(row) for row in await reader.connection.execute(statement)]


def _bound(position: Position) -> tuple[ColumnElement[Any], ...]:
    columns = (jobs.c.priority, jobs.c.created_at, jobs.c.id)
    return tuple(literal(value, column.type) for value, column in zip(position, columns, strict=True))


async def hold(tx: Transaction, owner: Owner, job_id: uuid.UUID, *, reviewer: str, seconds: float) -> Waiting | None:
    """Take a waiting job for a while, or prolong one's own hold. None: not waiting, or another's."""
    rows = await move(
        tx,
        Happening.HELD_BY_PERSON,
        is_job(job_id),
        owner.condition(),
        _free_for(reviewer),
        values={"held_by": reviewer, "held_until": clock.after(seconds)},
        details={"reviewer": reviewer},
    )
    return _waiting_of(rows[0]) if rows else None


async def lock_waiting(tx: Transaction, owner: Owner, job_id: uuid.UUID, *, reviewer: str) -> Waiting | None:
    """A waiting job that `reviewer` may decide, locked until the transaction ends."""
    found = await tx.connection.execute(
        select(*jobs.c)
        .where(
            and_(is_job(job_id), owner.condition(), _free_for(reviewer)),
            jobs.c.state == State.AWAITING_REVIEW,
        )
        .with_for_update()
    )
    row = found.one_or_none()
    return _waiting_of(row) if row is not None else None


async def decide(tx: Transaction, waiting_job: Waiting, decision: HumanDecision, *, result: bytes) -> Job:
    """Record a person's decision on a job locked by `lock_waiting`, and finish the job with it."""
    await tx.connection.execute(
        insert(human_decisions).values(
            id=new_id(),
            job_id=waiting_job.job.id,
            tenant_id=waiting_job.job.tenant_id,
            reviewer=decision.reviewer,
            decision=decision.decision,
            reason=decision.reason,
            ai_recommendation=decision.ai_recommendation,
            overrides_ai=decision.overrides_ai,
            decided_at=decision.decided_at,
            job_type=waiting_job.job.type,
            subject_id=waiting_job.job.subject_id,
            input_hash=hashlib.sha256(waiting_job.input).digest(),
            submitted_by=waiting_job.job.user_id,
            policy_triggered=waiting_job.job.policy_triggered,
        )
    )
    rows = await move(
        tx,
        Happening.DECIDED,
        is_job(waiting_job.job.id),
        values={"decision": decision.decision, "result": result, "result_count": 1, "error": None},
        details={"reviewer": decision.reviewer, "decision": decision.decision, "reason": decision.reason},
    )
    return job_of(rows[0])


async def latest_decision(reader: Reader, job_id: uuid.UUID) -> HumanDecision | None:
    """The decision that stands, if a person made one."""
    row = (
        await reader.connection.execute(
            select(human_decisions)
            .where(human_decisions.c.job_id == job_id)
            .order_by(human_decisions.c.id.desc())
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        return None
    return HumanDecision(
        reviewer=row.reviewer,
        decision=row.decision,
        reason=row.reason,
        ai_recommendation=row.ai_recommendation,
        overrides_ai=row.overrides_ai,
        decided_at=row.decided_at,
    )


async def holder(reader: Reader, job_id: uuid.UUID) -> str:
    """Who holds a waiting job now; empty when nobody."""
    found = await reader.connection.execute(
        select(jobs.c.held_by).where(
            is_job(job_id), jobs.c.held_until > clock.now(), jobs.c.state == State.AWAITING_REVIEW
        )
    )
    return found.scalar_one_or_none() or ""
