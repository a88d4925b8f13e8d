"""Counts: what happened in a window of time, what is under way, and how long things take.

Windows are half open: `since` belongs to them, `until` does not. Only reads, and only by existing indexes.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Subquery,
    Text,
    and_,
    func,
    literal,
    literal_column,
    select,
    type_coerce,
    union_all,
)

from imprimatur.identity import first_id_at
from imprimatur.job import AttemptOutcome, JobType, Priority, State
from imprimatur.storage import clock
from imprimatur.storage.clock import Instant
from imprimatur.storage.database import Reader
from imprimatur.storage.jobs import Owner
from imprimatur.storage.schema import attempts, jobs

#: The most error codes that are listed.
MOST_ERRORS = 20
#: How many of the newest successful attempts the expected duration is taken from.
RECENT_ATTEMPTS = 100
_HOUR_MICROSECONDS = 3_600_000_000
#: Ids are made by the gateways' clocks, and the time of a job is the database's.
_MOST_SKEW_SECONDS = 3600.0

_DURATION = clock.seconds_between(jobs.c.finished_at, jobs.c.started_at)
_WORKED = jobs.c.state.in_([State.SUCCEEDED, State.FAILED])


@dataclass(frozen=True, kw_only=True)
class TypeStats:
    """What became of the jobs of one type. Durations run from the first start to the end, of the succeeded and
    failed jobs that were ever started; None without such jobs."""

    type: JobType
    created: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    awaiting_review: int = 0  #: created in the window, and waiting for a person now
    mean_seconds: float | None = None
    p95_seconds: float | None = None  #: by nearest rank
    approved: int = 0
    rejected: int = 0
    input_tokens: int = 0  #: of attempts that ended in the window, as the two below
    output_tokens: int = 0
    cost_micros: int = 0

    @property
    def success_rate(self) -> float:
        """succeeded / (succeeded + failed); 0 when neither."""
        return self.succeeded / (self.succeeded + self.failed) if self.succeeded + self.failed else 0.0


@dataclass(frozen=True, kw_only=True)
class ErrorCount:
    """How many attempts ended with an error."""

    code: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class HourStats:
    """What was accepted and what became terminal in the hour that begins at `hour` (UTC)."""

    hour: datetime
    created: int = 0
    finished: int = 0


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """What waits to start at one priority. `oldest_seconds`: since the longest-waiting due job was due."""

    priority: Priority
    due: int = 0
    scheduled: int = 0
    oldest_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """How many jobs are being worked on, and how many wait for a person."""

    running: int
    awaiting_review: int


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """Everything that is not terminal, over all tenants."""

    counts: Mapping[tuple[State, JobType, Priority], int]
    due: Mapping[tuple[JobType, Priority], int]  #: of the queued ones, those whose time has come
    oldest_due_seconds: Mapping[Priority, float]  #: priorities with nothing due are absent
    oldest_awaiting_seconds: float | None  #: since the first of those that wait for a person was referred


# --- a window of time ------------------------------------------------------------------------------------


async def type_stats(reader: Reader, owner: Owner, since: datetime, until: datetime) -> list[TypeStats]:
    """One line per type that has jobs accepted or finished, or attempts paid for, in the window; by type."""
    found: dict[str, dict[str, Any]] = {}
    for statement in (
        _created_by_type(_created(owner, since, until)),
        _finished_by_type(_during(jobs.c.finished_at, owner, since, until)),
        _p95_by_type(_during(jobs.c.finished_at, owner, since, until)),
        _cost_by_type(owner, since, until),
    ):
        for row in await reader.connection.execute(statement):
            found.setdefault(row.type, {}).update(row._mapping)
    return [TypeStats(**{**found[name], "type": JobType(name)}) for name in sorted(found)]


def _during(column: ColumnElement[Any], owner: Owner, since: datetime, until: datetime) -> ColumnElement[bool]:
    return and_(owner.condition(), column >= since, column < until)


def _created(owner: Owner, since: datetime, until: datetime) -> ColumnElement[bool]:
    """By the ids, which are as old as their jobs but for the gateways' clocks, and need no further index."""
    first, end = (
        first_id_at(since, moved_seconds=-_MOST_SKEW_SECONDS),
        first_id_at(until, moved_seconds=_MOST_SKEW_SECONDS),
    )
    return and_(_during(jobs.c.created_at, owner, since, until), jobs.c.id >= first, jobs.c.id < end)


def _created_by_type(created: ColumnElement[bool]) -> Any:
    awaiting = func.count().filter(jobs.c.state == State.AWAITING_REVIEW)
    return (
        select(jobs.c.type, func.count().label("created"), awaiting.label("awaiting_review"))
        .where(created)
        .group_by(jobs.c.type)
    )


def _finished_by_type(finished: ColumnElement[bool]) -> Any:
    def count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
        return func.count().filter(*conditions)

    succeeded = jobs.c.state == State.SUCCEEDED
    return (
        select(
            jobs.c.type,
            count(succeeded).label("succeeded"),
            count(jobs.c.state == State.FAILED).label("failed"),
            count(jobs.c.state == State.CANCELLED).label("cancelled"),
            count(succeeded, jobs.c.decision == "approved").label("approved"),
            count(succeeded, jobs.c.decision == "rejected").label("rejected"),
            func.avg(_DURATION, type_=Float).filter(_WORKED).label("mean_seconds"),
        )
        .where(finished)
        .group_by(jobs.c.type)
    )


def _p95_by_type(finished: ColumnElement[bool]) -> Any:
    """Nearest rank: of n durations in order, the one at ceil(0.95 n), reckoned in whole numbers."""
    ranked: Subquery = (
        select(
            jobs.c.type,
            _DURATION.label("seconds"),
            func.row_number().over(partition_by=jobs.c.type, order_by=_DURATION).label("rank"),
            func.count().over(partition_by=jobs.c.type).label("number"),
        )
        .where(finished, _WORKED, jobs.c.started_at.is_not(None))
        .subquery()
    )
    nearest = (ranked.c.number * 95 + 99) // 100
    return select(ranked.c.type, ranked.c.seconds.label("p95_seconds")).where(ranked.c.rank == nearest)


def _cost_by_type(owner: Owner, since: datetime, until: datetime) -> Any:
    def total(column: ColumnElement[int]) -> ColumnElement[int]:
        return func.sum(column).cast(BigInteger).label(column.key)

    return (
        select(jobs.c.type, *map(total, (attempts.c.input_tokens, attempts.c.output_tokens, attempts.c.cost_micros)))
        .join_from(attempts, jobs, attempts.c.job_id == jobs.c.id)
        .where(
            attempts.c.input_tokens > literal_column("0"),  # as the index over them spells it
            attempts.c.finished_at >= since,
            attempts.c.finished_at < until,
            owner.condition(),
        )
        .group_by(jobs.c.type)
    )


async def error_counts(reader: Reader, owner: Owner, since: datetime, until: datetime) -> list[ErrorCount]:
    """The errors that attempts ended with in the window, the most frequent first."""
    number = func.count().label("number")
    rows = await reader.connection.execute(
        select(attempts.c.error_code, number)
        .join_from(jobs, attempts, attempts.c.job_id == jobs.c.id)
        .where(
            owner.condition(),
            attempts.c.error_code.is_not(None),
            attempts.c.finished_at >= since,
            attempts.c.finished_at < until,
        )
        .group_by(attempts.c.error_code)
        .order_by(number.desc(), attempts.c.error_code)
        .limit(MOST_ERRORS)
    )
    return [ErrorCount(code=row.error_code, attempts=row.number) for row in rows]


async def hours(reader: Reader, owner: Owner, since: datetime, until: datetime) -> list[HourStats]:
    """Hour by hour, oldest first; hours in which nothing happened are left out."""
    found: dict[datetime, dict[str, int]] = {}
    for name, column, which in (
        ("created", jobs.c.created_at, _created(owner, since, until)),
        ("finished", jobs.c.finished_at, _during(jobs.c.finished_at, owner, since, until)),
    ):
        hour = _hour_of(reader, column).label("hour")
        rows = await reader.connection.execute(select(hour, func.count().label("number")).where(which).group_by("hour"))
        for row in rows:
            found.setdefault(row.hour, {})[name] = row.number
    return [HourStats(hour=hour, **found[hour]) for hour in sorted(found)]


def _hour_of(reader: Reader, column: ColumnElement[Any]) -> ColumnElement[datetime]:
    if reader.on_postgresql:
        return func.date_trunc("hour", column, "UTC", type_=Instant())
    microseconds = type_coerce(column, BigInteger)
    return type_coerce(microseconds - microseconds % _HOUR_MICROSECONDS, Instant())


# --- now -------------------------------------------------------------------------------------------------


async def queue_status(reader: Reader, owner: Owner) -> list[QueueStatus]:
    """What waits to start, one line for each priority, HIGH first."""
    due = jobs.c.run_at <= clock.now()
    rows = await reader.connection.execute(
        select(
            jobs.c.priority,
            func.count().filter(due).label("due"),
            func.count().filter(~due).label("scheduled"),
            _age(func.min(jobs.c.run_at).filter(due)).label("oldest_seconds"),
        )
        .where(jobs.c.state == State.QUEUED, owner.condition())
        .group_by(jobs.c.priority)
    )
    found = {row.priority: row._mapping for row in rows}
    return [QueueStatus(**{**found.get(int(priority), {}), "priority": priority}) for priority in sorted(Priority)]


async def under_way(reader: Reader, owner: Owner) -> UnderWay:
    """How much is being worked on and waits for a person."""
    count = select(func.count()).select_from(jobs).where(owner.condition())
    row = (
        await reader.connection.execute(
            select(
                count.where(jobs.c.state == State.RUNNING).scalar_subquery(),
                count.where(jobs.c.state == State.AWAITING_REVIEW).scalar_subquery(),
            )
        )
    ).one()
    return UnderWay(running=row[0], awaiting_review=row[1])


async def recent_mean_seconds(reader: Reader, tenant_id: uuid.UUID | None, job_type: JobType) -> float | None:
    """How long the newest successful attempts took on average, of one tenant or of all; None without any.

    The machine's time only: what waited for a person would say nothing about the next job.
    """
    newest = (
        select(clock.seconds_between(attempts.c.finished_at, attempts.c.started_at).label("seconds"))
        .join_from(attempts, jobs, attempts.c.job_id == jobs.c.id)
        .where(jobs.c.type == job_type, attempts.c.outcome == AttemptOutcome.SUCCEEDED)
        .order_by(jobs.c.id.desc())
        .limit(RECENT_ATTEMPTS)
    )
    if tenant_id is not None:
        newest = newest.where(jobs.c.tenant_id == tenant_id)
    mean = select(func.avg(newest.subquery().c.seconds, type_=Float))
    seconds: float | None = (await reader.connection.execute(mean)).scalar_one()
    return seconds


async def unfinished(reader: Reader) -> Unfinished:
    """Counts and ages over all tenants, for gauges."""
    by_state = [
        select(literal(state, Text).label("state"), jobs.c.type, jobs.c.priority, func.count().label("number"))
        .where(jobs.c.state == state)
        .group_by(jobs.c.type, jobs.c.priority)
        for state in (State.QUEUED, State.RUNNING, State.AWAITING_REVIEW)  # singly: each has its partial index
    ]
    counts = await reader.connection.execute(union_all(*by_state))
    due = await reader.connection.execute(
        select(
            jobs.c.type, jobs.c.priority, func.count().label("number"), _age(func.min(jobs.c.run_at)).label("seconds")
        )
        .where(jobs.c.state == State.QUEUED, jobs.c.run_at <= clock.now())
        .group_by(jobs.c.type, jobs.c.priority)
        .order_by("seconds")  # of each priority the oldest comes last
    )
    waiting = due.all()
    is_awaiting = jobs.c.state == State.AWAITING_REVIEW
    since = union_all(
        select(func.min(jobs.c.awaiting_since).label("since")).where(is_awaiting),
        # Referred by a process of the version before, which knows no such column.
        select(func.min(jobs.c.updated_at)).where(is_awaiting, jobs.c.awaiting_since.is_(None)),
    ).subquery()
    awaiting = select(_age(func.min(since.c.since)))
    return Unfinished(
        counts={(State(row.state), JobType(row.type), Priority(row.priority)): row.number for row in counts},
        due={(JobType(row.type), Priority(row.priority)): row.number for row in waiting},
        oldest_due_seconds={Priority(row.priority): row.seconds for row in waiting},
        oldest_awaiting_seconds=(await reader.connection.execute(awaiting)).scalar_one(),
    )


def _age(instant: ColumnElement[Any]) -> ColumnElement[float]:
    return clock.seconds_between(clock.now(), instant)
