"""Jobs as their callers know them: accept, find, list, cancel, and their history."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    Text,
    Uuid,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from imprimatur.errors import Contended
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
from imprimatur.storage import assets, attempts, clock, evidence, keys, outbox
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.keys import Ruling, Verdict
from imprimatur.storage.locks import among, for_both
from imprimatur.storage.many import Each, Many
from imprimatur.storage.schema import job_events, jobs, tenants
from imprimatur.storage.transitions import TOLD, is_job, move, record
from imprimatur.wire.messages import Released

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
    """What became of one submission.

    Attributes:
        job: made, or found; of a refused one the job that stands in its way.
        created: it was accepted, as this job.
        same_content: False when its request id stands for other content.
        released: it was put up for claiming just now.
        superseded: the type of the job whose place it took just now.
        refused: why its concurrency key, or its revision, does not let it in.
    """

    job: Job
    created: bool
    same_content: bool = True
    released: bool = False
    superseded: JobType | None = None
    refused: Ruling | None = None


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


async def submit(
    tx: Transaction, new_jobs: Sequence[NewJob], *, release_at_once: int, together: int = 1
) -> list[Submitted]:
    """Accept jobs together. Idempotent by (tenant, request id), and by the job id for its caller's own repetition
    after a lost answer. Of the jobs with one concurrency key, each is settled before the next.

    Args:
        release_at_once: how many due jobs may be put up for claiming in this same transaction; the rest
            wait for the dispatcher.
        together: how many of those reviewers may be asked for in one message.

    Returns:
        One answer per job, in order.

    Raises:
        Contended: others wanted the same keys meanwhile. Nothing of it may be committed; it may be done again at once.
    """
    now = await clock.present(tx)
    fast = _Fast(ids=_due(new_jobs, now, release_at_once), together=together)
    answers = await _enter(tx, new_jobs, now, fast)
    while rest := sorted((new for new in new_jobs if new.id not in answers), key=lambda new: new.id):
        known = await _known(tx, rest)
        answers |= {new.id: _again(new, known) for new in rest if new.id in known or _request_of(new) in known}
        if wanting := [new for new in rest if new.id not in answers]:
            answers |= await _settle(tx, wanting, answers, now, fast)
    return [answers[new.id] for new in new_jobs]


async def _enter(
    tx: Transaction,
    new_jobs: Sequence[NewJob],
    now: datetime,
    fast: "_Fast",
    *,
    in_place_of: Mapping[uuid.UUID, uuid.UUID] | None = None,
) -> dict[uuid.UUID, Submitted]:
    """Store those of the jobs whose ids, requests and keys are free; `in_place_of`: the ids of those they supersede."""
    supersedes = in_place_of or {}
    rows = [
        _row_of(new, now, fast=new.id in fast.ids, supersedes=supersedes.get(new.id))
        for new in sorted(new_jobs, key=_place_in_line)
    ]
    inserted = sorted(await _INSERT.execute(tx, rows), key=lambda row: row.id)
    released = {row.id for row in inserted if row.released_at is not None}
    await record(tx, inserted, kind=SUBMITTED, outcome=False, details=_link if supersedes else {})
    asked = [(Released(job_id=row.id, release_no=1), Priority(row.priority)) for row in inserted if row.id in released]
    await outbox.add(tx, outbox.review_requested(asked, together=fast.together))
    entered = {row.id for row in inserted}
    made = [new for new in new_jobs if new.id in entered]
    await keys.require_in_order(tx, made)
    await assets.link(tx, [new for new in made if new.asset_ids])
    return {
        new.id: Submitted(
            job=_accepted(new, now, supersedes=supersedes.get(new.id)),
            created=True,
            released=new.id in released,
        )
        for new in made
    }


def _place_in_line(new: NewJob) -> tuple[Any, ...]:
    """Batches with the same keys or requests wait for each other in one order, so that none waits in a circle."""
    return new.tenant_id, new.concurrency_key or "", "" if new.concurrency_key else new.request_id or "", new.id


def _link(row: Row[Any]) -> dict[str, str]:
    return {"supersedes": str(row.supersedes)}


async def _settle(
    tx: Transaction,
    wanting: Sequence[NewJob],
    answers: Mapping[uuid.UUID, Submitted],
    now: datetime,
    fast: "_Fast",
) -> dict[uuid.UUID, Submitted]:
    """Answers for the next of each key among jobs that are unknown and did not enter; and, where they take the places
    of others among `answers`, new answers for those."""
    rulings = await keys.rule(tx, wanting)
    entering = [new for new in wanting if new.id in rulings and rulings[new.id].verdict is Verdict.SUPERSEDES]
    in_place_of = {new.id: rulings[new.id].job_id for new in entering}
    ended = {row.id: row for row in await keys.supersede(tx, {old: new for new, old in in_place_of.items()})}
    entered = await _enter(tx, entering, now, fast, in_place_of=in_place_of) if entering else {}
    if len(entered) < len(entering):
        raise Contended("a request was accepted meanwhile")
    settled = {
        new_id: replace(one, superseded=JobType(ended[in_place_of[new_id]].type)) for new_id, one in entered.items()
    }
    settled |= {
        new_id: replace(one, job=job_of(ended[one.job.id])) for new_id, one in answers.items() if one.job.id in ended
    }
    return settled | await _stand(tx, [new for new in wanting if new.id in rulings.keys() - entered.keys()], rulings)


async def _stand(
    tx: Transaction, unwanted: Sequence[NewJob], rulings: Mapping[uuid.UUID, Ruling]
) -> dict[uuid.UUID, Submitted]:
    """Answer those in whose way another job stands with that job."""
    if not unwanted:
        return {}
    standing = await find_many(tx, {rulings[new.id].job_id for new in unwanted})
    answered: dict[keys.Request, uuid.UUID] = {}
    settled: dict[uuid.UUID, Submitted] = {}
    for new in unwanted:
        ruling = rulings[new.id]
        job = standing[ruling.job_id]
        if ruling.verdict is not Verdict.SAME:
            settled[new.id] = Submitted(job=job, created=False, refused=ruling)
        elif new.request_id is None or answered.setdefault((new.tenant_id, new.request_id), job.id) == job.id:
            settled[new.id] = Submitted(job=job, created=False)
    await keys.remember(tx, answered)
    return settled


def _request_of(new: NewJob) -> tuple[uuid.UUID, str | None]:
    return new.tenant_id, new.request_id


def _again(new: NewJob, known: Mapping[Any, tuple[Job, bytes]]) -> Submitted:
    if new.id in known:
        return Submitted(job=known[new.id][0], created=True)
    return again(new, *known[_request_of(new)])


def again(new: NewJob, job: Job, content_hash: bytes) -> Submitted:
    """What a submission comes to whose request id stands for `job` already."""
    # What a retry or an appeal is, is which job it is about: its content is also that job's.
    about = (job.retry_of, job.appeal_of) == (new.retry_of, new.appeal_of)
    same = about if new.retry_of or new.appeal_of else content_hash == new.content_hash
    return Submitted(job=job, created=False, same_content=same)


@dataclass(frozen=True, kw_only=True)
class _Fast:
    """The jobs that are put up for claiming as they are accepted, and how many in one message."""

    ids: frozenset[uuid.UUID]
    together: int


def _due(new_jobs: Sequence[NewJob], now: datetime, most: int) -> frozenset[uuid.UUID]:
    due = [new.id for new in new_jobs if new.run_at is None or new.run_at <= now]
    return frozenset(due[: max(most, 0)])


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
    *("estimated_seconds", "traceparent", "concurrency_key", "revision", "appeal_of", "appeal"),
)
_GIVEN = {
    name: jobs.c[name].type
    for name in (
        *_SAID,
        "priority",
        "run_at",
        "deadline_at",
        "released_at",
        "created_at",
        "supersedes",
        "evidence_since",
    )
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
    chosen = select(*columns.values()).where(keys.may_enter(each))
    statement: Executable = (
        inserting.from_select(list(columns), chosen)
        .on_conflict_do_nothing()
        .returning(*TOLD, jobs.c.priority, jobs.c.released_at, jobs.c.supersedes)
    )
    return statement


_INSERT = Many(_GIVEN, _insert)


def _row_of(new: NewJob, now: datetime, *, fast: bool, supersedes: uuid.UUID | None) -> dict[str, Any]:
    run_at = max(now, new.run_at or now)
    return {
        **{name: getattr(new, name) for name in _SAID},
        "priority": int(new.priority),
        "run_at": run_at,
        "deadline_at": run_at + timedelta(seconds=new.deadline_seconds),
        "released_at": now if fast else None,
        "created_at": now,
        "supersedes": supersedes,
        "evidence_since": now if new.fresh else None,
    }


def _accepted(new: NewJob, now: datetime, *, supersedes: uuid.UUID | None) -> Job:
    """The job as it has just been stored; reading it back would cost as much as writing it."""
    run_at = max(now, new.run_at or now)
    return Job(
        **{name: getattr(new, name) for name in _SAID_AND_SEEN},
        **_FRESH_AND_SEEN,
        priority=new.priority,
        error=None,
        result=None,
        superseded_by=None,
        supersedes=supersedes,
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
    rows = [{"id": new.id, "tenant_id": new.tenant_id, "request_id": new.request_id} for new in refused]
    found = await _STANDS_FOR.execute(tx, rows)
    by_id = await _with_hashes(tx, {row.job_id for row in found})
    return {
        row.new_id if row.job_id == row.new_id else (row.tenant_id, row.request_id): by_id[row.job_id] for row in found
    }


async def accepted_before(reader: Reader, requests: Collection[keys.Request]) -> dict[keys.Request, tuple[Job, bytes]]:
    """The jobs that (tenant, request id) pairs stand for already, with their content's hash."""
    rows = [{"id": _NO_ID, "tenant_id": tenant_id, "request_id": request_id} for tenant_id, request_id in requests]
    found = await _STANDS_FOR.execute(reader, rows)
    by_id = await _with_hashes(reader, {row.job_id for row in found})
    return {(row.tenant_id, row.request_id): by_id[row.job_id] for row in found}


def _standing_for(each: Each) -> Executable:
    """One look at an index for each: as joins, these would be planned anew for the size that the table then has."""
    same_id = select(jobs.c.id).where(jobs.c.id == each["id"]).scalar_subquery()
    request = and_(jobs.c.tenant_id == each["tenant_id"], jobs.c.request_id == each["request_id"])
    same_request = select(jobs.c.id).where(request).scalar_subquery()
    job_id = func.coalesce(same_id, same_request, keys.answered_with(each)).label("job_id")
    given = (each["id"].label("new_id"), each["tenant_id"].label("tenant_id"), each["request_id"].label("request_id"))
    found = select(*given, job_id).subquery()
    return select(found).where(found.c.job_id.is_not(None))


_STANDS_FOR = Many({"id": Uuid(), "tenant_id": Uuid(), "request_id": Text()}, _standing_for)
_NO_ID = uuid.UUID(int=0)


async def _with_hashes(reader: Reader, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, tuple[Job, bytes]]:
    if not ids:
        return {}
    rows = await reader.connection.execute(_FIND_WITH_HASHES[reader.on_postgresql], {"ids": list(ids)})
    return {row.id: (job_of(row), row.content_hash) for row in rows}


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


_FIND_MANY = for_both(lambda on_postgresql: select(*VISIBLE).where(among(jobs.c.id, on_postgresql=on_postgresql)))
_FIND_WITH_HASHES = for_both(
    lambda on_postgresql: select(*VISIBLE, jobs.c.content_hash).where(among(jobs.c.id, on_postgresql=on_postgresql))
)
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
    await evidence.let_go(tx, rows)
    return job_of(rows[0]) if rows else None
