"""Which waiting jobs are put up for claiming, and what becomes of those that waited too long."""

import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, case, exists, func, select, text, update

from imprimatur.job import MOST_LOSSES, WORKERS_LOST, AttemptOutcome, Happening, JobError, JobType, Priority, State
from imprimatur.storage import attempts, clock, outbox, turns
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import FIRST_REISSUE_AFTER_SECONDS
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import jobs, workers
from imprimatur.storage.transitions import move
from imprimatur.wire.messages import ReviewRequested

#: The advisory lock that lets one dispatcher work at a time, over all gateways. An arbitrary constant.
_DISPATCHER_LOCK = 0x1A_9A_1A


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What the dispatcher has to reckon with."""

    released: int  #: put up for claiming, not claimed
    reissued: int  #: of these, asked for again: nobody took them although there were free slots
    running: int  #: claimed
    due: bool  #: whether anything is due and not put up
    slots: int  #: of live workers
    at: datetime  #: when it was looked at, by the database's clock


async def become_dispatcher(tx: Transaction) -> bool:
    """Take the lock until the end of this transaction. SQLite has one process, and so one dispatcher."""
    if not tx.on_postgresql:
        return True
    taken = await tx.connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _DISPATCHER_LOCK})
    return bool(taken.scalar_one())


async def backlog(reader: Reader, *, silent_seconds: float) -> Backlog:
    """Count what is released, due and free; workers silent for longer do not count. Uses partial indexes only."""
    counted = select(func.count()).select_from(jobs)
    put_up = (jobs.c.state == State.QUEUED, jobs.c.released_at.is_not(None))
    again = func.count().filter(jobs.c.reissue_after_seconds > FIRST_REISSUE_AFTER_SECONDS)
    released = select(func.count().label("all"), again.label("again")).select_from(jobs).where(*put_up).subquery()
    running = counted.where(jobs.c.state == State.RUNNING)
    due = exists().where(jobs.c.state == State.QUEUED, jobs.c.released_at.is_(None), jobs.c.run_at <= clock.now())
    slots = select(func.coalesce(func.sum(workers.c.slots), 0)).where(workers.c.seen_at > clock.after(-silent_seconds))
    row = (
        await reader.connection.execute(
            select(
                released.c.all,
                released.c.again,
                running.scalar_subquery(),
                due,
                slots.scalar_subquery(),
                clock.now(),
            )
        )
    ).one()
    return Backlog(released=row[0], reissued=row[1], running=row[2], due=bool(row[3]), slots=row[4], at=row[5])


async def idle_slots(reader: Reader, *, silent_seconds: float) -> int:
    """Slots of live workers that were free when their worker was last heard of."""
    idle = func.coalesce(func.sum(workers.c.slots - workers.c.running), 0)
    heard_of = workers.c.seen_at > clock.after(-silent_seconds)
    found: int = (await reader.connection.execute(select(idle).where(heard_of))).scalar_one()
    return found


async def release_due(tx: Transaction, *, room: int, most_of_a_tenant: int = 0) -> int:
    """Put up to `room` due jobs up for claiming; returns how many."""
    if room <= 0:
        return 0
    order = {
        job_id: place
        for place, job_id in enumerate(await turns.next_ones(tx, room=room, most_of_a_tenant=most_of_a_tenant))
    }
    chosen = select(jobs.c.id).where(jobs.c.id.in_(sorted(order)), jobs.c.released_at.is_(None)).order_by(jobs.c.id)
    return await _release(
        tx,
        in_locked(jobs.c.id, chosen.with_for_update(skip_locked=True)),
        jobs.c.released_at.is_(None),
        reissue_after=FIRST_REISSUE_AFTER_SECONDS,
        place=lambda row: order[row.id],
    )


async def reissue(tx: Transaction, *, limit: int) -> int:
    """Ask again for released jobs that nobody claimed in time; each time waits twice as long as the last."""
    overdue = (
        select(jobs.c.id)
        .where(
            jobs.c.state == State.QUEUED,
            jobs.c.released_at.is_not(None),
            clock.after(jobs.c.reissue_after_seconds, jobs.c.released_at) < clock.now(),
        )
        .order_by(jobs.c.released_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    doubled = case(
        # Never less, or the next message would make this one stale before a worker can act on it.
        (jobs.c.reissue_after_seconds < FIRST_REISSUE_AFTER_SECONDS, FIRST_REISSUE_AFTER_SECONDS),
        (jobs.c.reissue_after_seconds < 300.0, jobs.c.reissue_after_seconds * 2),
        else_=jobs.c.reissue_after_seconds,
    )
    return await _release(
        tx, in_locked(jobs.c.id, overdue), reissue_after=doubled, place=lambda row: (row.priority, row.id)
    )


async def withdraw_releases(tx: Transaction) -> int:
    """Take back every release: for a start with an empty broker, when no message of the past can be left."""
    changed = await tx.connection.execute(
        update(jobs)
        .where(jobs.c.state == State.QUEUED, jobs.c.released_at.is_not(None))
        .values(released_at=None)
        .returning(jobs.c.id)
    )
    return len(changed.all())


async def _release(tx: Transaction, *conditions: Any, reissue_after: Any, place: Callable[[Row[Any]], Any]) -> int:
    """`place` orders the messages."""
    rows = (
        await tx.connection.execute(
            update(jobs)
            .where(jobs.c.state == State.QUEUED, *conditions)
            .values(
                released_at=clock.now(),
                release_no=jobs.c.release_no + 1,
                reissue_after_seconds=reissue_after,
            )
            .returning(jobs.c.id, jobs.c.release_no, jobs.c.priority)
        )
    ).all()
    requests = [
        outbox.review_requested(ReviewRequested(job_id=row.id, release_no=row.release_no), Priority(row.priority))
        for row in sorted(rows, key=place)
    ]
    await outbox.add(tx, requests)
    return len(rows)


# --- jobs that the machine gives up, without an attempt to say so --------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hopeless:
    """Jobs that are not tried any more, and why."""

    which: tuple[ColumnElement[bool], ...]
    by_age: ColumnElement[Any]  #: an indexed column: by id, the planner would rather read the whole history
    error: JobError


OVERDUE = Hopeless(
    which=(jobs.c.state == State.QUEUED, jobs.c.deadline_at <= clock.now()),
    by_age=jobs.c.deadline_at,
    error=JobError(
        code="deadline_passed",
        message="The job's deadline passed before it could be done; submit it again with a later deadline.",
        retryable=True,
    ),
)
LOST_TOO_OFTEN = Hopeless(
    which=(jobs.c.state == State.RUNNING, jobs.c.lease_until < clock.now(), jobs.c.losses >= MOST_LOSSES - 1),
    by_age=jobs.c.lease_until,
    error=JobError(
        code=WORKERS_LOST,
        message=f"{MOST_LOSSES} workers fell silent while they worked on it; it is not tried any more.",
        retryable=True,
    ),
)


async def tenants_with(reader: Reader, hopeless: Hopeless, job_type: JobType, *, limit: int) -> list[uuid.UUID]:
    """The tenants of the `limit` oldest such jobs."""
    found = await reader.connection.execute(
        select(jobs.c.tenant_id).where(*hopeless.which, jobs.c.type == job_type).order_by(hopeless.by_age).limit(limit)
    )
    return sorted(set(found.scalars()))


async def give_up(
    tx: Transaction,
    hopeless: Hopeless,
    *,
    tenant_id: uuid.UUID,
    job_type: JobType,
    happening: Happening,
    shown: dict[str, Any],
    limit: int,
) -> list[Row[Any]]:
    """Let `happening` happen to such jobs of one tenant; `shown` sets columns."""
    some = (
        select(jobs.c.id)
        .where(*hopeless.which, jobs.c.type == job_type, jobs.c.tenant_id == tenant_id)
        .order_by(hopeless.by_age)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = await move(
        tx,
        happening,
        in_locked(jobs.c.id, some),
        *hopeless.which,
        values={"error": asdict(hopeless.error), **shown},
        details={"error": hopeless.error.code, "error_message": hopeless.error.message},
    )
    await attempts.end_open(tx, rows, AttemptOutcome.LOST, hopeless.error)
    return rows
