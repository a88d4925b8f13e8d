"""Accepting jobs: each once, whatever is repeated; with its first event, and the message that asks reviewers for it.

On PostgreSQL one statement writes all three, whether for one job or for many. What others stand in the way of is
looked at after that: requests that were accepted before, and keys that are held (`storage/keys.py`).
"""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Executable,
    Insert,
    Integer,
    Row,
    Text,
    Uuid,
    and_,
    case,
    func,
    literal,
    select,
)

from imprimatur.errors import Contended
from imprimatur.job import SUBMITTED, Job, JobType, NewJob, Priority, State
from imprimatur.storage import assets, clock, keys, outbox
from imprimatur.storage.database import OutboxRow, Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.jobs import FIRST_REISSUE_AFTER_SECONDS, VISIBLE, find_many, job_of
from imprimatur.storage.keys import Ruling, Verdict
from imprimatur.storage.locks import among, for_both
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import Document, jobs, tenants
from imprimatur.storage.transitions import TOLD, broadcast, record_untold, telling
from imprimatur.wire.messages import Released

#: Of a large batch so many are written by one statement: what is put together for it, and made of its answer, keeps
#: everybody else in the process waiting.
_AT_A_STRETCH = 128


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What became of one submission.

    Attributes:
        job: made, or found; of a refused one the job that stands in its way.
        created: it was accepted, as this job.
        same_content: False when its request id stands for other content.
        released: it was put up for claiming just now.
        superseded: the type of the job whose place it took just now.
        repeated: its request was accepted before.
        refused: why its concurrency key, or its revision, does not let it in.
    """

    job: Job
    created: bool
    same_content: bool = True
    released: bool = False
    superseded: JobType | None = None
    repeated: bool = False
    refused: Ruling | None = None

    @property
    def waits(self) -> bool:
        """Whether it is due, and was not put up for claiming."""
        return self.created and not self.released and self.job.run_at <= self.job.created_at


async def submit(
    tx: Transaction,
    new_jobs: Sequence[NewJob],
    *,
    release_at_once: int,
    together: int = 1,
    most_of_a_tenant: int = 0,
) -> list[Submitted]:
    """Accept jobs together. Idempotent by (tenant, request id), and by the job id for its caller's own repetition
    after a lost answer. Of the jobs with one concurrency key, each is settled before the next.

    Args:
        release_at_once: how many due jobs may be put up for claiming in this same transaction; the rest
            wait for the dispatcher.
        together: how many of those reviewers may be asked for in one message.
        most_of_a_tenant: the limit, for tenants without one of their own, of what is under way; 0: none. Whoever has a
            limit waits for the dispatcher, which counts.

    Returns:
        One answer per job, in order.

    Raises:
        Contended: others wanted the same keys meanwhile. Nothing of it may be committed; it may be done again at once.
    """
    fast = _Fast(ids=_due(new_jobs, release_at_once), together=together, most_of_a_tenant=most_of_a_tenant)
    place = len(tx.outbox)
    answers: dict[uuid.UUID, Submitted] = {}
    in_line = sorted(new_jobs, key=_place_in_line)
    for first in range(0, len(in_line), _AT_A_STRETCH):
        answers |= await _enter(tx, in_line[first : first + _AT_A_STRETCH], fast)
    while rest := sorted((new for new in new_jobs if new.id not in answers), key=lambda new: new.id):
        known = await _known(tx, rest)
        answers |= {new.id: _again(new, known) for new in rest if new.id in known or _request_of(new) in known}
        if wanting := [new for new in rest if new.id not in answers]:
            answers |= await _settle(tx, wanting, answers, fast)
    broadcast(tx, fast.to_tell, kind=SUBMITTED, place=place)
    return [answers[new.id] for new in new_jobs]


async def _enter(
    tx: Transaction,
    new_jobs: Sequence[NewJob],
    fast: "_Fast",
    *,
    in_place_of: Mapping[uuid.UUID, uuid.UUID] | None = None,
) -> dict[uuid.UUID, Submitted]:
    """Store those of the jobs whose ids, requests and keys are free; `in_place_of`: the ids of those they supersede."""
    supersedes = in_place_of or {}
    in_line = sorted(new_jobs, key=_place_in_line)
    rows = [_row_of(new, fast, supersedes=supersedes.get(new.id)) for new in in_line]
    write = _write_at_once if tx.on_postgresql and not supersedes else _write_in_turn
    entered = {row.id: row for row in await write(tx, in_line, rows, fast)}
    fast.to_tell.extend(entered.values())
    made = [new for new in new_jobs if new.id in entered]
    await keys.require_in_order(tx, made)
    await assets.link(tx, [new for new in made if new.asset_ids])
    return {
        new.id: Submitted(
            job=_accepted(new, entered[new.id]),
            created=True,
            released=entered[new.id].released_at is not None,
        )
        for new in made
    }


async def _write_at_once(
    tx: Transaction, in_line: Sequence[NewJob], rows: Sequence[Mapping[str, Any]], fast: "_Fast"
) -> Sequence[Row[Any]]:
    """The messages are put together before it is known which jobs enter, and written if all that were meant to be put
    up have been; else they are put together anew."""
    messages = _asking(sorted((new.id, new.priority) for new in in_line if new.id in fast.ids), fast)
    given = [
        {**row, **(outbox.values_of(message) if message else outbox.NO_MESSAGE)}
        for row, message in zip_longest(rows, messages)
    ]
    entered = await _WRITE_AT_ONCE.execute(tx, given)
    if entered and entered[0].asked == len(messages):
        tx.outbox.extend(messages)
    else:
        await _ask_for(tx, entered, fast)
    return entered


async def _write_in_turn(
    tx: Transaction, _: Sequence[NewJob], rows: Sequence[Mapping[str, Any]], fast: "_Fast"
) -> Sequence[Row[Any]]:
    entered = await _INSERT.execute(tx, rows)
    await record_untold(tx, entered, kind=SUBMITTED, details=_link)
    await _ask_for(tx, entered, fast)
    return entered


async def _ask_for(tx: Transaction, entered: Sequence[Row[Any]], fast: "_Fast") -> None:
    released = [(row.id, Priority(row.priority)) for row in entered if row.released_at is not None]
    await outbox.add(tx, _asking(sorted(released), fast))


def _asking(released: Iterable[tuple[uuid.UUID, Priority]], fast: "_Fast") -> list[OutboxRow]:
    asked = [(Released(job_id=job_id, release_no=1), priority) for job_id, priority in released]
    return outbox.review_requested(asked, together=fast.together)


def _place_in_line(new: NewJob) -> tuple[Any, ...]:
    """Batches with the same keys or requests wait for each other in one order, so that none waits in a circle."""
    return new.tenant_id, new.concurrency_key or "", "" if new.concurrency_key else new.request_id or "", new.id


def _link(row: Row[Any]) -> dict[str, str]:
    return {} if row.supersedes is None else {"supersedes": str(row.supersedes)}


async def _settle(
    tx: Transaction,
    wanting: Sequence[NewJob],
    answers: Mapping[uuid.UUID, Submitted],
    fast: "_Fast",
) -> dict[uuid.UUID, Submitted]:
    """Answers for the next of each key among jobs that are unknown and did not enter; and, where they take the places
    of others among `answers`, new answers for those."""
    rulings = await keys.rule(tx, wanting)
    entering = [new for new in wanting if new.id in rulings and rulings[new.id].verdict is Verdict.SUPERSEDES]
    in_place_of = {new.id: rulings[new.id].job_id for new in entering}
    ended = {row.id: row for row in await keys.supersede(tx, {old: new for new, old in in_place_of.items()})}
    entered = await _enter(tx, entering, fast, in_place_of=in_place_of) if entering else {}
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
    return Submitted(job=job, created=False, same_content=same, repeated=True)


@dataclass(frozen=True, kw_only=True)
class _Fast:
    """The jobs that are put up for claiming as they are accepted, and how many in one message; unless their tenant has
    a limit, which those without one of their own have by `most_of_a_tenant`."""

    ids: frozenset[uuid.UUID]
    together: int
    most_of_a_tenant: int
    to_tell: list[Row[Any]] = field(default_factory=list)  #: who entered, and whom watchers are to hear of


def _due(new_jobs: Sequence[NewJob], most: int) -> frozenset[uuid.UUID]:
    """Those to put up now. Who names a time is left to the dispatcher, even if it has passed."""
    due = [new.id for new in new_jobs if new.run_at is None]
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
_GIVEN: Types = {
    **{name: jobs.c[name].type for name in (*_SAID, "priority", "run_at", "supersedes", "reissue_after_seconds")},
    "fast": Boolean(),
    "fresh": Boolean(),
    "most_of_a_tenant": Integer(),
}


def _insert(each: Each) -> Insert:
    limit = func.coalesce(tenants.c.running_jobs, each["most_of_a_tenant"])
    at_once = and_(each["fast"], select(limit).where(tenants.c.id == each["tenant_id"]).scalar_subquery() == 0)
    now = select(select(clock.now().label("now")).cte("present").c.now).scalar_subquery()
    run_at = case((each["run_at"] > now, each["run_at"]), else_=now)
    columns: dict[str, ColumnElement[Any]] = {
        **{name: literal(value, jobs.c[name].type) for name, value in FRESH.items()},
        **{name: each[name] for name in _GIVEN if name in jobs.c},
        "run_at": run_at,
        "deadline_at": clock.after(each["deadline_seconds"], run_at),
        "released_at": case((at_once, now)),
        "release_no": case((at_once, 1), else_=0),
        "evidence_since": case((each["fresh"], now)),
        "created_at": now,
        "updated_at": now,
    }
    inserting = insert_into(jobs, on_postgresql=each.on_postgresql)
    chosen = select(*columns.values()).where(keys.may_enter(each))
    statement: Insert = (
        inserting.from_select(list(columns), chosen)
        .on_conflict_do_nothing()
        .returning(*TOLD, *(jobs.c[name] for name in _SETTLED))
    )
    return statement


#: What is known of a job only when it is stored.
_SETTLED = ("priority", "released_at", "supersedes", "created_at", "run_at", "deadline_at")


def _write_all(each: Each) -> Executable:
    entered = _insert(each).cte("entered")
    told = telling(entered, kind=SUBMITTED, details=literal({}, Document)).cte("told")
    put_up = select(func.count()).where(entered.c.released_at.is_not(None)).scalar_subquery()
    asking = Each({**outbox.MESSAGE, "fast": Boolean()}, on_postgresql=True)
    meant = select(func.count()).where(asking["fast"]).scalar_subquery()
    wanted = (asking["message_id"].is_not(None), put_up == meant)
    asked = outbox.inserting(asking, *wanted).returning(literal(1)).cte("asked")
    number = select(func.count()).select_from(asked).scalar_subquery()
    return select(*entered.c, number.label("asked")).add_cte(told)


_INSERT = Many(_GIVEN, _insert)
_WRITE_AT_ONCE = Many({**_GIVEN, **outbox.MESSAGE}, _write_all)


def _row_of(new: NewJob, fast: _Fast, *, supersedes: uuid.UUID | None) -> dict[str, Any]:
    return {
        **{name: getattr(new, name) for name in _SAID},
        "priority": int(new.priority),
        "run_at": new.run_at,
        "supersedes": supersedes,
        "reissue_after_seconds": FIRST_REISSUE_AFTER_SECONDS,
        "fast": new.id in fast.ids,
        "most_of_a_tenant": fast.most_of_a_tenant,
        "fresh": new.fresh,
    }


def _accepted(new: NewJob, stored: Row[Any]) -> Job:
    """The job as it has just been stored; reading it back would cost as much as writing it."""
    return Job(
        **{name: getattr(new, name) for name in _SAID_AND_SEEN},
        **_FRESH_AND_SEEN,
        priority=new.priority,
        error=None,
        result=None,
        superseded_by=None,
        supersedes=stored.supersedes,
        created_at=stored.created_at,
        updated_at=stored.created_at,
        started_at=None,
        finished_at=None,
        run_at=stored.run_at,
        deadline_at=stored.deadline_at,
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


_FIND_WITH_HASHES = for_both(
    lambda on_postgresql: select(*VISIBLE, jobs.c.content_hash).where(among(jobs.c.id, on_postgresql=on_postgresql))
)
