"""Jobs as their callers know them: find, list, cancel, and their history."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    func,
    select,
)

from imprimatur.job import (
    AttemptOutcome,
    Happening,
    Job,
    JobError,
    JobEvent,
    JobType,
    Priority,
    State,
)
from imprimatur.storage import attempts, landings
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.locks import among, for_both
from imprimatur.storage.schema import job_events, jobs
from imprimatur.storage.transitions import is_job, move

#: The columns that make a `Job`; the task's input is read only where it is needed.
VISIBLE = tuple(jobs.c[field.name] for field in fields(Job))

#: As the index over them spells it.
UNFINISHED = jobs.c.state.in_([State.QUEUED, State.RUNNING, State.AWAITING_REVIEW])

#: A released job that nobody claims is asked for again after this long, then after twice as long, and so on.
FIRST_REISSUE_AFTER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who asks: every query about jobs is bound to a tenant, and with a user-bound key to a user."""

    tenant_id: uuid.UUID
    user_id: str = ""

    def condition(self) -> ColumnElement[bool]:
        """What limits a query to this owner's jobs."""
        mine = jobs.c.tenant_id == self.tenant_id
        return and_(mine, jobs.c.user_id == self.user_id) if self.user_id else mine

    def owns(self, job: Job) -> bool:
        """The same about a job that was read."""
        return job.tenant_id == self.tenant_id and self.user_id in ("", job.user_id)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which jobs; an empty field does not filter."""

    states: frozenset[State] = frozenset()
    types: frozenset[JobType] = frozenset()
    labels: Mapping[str, str] | None = None
    user_id: str = ""
    decisions: frozenset[str] = frozenset()
    triggers: frozenset[str] = frozenset()
    subject_id: str = ""
    created_from: datetime | None = None
    created_before: datetime | None = None

    @property
    def empty(self) -> bool:
        """Whether every job passes."""
        return not any(getattr(self, item.name) for item in fields(self))

    def passes(self, job: Job) -> bool:
        """Whether a job that was read passes; the same as `matching` says in SQL."""
        among = (
            (self.states, job.state),
            (self.types, job.type),
            (self.decisions, job.decision),
            (self.triggers, job.policy_triggered),
        )
        return (
            all(not allowed or value in allowed for allowed, value in among)
            and self.user_id in ("", job.user_id)
            and self.subject_id in ("", job.subject_id)
            and (self.created_from is None or job.created_at >= self.created_from)
            and (self.created_before is None or job.created_at < self.created_before)
            and all(job.labels.get(key) == value for key, value in (self.labels or {}).items())
        )


def job_of(row: Any) -> Job:
    """The domain's job from a row that has the VISIBLE columns."""
    seen = row._mapping
    values = {column.name: seen[column.name] for column in VISIBLE}
    values["type"] = JobType(values["type"])
    values["state"] = State(values["state"])
    values["priority"] = Priority(values["priority"])
    values["error"] = JobError(**values["error"]) if values["error"] else None
    return Job(**values)


# --- finding ---------------------------------------------------------------------------------------------


async def find(reader: Reader, owner: Owner, job_id: uuid.UUID) -> Job | None:
    """One job of the owner's."""
    row = (await reader.connection.execute(select(*VISIBLE).where(is_job(job_id), owner.condition()))).one_or_none()
    return job_of(row) if row is not None else None


_FIND_MANY = for_both(lambda on_postgresql: select(*VISIBLE).where(among(jobs.c.id, on_postgresql=on_postgresql)))
_VERSIONS = for_both(
    lambda on_postgresql: select(jobs.c.id, jobs.c.version).where(among(jobs.c.id, on_postgresql=on_postgresql))
)


async def find_many(reader: Reader, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Job]:
    """Jobs by id, whoever owns them: for watchers whose right to see them was checked before."""
    rows = await reader.connection.execute(_FIND_MANY[reader.on_postgresql], {"ids": list(ids)})
    return {row.id: job_of(row) for row in rows}


async def content_of(reader: Reader, owner: Owner, job_id: uuid.UUID) -> Row[Any] | None:
    """A job's task input with what a retry by hand needs of it."""
    return (await reader.connection.execute(select(*jobs.c).where(is_job(job_id), owner.condition()))).one_or_none()


async def list_newest(
    reader: Reader, owner: Owner, wanted: Filter, *, before: uuid.UUID | None, limit: int
) -> list[Job]:
    """Matching jobs, newest first, from just after the job `before` in that order."""
    statement = select(*VISIBLE).where(matching(reader, owner, wanted)).order_by(jobs.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(jobs.c.id < before)
    return [job_of(row) for row in await reader.connection.execute(statement)]


async def versions(reader: Reader, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    """The versions of jobs, whoever owns them: to see which have changed, for little."""
    rows = await reader.connection.execute(_VERSIONS[reader.on_postgresql], {"ids": list(ids)})
    return {row.id: row.version for row in rows}


async def count_open(reader: Reader, tenants: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    """How many jobs of each tenant are queued or running; tenants without any are left out."""
    open_now = jobs.c.state.in_([State.QUEUED, State.RUNNING])
    rows = await reader.connection.execute(
        select(jobs.c.tenant_id, func.count().label("number"))
        .where(jobs.c.tenant_id.in_(tenants), open_now)
        .group_by(jobs.c.tenant_id)
    )
    return {row.tenant_id: row.number for row in rows}


async def unfinished_versions(reader: Reader, owner: Owner, wanted: Filter, *, limit: int) -> dict[uuid.UUID, int]:
    """The versions of matching jobs that are not terminal, oldest first."""
    found = select(jobs.c.id, jobs.c.version).where(matching(reader, owner, wanted), UNFINISHED)
    rows = await reader.connection.execute(found.order_by(jobs.c.id).limit(limit))
    return {row.id: row.version for row in rows}


def matching(reader: Reader, owner: Owner, wanted: Filter) -> ColumnElement[bool]:
    """The condition for the owner's jobs that pass the filter."""
    conditions = [owner.condition()]
    for column, allowed in (
        (jobs.c.state, wanted.states),
        (jobs.c.type, wanted.types),
        (jobs.c.decision, wanted.decisions),
        (jobs.c.policy_triggered, wanted.triggers),
    ):
        if allowed:
            conditions.append(column.in_(sorted(allowed)))
    if wanted.user_id:
        conditions.append(jobs.c.user_id == wanted.user_id)
    if wanted.subject_id:
        conditions.append(jobs.c.subject_id == wanted.subject_id)
    if wanted.created_from is not None:
        conditions.append(jobs.c.created_at >= wanted.created_from)
    if wanted.created_before is not None:
        conditions.append(jobs.c.created_at < wanted.created_before)
    conditions += [_has_label(reader, key, value) for key, value in (wanted.labels or {}).items()]
    return and_(*conditions)


def _has_label(reader: Reader, key: str, value: str) -> ColumnElement[bool]:
    if reader.on_postgresql:
        return jobs.c.labels.op("->>")(key) == value
    # Not json_extract: its paths know no escapes before SQLite 3.45, and so cannot name every key.
    label = func.json_each(jobs.c.labels).table_valued("key", "value")
    return select(label.c.key).where(label.c.key == key, label.c.value == value).exists()


async def history(reader: Reader, job_id: uuid.UUID, *, after_version: int, limit: int) -> list[JobEvent]:
    """A job's events, oldest first."""
    rows = await reader.connection.execute(
        select(job_events)
        .where(job_events.c.job_id == job_id, job_events.c.version > after_version)
        .order_by(job_events.c.version)
        .limit(limit)
    )
    return [
        JobEvent(version=row.version, kind=row.kind, state=State(row.state), at=row.at, details=row.details)
        for row in rows
    ]


async def cancel(tx: Transaction, owner: Owner, job_id: uuid.UUID, *, reason: str) -> Job | None:
    """Cancel a job that is not finished; None when there is none to cancel."""
    details = {"reason": reason} if reason else {}
    rows = await move(tx, Happening.CANCELLED, is_job(job_id), owner.condition(), details=details)
    await attempts.end_open(tx, rows, AttemptOutcome.CANCELLED)
    await landings.let_go(tx, rows)
    return job_of(rows[0]) if rows else None
