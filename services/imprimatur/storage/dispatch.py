"""Which waiting jobs are put up for claiming, and what becomes of those that waited too long."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    Row,
    bindparam,
    case,
    exists,
    func,
    not_,
    select,
    text,
    true,
    update,
)

from imprimatur.job import MOST_LOSSES, WORKERS_LOST, AttemptOutcome, Happening, JobError, JobType, Priority, State
from imprimatur.storage import attempts, clock, gateways, landings, outbox, turns
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import FIRST_REISSUE_AFTER_SECONDS
from imprimatur.storage.locks import among, by_no_index, for_both, in_locked
from imprimatur.storage.schema import jobs, workers
from imprimatur.storage.transitions import move
from imprimatur.storage.workers import is_locked_out
from imprimatur.wire.messages import Released

#: Messages that may be lost are sent again in numbers like this, however little room there is; and so many jobs that
#: were asked for again take no room from others.
MOST_REISSUED_ASIDE = 64


class Work(IntEnum):
    """What one gateway does at a time, over all of them: the key of its advisory lock, an arbitrary constant."""

    RELEASING = 0x1A_9A_1A
    RECOVERING = 0x1A_9A_1B


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What the dispatcher has to reckon with."""

    released: int  #: put up for claiming, not claimed
    reissued: int  #: of these, asked for again: nobody took them although there were free slots
    running: int  #: claimed
    due: bool  #: whether anything is due and not put up; whose tenant may have no more under way, too
    slots: int  #: of live workers
    least_slots: int  #: of the live worker that has the fewest
    gateways: int  #: that live


@dataclass(frozen=True, kw_only=True)
class Idleness:
    """What recovery has to reckon with."""

    slots: int  #: of live workers, that were free when their worker was last heard of
    at: datetime  #: when it was looked at, by the database's clock


async def is_mine(tx: Transaction, work: Work) -> bool:
    """Take the lock until the end of this transaction. SQLite has one process, and so nobody else."""
    if not tx.on_postgresql:
        return True
    taken = await tx.connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": int(work)})
    return bool(taken.scalar_one())


async def backlog(reader: Reader, *, silent_seconds: float) -> Backlog:
    """Count what is released, due and free; workers silent for longer do not count. Uses partial indexes only."""
    row = (await reader.connection.execute(_counting(silent_seconds, FIRST_REISSUE_AFTER_SECONDS))).one()
    return Backlog(
        released=row[0],
        reissued=row[1],
        running=row[2],
        due=bool(row[3]),
        slots=row[4],
        least_slots=row[5],
        gateways=row[6],
    )


@lru_cache(16)
def _counting(silent_seconds: float, first_after_seconds: float) -> Executable:
    counted = select(func.count()).select_from(jobs)
    put_up = (jobs.c.state == State.QUEUED, jobs.c.released_at.is_not(None))
    again = func.count().filter(jobs.c.reissue_after_seconds > first_after_seconds)
    released = select(func.count().label("all"), again.label("again")).select_from(jobs).where(*put_up).subquery()
    running = counted.where(jobs.c.state == State.RUNNING)
    due = exists().where(jobs.c.state == State.QUEUED, jobs.c.released_at.is_(None), jobs.c.run_at <= clock.now())
    most, least = (func.coalesce(which(workers.c.slots), 0) for which in (func.sum, func.min))
    alive = select(most.label("all"), least.label("least")).where(_is_alive(silent_seconds)).subquery()
    numbers = (released.c.all, released.c.again, running.scalar_subquery(), due, alive.c.all, alive.c.least)
    return select(*numbers, gateways.live(silent_seconds=silent_seconds)).join_from(released, alive, true())


def _is_alive(silent_seconds: float) -> ColumnElement[bool]:
    return workers.c.seen_at > clock.after(-silent_seconds)


async def idleness(reader: Reader, *, silent_seconds: float) -> Idleness:
    """Whether anybody waits for work; workers silent for longer do not count."""
    row = (await reader.connection.execute(_counting_idle(silent_seconds))).one()
    return Idleness(slots=row[0], at=row[1])


@lru_cache(16)
def _counting_idle(silent_seconds: float) -> Executable:
    idle = func.coalesce(func.sum(workers.c.slots - workers.c.running), 0)
    return select(idle, clock.now()).where(_is_alive(silent_seconds))


async def release_due(tx: Transaction, *, room: int, most_of_a_tenant: int = 0, together: int = 1) -> int:
    """Put up to `room` due jobs up for claiming, up to `together` in one message; returns how many. Fewer: no other
    may start now, but for those that somebody has locked."""
    released: list[Row[Any]] = []
    locked: set[uuid.UUID] = set()
    more = True
    while more and len(released) < room:
        left = room - len(released)
        chosen = await turns.next_ones(tx, room=left + len(locked), most_of_a_tenant=most_of_a_tenant)
        ids = [job_id for job_id in chosen.ids if job_id not in locked][:left]
        put_up = await _put_up(tx, ids)
        missed = set(ids) - {row.id for row in put_up}
        more = bool(missed) or (chosen.more and bool(put_up))
        released += put_up
        locked |= missed
    await turns.served(tx, {row.tenant_id for row in released})
    await _request(tx, released, together=together)
    return len(released)


async def _put_up(tx: Transaction, chosen: Sequence[uuid.UUID]) -> list[Row[Any]]:
    """In this order; those that are locked are left out."""
    if not chosen:
        return []
    order = {job_id: place for place, job_id in enumerate(chosen)}
    numbers = {"ids": sorted(order), "reissue_after": FIRST_REISSUE_AFTER_SECONDS}
    released = (await tx.connection.execute(_RELEASE[tx.on_postgresql], numbers)).all()
    return sorted(released, key=lambda row: order[row.id])


def _releasing(*conditions: ColumnElement[bool], reissue_after: ColumnElement[float]) -> Executable:
    return (
        update(jobs)
        .where(by_no_index(jobs.c.state) == State.QUEUED, *conditions)
        .values(
            released_at=clock.now(),
            release_no=jobs.c.release_no + 1,
            reissue_after_seconds=reissue_after,
        )
        .returning(jobs.c.id, jobs.c.release_no, jobs.c.priority, jobs.c.tenant_id)
    )


def _releasing_due(on_postgresql: bool) -> Executable:
    unreleased = jobs.c.released_at.is_(None)
    chosen = select(jobs.c.id).where(among(jobs.c.id, on_postgresql=on_postgresql), unreleased).order_by(jobs.c.id)
    return _releasing(
        in_locked(jobs.c.id, chosen.with_for_update(skip_locked=True)),
        unreleased,
        reissue_after=bindparam("reissue_after", type_=Float()),
    )


_RELEASE = for_both(_releasing_due)


async def reissue(tx: Transaction, *, limit: int, together: int = 1) -> int:
    """Ask again for released jobs that nobody claimed in time; each time waits twice as long as the last."""
    again = (await tx.connection.execute(_reissuing(limit, FIRST_REISSUE_AFTER_SECONDS))).all()
    await _request(tx, sorted(again, key=lambda row: (row.priority, row.id)), together=together)
    return len(again)


@lru_cache(64)
def _reissuing(limit: int, first_after_seconds: float) -> Executable:
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
        (jobs.c.reissue_after_seconds < first_after_seconds, first_after_seconds),
        (jobs.c.reissue_after_seconds < 300.0, jobs.c.reissue_after_seconds * 2),
        else_=jobs.c.reissue_after_seconds,
    )
    return _releasing(in_locked(jobs.c.id, overdue), reissue_after=doubled)


async def withdraw_releases(tx: Transaction) -> int:
    """Take back every release: for a start with an empty broker, when no message of the past can be left."""
    changed = await tx.connection.execute(
        update(jobs)
        .where(jobs.c.state == State.QUEUED, jobs.c.released_at.is_not(None))
        .values(released_at=None)
        .returning(jobs.c.id)
    )
    return len(changed.all())


async def _request(tx: Transaction, released: Sequence[Row[Any]], *, together: int) -> None:
    asked = [(Released(job_id=row.id, release_no=row.release_no), Priority(row.priority)) for row in released]
    await outbox.add(tx, outbox.review_requested(asked, together=together))


# --- jobs that the machine gives up, without an attempt to say so --------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
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
    which=(
        jobs.c.state == State.RUNNING,
        jobs.c.lease_until < clock.now(),
        not_(is_locked_out()),
        jobs.c.losses >= MOST_LOSSES - 1,
    ),
    by_age=jobs.c.lease_until,
    error=JobError(
        code=WORKERS_LOST,
        message=f"{MOST_LOSSES} workers fell silent while they worked on it; it is not tried any more.",
        retryable=True,
    ),
)


#: Where somebody begins who walks through hopeless jobs by their age.
BEGINNING = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, kw_only=True)
class Owners:
    """Whose hopeless jobs were found; and behind which age to look next, or from the beginning again."""

    tenants: list[uuid.UUID]
    following: datetime


async def tenants_with(
    reader: Reader, hopeless: Hopeless, job_type: JobType, *, behind: datetime = BEGINNING, limit: int
) -> Owners:
    """The tenants of the `limit` oldest such jobs behind an age, and of those that are as old as the last of them.
    Whoever goes on from there comes to everybody, and no look takes longer for how many jobs cannot be given up."""
    found = await reader.connection.execute(_owning(hopeless, job_type, limit), {"behind": behind})
    rows = found.all()
    return Owners(
        tenants=sorted(row.tenant_id for row in rows), following=(rows[0].last if rows else None) or BEGINNING
    )


@lru_cache(16)
def _owning(hopeless: Hopeless, job_type: JobType, limit: int) -> Executable:
    behind = hopeless.by_age > bindparam("behind", type_=hopeless.by_age.type)
    which = (*hopeless.which, jobs.c.type == job_type, behind)
    # By age alone, as the index has them: with ids to tell equals apart, all of them would be read and sorted.
    some = select(hopeless.by_age.label("at")).where(*which).order_by(hopeless.by_age)
    last = select(some.offset(limit - 1).limit(1).cte().c.at).scalar_subquery()
    owners = select(jobs.c.tenant_id, last.label("last")).where(
        *which, hopeless.by_age <= func.coalesce(last, clock.now())
    )
    return owners.distinct()


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
    await landings.let_go(tx, rows)
    return rows
