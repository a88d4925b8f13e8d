"""The human queue as people look at it: what waits, in which order, and which part of it they want to see.

Most urgent first: what is overdue, then by priority, then what waits longest. Whether something is overdue depends on
the time and on the priority, so the queue is read as six stretches of one index (overdue HIGH, NORMAL, LOW, then the
others), each in the order of that index.
"""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, literal, not_, or_, select, tuple_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from imprimatur.human import DueHours
from imprimatur.job import Job, Priority, State
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import Filter, Owner, job_of, matching
from imprimatur.storage.schema import jobs

#: As the indexes over them spell it.
WAITS = jobs.c.state == State.AWAITING_REVIEW
IS_HELD = and_(jobs.c.held_until.is_not(None), jobs.c.held_until > clock.now())


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A job that waits for a person. `held_by` may be of a hold that has ended; `token` stands for the hold."""

    job: Job
    input: bytes
    held_by: str
    held_until: datetime | None
    token: uuid.UUID | None
    since: datetime
    categories: tuple[str, ...]


_NO_FILTER = Filter()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of what waits; an empty field does not filter. `held_by`: by whom now; `free_for`: not held by others."""

    jobs: Filter = _NO_FILTER
    priorities: frozenset[Priority] = frozenset()
    categories: frozenset[str] = frozenset()
    held_by: str = ""
    free_for: str = ""
    waiting_longer_seconds: float = 0.0
    overdue_only: bool = False
    has_images: bool | None = None
    is_appeal: bool | None = None

    def condition(self, reader: Reader, owner: Owner) -> ColumnElement[bool]:
        """As a condition on jobs, all but priorities and being overdue, which choose the stretches."""
        conditions = [WAITS, matching(reader, owner, self.jobs)]
        if self.categories:
            conditions.append(_any_of(reader, jobs.c.categories, self.categories))
        if self.held_by:
            conditions += [jobs.c.held_by == self.held_by, IS_HELD]
        if self.free_for:
            conditions.append(free_for(self.free_for))
        if self.waiting_longer_seconds:
            conditions.append(jobs.c.awaiting_since < clock.after(-self.waiting_longer_seconds))
        if self.has_images is not None:
            images = _has_key(reader, jobs.c.parameters, "images")
            conditions.append(images if self.has_images else not_(images))
        if self.is_appeal is not None:
            conditions.append(jobs.c.appeal_of.is_not(None) if self.is_appeal else jobs.c.appeal_of.is_(None))
        return and_(*conditions)


EVERYTHING = Wanted()


def waiting_of(row: Row[Any]) -> Waiting:
    """From a whole row of a job."""
    return Waiting(
        job=job_of(row),
        input=row.input,
        held_by=row.held_by,
        held_until=row.held_until,
        token=row.hold_token,
        since=row.awaiting_since or row.updated_at,
        categories=tuple(row.categories or ()),
    )


def free_for(reviewer: str) -> ColumnElement[bool]:
    """The condition for what nobody else holds."""
    return or_(jobs.c.held_by == reviewer, not_held())


def not_held() -> ColumnElement[bool]:
    """The condition for what nobody holds."""
    return or_(jobs.c.held_by == "", jobs.c.held_until.is_(None), jobs.c.held_until <= clock.now())


def not_barred(reader: Reader, reviewer: str) -> ColumnElement[bool]:
    """The condition for what is no appeal against this person's own decision."""
    if reader.on_postgresql:
        barred = type_coerce(jobs.c.appeal["barred"], JSONB).contains(literal([reviewer], JSONB))
        return not_(func.coalesce(barred, False))
    name = func.json_each(jobs.c.appeal, "$.barred").table_valued("value")
    return not_(select(name.c.value).where(name.c.value == reviewer).exists())


def _any_of(reader: Reader, column: ColumnElement[Any], words: Collection[str]) -> ColumnElement[bool]:
    if reader.on_postgresql:
        return or_(*(type_coerce(column, JSONB).contains(literal([word], JSONB)) for word in sorted(words)))
    found = func.json_each(column).table_valued("value")
    return select(found.c.value).where(found.c.value.in_(sorted(words))).exists()


def _has_key(reader: Reader, column: ColumnElement[Any], key: str) -> ColumnElement[bool]:
    if reader.on_postgresql:
        present: ColumnElement[bool] = type_coerce(column, JSONB).has_key(key)
        return present
    found = func.json_each(column).table_valued("key")
    return select(found.c.key).where(found.c.key == key).exists()


# --- the order -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a reader of the queue has come to: the job in the stretch of that number, as of the first page."""

    as_of: datetime
    stretch: int
    since: datetime
    job_id: uuid.UUID


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    number: int
    priority: Priority
    since: ColumnElement[bool] | None  #: which part of what has this priority; None: all of it


def _stretches(due: DueHours, wanted: Wanted, as_of: datetime) -> Iterator[_Stretch]:
    for number, (overdue, priority) in enumerate((late, one) for late in (True, False) for one in sorted(Priority)):
        hours = due.of(priority)
        unwanted = (wanted.priorities and priority not in wanted.priorities) or (wanted.overdue_only and not overdue)
        if unwanted or (overdue and not hours):
            continue
        before = literal(as_of - timedelta(hours=hours), clock.Instant())
        part = jobs.c.awaiting_since <= before if overdue else jobs.c.awaiting_since > before
        yield _Stretch(number=number, priority=priority, since=part if hours else None)


def due_at(waiting: Waiting, due: DueHours) -> datetime | None:
    """By when it is to be decided; None: there is no such time."""
    hours = due.of(waiting.job.priority)
    return waiting.since + timedelta(hours=hours) if hours else None


def place_of(waiting: Waiting, due: DueHours, as_of: datetime) -> Place:
    """Where it stands in the queue, as of then."""
    when = due_at(waiting, due)
    overdue = when is not None and when <= as_of
    number = sorted(Priority).index(waiting.job.priority) + (0 if overdue else len(Priority))
    return Place(as_of=as_of, stretch=number, since=waiting.since, job_id=waiting.job.id)


def _chosen(
    columns: Sequence[ColumnElement[Any]], condition: ColumnElement[bool], stretch: _Stretch, after: Place | None
) -> Select[Any]:
    order = (jobs.c.awaiting_since, jobs.c.id)
    found = select(*columns).where(condition, jobs.c.priority == stretch.priority).order_by(*order)
    if stretch.since is not None:
        found = found.where(stretch.since)
    if after is not None and after.stretch == stretch.number:
        behind = (literal(after.since, clock.Instant()), literal(after.job_id, jobs.c.id.type))
        found = found.where(tuple_(*order) > tuple_(*behind))
    return found


# --- looking ---------------------------------------------------------------------------------------------


async def page(
    reader: Reader,
    owner: Owner,
    wanted: Wanted = EVERYTHING,
    *,
    due: DueHours,
    as_of: datetime,
    after: Place | None = None,
    limit: int,
) -> list[Waiting]:
    """The next of what waits and matches, most urgent first.

    Args:
        as_of: what is overdue then; the same for all pages.
    """
    condition = wanted.condition(reader, owner)
    found: list[Waiting] = []
    for stretch in _stretches(due, wanted, as_of):
        if len(found) < limit and (after is None or stretch.number >= after.stretch):
            rows = _chosen(tuple(jobs.c), condition, stretch, after).limit(limit - len(found))
            found += [waiting_of(row) for row in await reader.connection.execute(rows)]
    return found


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What somebody would take: of what is wanted, what nobody holds, what this person may decide, and not these."""

    wanted: Wanted
    reviewer: str
    passed_over: frozenset[uuid.UUID] = frozenset()

    def condition(self, reader: Reader, owner: Owner) -> ColumnElement[bool]:
        """As a condition on jobs, as of `Wanted`."""
        found = and_(self.wanted.condition(reader, owner), not_held(), not_barred(reader, self.reviewer))
        return and_(found, jobs.c.id.not_in(sorted(self.passed_over))) if self.passed_over else found


async def next_free(tx: Transaction, owner: Owner, choice: Choice, due: DueHours) -> uuid.UUID | None:
    """The most urgent that can be taken; locked until the transaction ends. What others lock just now is passed
    over."""
    condition = choice.condition(tx, owner)
    for stretch in _stretches(due, choice.wanted, await clock.present(tx)):
        chosen = _chosen((jobs.c.id,), condition, stretch, None).limit(1).with_for_update(skip_locked=True)
        if (job_id := (await tx.connection.execute(chosen)).scalar_one_or_none()) is not None:
            return uuid.UUID(str(job_id))
    return None


async def count_free(reader: Reader, owner: Owner, choice: Choice, due: DueHours) -> int:
    """How many `next_free` could give, one after the other."""
    condition = choice.condition(reader, owner)
    total = 0
    for stretch in _stretches(due, choice.wanted, await clock.present(reader)):
        counted = select(func.count()).select_from(jobs).where(condition, jobs.c.priority == stretch.priority)
        if stretch.since is not None:
            counted = counted.where(stretch.since)
        total += (await reader.connection.execute(counted)).scalar_one()
    return total


async def held_with(reader: Reader, owner: Owner, *, reviewer: str, token: uuid.UUID) -> uuid.UUID | None:
    """The job that this person holds with this token now."""
    held = select(jobs.c.id).where(WAITS, owner.condition(), IS_HELD, jobs.c.held_by == reviewer)
    found = await reader.connection.execute(held.where(jobs.c.hold_token == token).limit(1))
    job_id = found.scalar_one_or_none()
    return uuid.UUID(str(job_id)) if job_id is not None else None


# --- watching --------------------------------------------------------------------------------------------


async def versions(reader: Reader, owner: Owner, wanted: Wanted, *, due: DueHours, limit: int) -> dict[uuid.UUID, int]:
    """The versions of what waits and matches now, most urgent first."""
    condition = wanted.condition(reader, owner)
    found: dict[uuid.UUID, int] = {}
    for stretch in _stretches(due, wanted, await clock.present(reader)):
        if len(found) < limit:
            rows = _chosen((jobs.c.id, jobs.c.version), condition, stretch, None).limit(limit - len(found))
            found |= {row.id: row.version for row in await reader.connection.execute(rows)}
    return found


async def those_of(
    reader: Reader, owner: Owner, wanted: Wanted, ids: Collection[uuid.UUID], *, due: DueHours
) -> dict[uuid.UUID, Waiting]:
    """Of these jobs those that wait and match now."""
    rows = await reader.connection.execute(
        select(*jobs.c).where(jobs.c.id.in_(sorted(ids)), wanted.condition(reader, owner))
    )
    now = await clock.present(reader)
    found = (waiting_of(row) for row in rows)
    return {one.job.id: one for one in found if _in_a_stretch(one, wanted, due, now)}


def _in_a_stretch(waiting: Waiting, wanted: Wanted, due: DueHours, now: datetime) -> bool:
    if wanted.priorities and waiting.job.priority not in wanted.priorities:
        return False
    return not wanted.overdue_only or place_of(waiting, due, now).stretch < len(Priority)


async def states_of(reader: Reader, owner: Owner, ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, State]:
    """The states of these jobs; of those that are gone, nothing."""
    found = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(sorted(ids)), owner.condition())
    return {row.id: State(row.state) for row in await reader.connection.execute(found)}
