"""Jobs as their callers know them: accept, find, list, cancel, and their history."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from imprimatur.job import (
    SUBMITTED,
    AttemptOutcome,
    Happening,
    Job,
    JobError,
    JobEvent,
    JobType,
    NewJob,
    Priority,
    State,
)
from imprimatur.storage import assets, attempts, clock, outbox
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.many import Each, Many
from imprimatur.storage.schema import job_events, jobs, tenants
from imprimatur.storage.transitions import is_job, move, record
from imprimatur.wire.messages import ReviewRequested

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
class Submitted:
    """What became of one submission. `same_content` is False when its request id stands for other content;
    `released`: it was put up for claiming just now."""

    job: Job
    created: bool
    same_content: bool = True
    released: bool = False


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


# --- accepting -------------------------------------------------------------------------------------------


async def submit(tx: Transaction, new_jobs: Sequence[NewJob], *, release_at_once: int) -> list[Submitted]:
    """Accept jobs together. Idempotent by (tenant, request id), and by the job id for its caller's own repetition
    after a lost answer.

    Args:
        release_at_once: how many due jobs may be put up for claiming in this same transaction; the rest
            wait for the dispatcher.

    Returns:
        One answer per job, in order.
    """
    now = await clock.present(tx)
    fast = _fast_ones(new_jobs, now, release_at_once)
    # Batches that name the same requests wait for each other in one order, so that none waits in a circle.
    in_order = sorted(new_jobs, key=lambda new: (new.tenant_id, new.request_id or "", new.id))
    written = await _INSERT.execute(tx, [_row_of(new, now, fast=new.id in fast) for new in in_order])
    inserted = sorted(written, key=lambda row: row.id)
    released = {row.id for row in inserted if row.released_at is not None}
    await record(tx, inserted, kind=SUBMITTED, outcome=False, details={})
    await outbox.add(
        tx,
        [
            outbox.review_requested(ReviewRequested(job_id=row.id, release_no=1), Priority(row.priority))
            for row in inserted
            if row.id in released
        ],
    )
    created = {row.id for row in inserted}
    await assets.link(tx, [new for new in new_jobs if new.asset_ids and new.id in created])
    known = await _known(tx, [new for new in new_jobs if new.id not in created])
    return [
        Submitted(job=_accepted(new, now), created=True, released=new.id in released)
        if new.id in created
        else _again(new, known)
        for new in new_jobs
    ]


def _again(new: NewJob, known: Mapping[Any, tuple[Job, bytes]]) -> Submitted:
    if new.id in known:
        return Submitted(job=known[new.id][0], created=True)
    return again(new, *known[new.tenant_id, new.request_id])


def again(new: NewJob, job: Job, content_hash: bytes) -> Submitted:
    """What a submission comes to whose request id stands for `job` already."""
    return Submitted(job=job, created=False, same_content=content_hash == new.content_hash)


def _fast_ones(new_jobs: Sequence[NewJob], now: datetime, most: int) -> set[uuid.UUID]:
    due = [new.id for new in new_jobs if new.run_at is None or new.run_at <= now]
    return set(due[: max(most, 0)])


#: Columns in which every new job begins alike.
FRESH: Mapping[str, Any] = {
    "state": State.QUEUED,
    "version": 1,
    "attempts": 0,
    "losses": 0,
    "release_no": 0,
    "reissue_after_seconds": FIRST_REISSUE_AFTER_SECONDS,
    "claim_no": 0,
    "progress_percent": 0,
    "progress_stage": "",
    "progress_message": "",
    "decision": "",
    "policy_triggered": "",
    "result_count": 0,
    "held_by": "",
}

#: What a submission says of its job, as it is.
_SAID = (
    *("id", "tenant_id", "type", "user_id", "request_id", "content_hash", "subject_id", "labels", "parameters"),
    *("input", "callback_url", "max_attempts", "timeout_seconds", "deadline_seconds", "retry_of"),
    *("estimated_seconds", "traceparent"),
)
_GIVEN = {
    name: jobs.c[name].type for name in (*_SAID, "priority", "run_at", "deadline_at", "released_at", "created_at")
}


def _insert(each: Each) -> Executable:
    limited = each["tenant_id"].in_(select(tenants.c.id).where(tenants.c.running_jobs > 0))
    columns: dict[str, ColumnElement[Any]] = {
        **{name: literal(value, jobs.c[name].type) for name, value in FRESH.items()},
        **{name: each[name] for name in _GIVEN},
        # Whoever has a limit waits for the dispatcher, which counts.
        "released_at": case((limited, null()), else_=each["released_at"]),
        "release_no": case((or_(limited, each["released_at"].is_(None)), 0), else_=1),
        "updated_at": each["created_at"],
    }
    inserting: Any = (postgresql if each.on_postgresql else sqlite).insert(jobs)
    chosen = select(*columns.values()).where(true())  # without WHERE, SQLite takes ON for a join's
    statement: Executable = (
        inserting.from_select(list(columns), chosen)
        .on_conflict_do_nothing()
        .returning(jobs.c.id, jobs.c.tenant_id, jobs.c.version, jobs.c.state, jobs.c.priority, jobs.c.released_at)
    )
    return statement


_INSERT = Many(_GIVEN, _insert)


def _row_of(new: NewJob, now: datetime, *, fast: bool) -> dict[str, Any]:
    run_at = max(now, new.run_at or now)
    return {
        **{name: getattr(new, name) for name in _SAID},
        "priority": int(new.priority),
        "run_at": run_at,
        "deadline_at": run_at + timedelta(seconds=new.deadline_seconds),
        "released_at": now if fast else None,
        "created_at": now,
    }


def _accepted(new: NewJob, now: datetime) -> Job:
    """The job as it has just been stored; reading it back would cost as much as writing it."""
    run_at = max(now, new.run_at or now)
    return Job(
        **{name: getattr(new, name) for name in _SAID_AND_SEEN},
        **_FRESH_AND_SEEN,
        priority=new.priority,
        error=None,
        result=None,
        appeal_of=None,
        superseded_by=None,
        created_at=now,
        updated_at=now,
        started_at=None,
        finished_at=None,
        run_at=run_at,
        deadline_at=run_at + timedelta(seconds=new.deadline_seconds),
    )


_SEEN = frozenset(field.name for field in fields(Job))
_SAID_AND_SEEN = tuple(name for name in _SAID if name in _SEEN)
_FRESH_AND_SEEN = {name: value for name, value in FRESH.items() if name in _SEEN}


async def _known(tx: Transaction, refused: Sequence[NewJob]) -> dict[Any, tuple[Job, bytes]]:
    """The jobs that stand in the way, by id and by (tenant, request id), with their content's hash."""
    if not refused:
        return {}
    same_request = and_(
        jobs.c.tenant_id.in_({new.tenant_id for new in refused}),
        jobs.c.request_id.in_({new.request_id for new in refused}),
    )
    same_id = jobs.c.id.in_({new.id for new in refused})
    found: dict[Any, tuple[Job, bytes]] = {}
    for row in await tx.connection.execute(select(*VISIBLE, jobs.c.content_hash).where(or_(same_request, same_id))):
        found[row.id] = found[row.tenant_id, row.request_id] = job_of(row), row.content_hash
    return found


async def accepted_before(
    reader: Reader, requests: Collection[tuple[uuid.UUID, str]]
) -> dict[tuple[uuid.UUID, str], tuple[Job, bytes]]:
    """The jobs that (tenant, request id) pairs stand for already, with their content's hash."""
    tenants, ids = {tenant_id for tenant_id, _ in requests}, {request_id for _, request_id in requests}
    rows = await reader.connection.execute(
        select(*VISIBLE, jobs.c.content_hash).where(jobs.c.tenant_id.in_(tenants), jobs.c.request_id.in_(ids))
    )
    found = {(row.tenant_id, row.request_id): (job_of(row), row.content_hash) for row in rows}
    return {request: found[request] for request in requests if request in found}


async def count_open(reader: Reader, tenants: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    """How many jobs of each tenant are queued or running; tenants without any are left out."""
    open_now = jobs.c.state.in_([State.QUEUED, State.RUNNING])
    rows = await reader.connection.execute(
        select(jobs.c.tenant_id, func.count().label("number"))
        .where(jobs.c.tenant_id.in_(tenants), open_now)
        .group_by(jobs.c.tenant_id)
    )
    return {row.tenant_id: row.number for row in rows}


# --- finding ---------------------------------------------------------------------------------------------


async def find(reader: Reader, owner: Owner, job_id: uuid.UUID) -> Job | None:
    """One job of the owner's."""
    row = (await reader.connection.execute(select(*VISIBLE).where(is_job(job_id), owner.condition()))).one_or_none()
    return job_of(row) if row is not None else None


#: Ids as one array where there are arrays: of an IN list each length would be a statement of its own, to be put
#: together and prepared anew. By whether it is PostgreSQL.
_AMONG_IDS: Mapping[bool, ColumnElement[bool]] = {
    True: jobs.c.id == any_(bindparam("ids", type_=postgresql.ARRAY(Uuid))),
    False: jobs.c.id.in_(bindparam("ids", expanding=True)),
}
_FIND_MANY = {dialect: select(*VISIBLE).where(among) for dialect, among in _AMONG_IDS.items()}
_VERSIONS = {dialect: select(jobs.c.id, jobs.c.version).where(among) for dialect, among in _AMONG_IDS.items()}


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
    return job_of(rows[0]) if rows else None
