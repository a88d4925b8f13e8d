"""Concurrency keys where jobs are stored: who holds a key, and what becomes of the next job that wants it.

That of one key at most one job is unfinished is a unique index (`uq_jobs_live_key`): a job whose key is free enters
at no further cost, and only for one that did not enter is the holder looked at. The holder is locked from then on,
and with it the key, so that what is decided here holds until the transaction ends.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    LargeBinary,
    Row,
    Text,
    Uuid,
    and_,
    exists,
    not_,
    or_,
    select,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from imprimatur.errors import Contended
from imprimatur.job import AttemptOutcome, Happening, NewJob, State, WhenBusy
from imprimatur.storage import attempts, landings, people
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import jobs, request_aliases
from imprimatur.storage.transitions import moving, record

Request: TypeAlias = tuple[uuid.UUID, str]  #: a tenant and its request id
_Key: TypeAlias = tuple[uuid.UUID, str]  #: a tenant and its key


class Verdict(StrEnum):
    """What becomes of a job that wants a key which is not free."""

    SAME = "same"  #: the holder is asked for once more
    BUSY = "busy"  #: the holder stays
    OUTDATED = "outdated"  #: a higher revision was accepted before
    REUSED = "reused"  #: the same revision was accepted before, with other content
    SUPERSEDES = "supersedes"  #: it takes the holder's place


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """The verdict and the job that it rests on: the key's holder, or the one with the newest revision."""

    verdict: Verdict
    job_id: uuid.UUID
    revision: int | None = None


def live(table: FromClause = jobs) -> ColumnElement[bool]:
    """The condition for jobs that hold a key, as the index over them spells it."""
    unfinished = table.c.state.in_([State.QUEUED, State.RUNNING, State.AWAITING_REVIEW])
    return and_(table.c.concurrency_key.is_not(None), unfinished)


# --- deciding --------------------------------------------------------------------------------------------


async def rule(tx: Transaction, wanting: Sequence[NewJob]) -> dict[uuid.UUID, Ruling]:
    """Decide, in their order, about jobs that did not enter. Locks the holders of their keys.

    Returns:
        By the ids of the jobs. Those are left out that stand behind one which takes their key's place: they want
        to be looked at again after that.

    Raises:
        Contended: a key has become free meanwhile.
    """
    holders = await _holders(tx, wanting)
    newest = await _newest(tx, wanting)
    rulings: dict[uuid.UUID, Ruling] = {}
    passing: set[_Key] = set()
    for new in wanting:
        key = _key_of(new)
        if key not in passing:
            ruling = rulings[new.id] = _ruling(new, holders.get(key), newest.get(new.id))
            if ruling.verdict is Verdict.SUPERSEDES:
                passing.add(key)
    return rulings


def _ruling(new: NewJob, holder: Row[Any] | None, newest: Row[Any] | None) -> Ruling:
    # A retry is asked for because of what happened to its job, so it is never the same as another; nor is an appeal.
    fresh = new.retry_of is None and new.appeal_of is None
    if fresh and holder is not None and holder.content_hash == new.content_hash:
        return Ruling(verdict=Verdict.SAME, job_id=holder.id)
    if newest is not None and new.revision is not None and _comes_too_late(new, newest):
        verdict = Verdict.REUSED if newest.revision == new.revision else Verdict.OUTDATED
        return Ruling(verdict=verdict, job_id=newest.id, revision=newest.revision)
    if holder is None:
        # To enter after all is to wait for others who enter: not while holders are locked, but in the usual order.
        raise Contended("the key has become free meanwhile")
    verdict = Verdict.SUPERSEDES if new.when_busy is WhenBusy.SUPERSEDE else Verdict.BUSY
    return Ruling(verdict=verdict, job_id=holder.id)


def _comes_too_late(new: NewJob | Row[Any], newest: Row[Any]) -> bool:
    newer: bool = newest.revision > new.revision
    return newer or (newest.revision == new.revision and newest.content_hash != new.content_hash)


def _key_of(new: NewJob) -> _Key:
    return new.tenant_id, new.concurrency_key or ""


async def _holders(tx: Transaction, wanting: Sequence[NewJob]) -> dict[_Key, Row[Any]]:
    keys = sorted({_key_of(new) for new in wanting if new.concurrency_key is not None})
    rows = await _LOCK.execute(tx, [{"tenant_id": tenant_id, "key": key} for tenant_id, key in keys])
    return {(row.tenant_id, row.concurrency_key): row for row in rows}


_WANTED: Types = {"tenant_id": Uuid(), "key": Text()}


def _locking(each: Each) -> Executable:
    same_key = and_(jobs.c.tenant_id == each["tenant_id"], jobs.c.concurrency_key == each["key"])
    held = select(jobs.c.id, jobs.c.tenant_id, jobs.c.concurrency_key, jobs.c.content_hash).where(same_key, live())
    return held.order_by(jobs.c.id).with_for_update(of=jobs)


_LOCK = Many(_WANTED, _locking)


# --- revisions -------------------------------------------------------------------------------------------


def overtaken(revised: Each | ReadOnlyColumnCollection[str, Any]) -> ColumnElement[bool]:
    """The condition for jobs, stored or new, that come too late: `_comes_too_late` in SQL."""
    older = jobs.alias("older")
    return exists().where(
        older.c.tenant_id == revised["tenant_id"],
        older.c.concurrency_key == revised["concurrency_key"],
        older.c.revision.is_not(None),
        older.c.revision >= revised["revision"],
        or_(older.c.revision > revised["revision"], older.c.content_hash != revised["content_hash"]),
    )


async def require_in_order(tx: Transaction, entered: Collection[NewJob | Row[Any]]) -> None:
    """See that nobody with a newer revision came and ended while these entered. From now on, nobody will.

    Raises:
        Contended: somebody has.
    """
    revised = [new for new in entered if new.revision is not None]
    newest = await _newest(tx, revised)
    if any(_comes_too_late(new, newest[new.id]) for new in revised):
        raise Contended("a newer revision came meanwhile")


async def _newest(reader: Reader, wanting: Sequence[NewJob | Row[Any]]) -> dict[uuid.UUID, Row[Any]]:
    """The job with the newest revision of each one's key, for those that have a revision themselves."""
    revised = [new for new in wanting if new.revision is not None]
    given = [{"new_id": new.id, "tenant_id": new.tenant_id, "key": new.concurrency_key} for new in revised]
    return {row.new_id: row for row in await _NEWEST.execute(reader, given)}


def _looking_for_newest(each: Each) -> Executable:
    revised = jobs.alias("revised")
    same_key = and_(revised.c.tenant_id == each["tenant_id"], revised.c.concurrency_key == each["key"])
    newest = select(revised.c.id).where(same_key, revised.c.revision.is_not(None))
    newest = newest.order_by(revised.c.revision.desc()).limit(1)
    found = (each["new_id"].label("new_id"), jobs.c.id, jobs.c.revision, jobs.c.content_hash)
    is_newest = jobs.c.id == newest.correlate_except(revised).scalar_subquery()
    return select(*found).where(jobs.c.tenant_id == each["tenant_id"], is_newest)


_NEWEST = Many({"new_id": Uuid(), **_WANTED}, _looking_for_newest)


# --- entering --------------------------------------------------------------------------------------------

#: What `may_enter` needs of each new job.
ENTERING: Types = {
    "tenant_id": Uuid(),
    "request_id": Text(),
    "concurrency_key": Text(),
    "revision": BigInteger(),
    "content_hash": LargeBinary(),
}


def may_enter(each: Each) -> ColumnElement[bool]:
    """The condition for a new job, besides what unique indexes see to: its request was not answered with another job,
    and its revision does not come too late."""
    return and_(answered_with(each).is_(None), or_(each["revision"].is_(None), not_(overtaken(each))))


# --- superseding -----------------------------------------------------------------------------------------


async def supersede(tx: Transaction, successors: Mapping[uuid.UUID, uuid.UUID]) -> Sequence[Row[Any]]:
    """Cancel the holders, which `rule` has locked, in favour of these jobs; the caller lets those enter next.

    Args:
        successors: the new jobs' ids by the holders'.

    Returns:
        The cancelled jobs' rows.
    """
    leaving = {old: {"because": "superseded", "superseded_by": str(new)} for old, new in successors.items()}
    await people.leave_holders(tx, leaving, by=Actor(person=""))
    rows = await _SUPERSEDE.execute(tx, [{"id": old, "by": new} for old, new in successors.items()])
    await record(tx, rows, kind=Happening.CANCELLED, outcome=True, details=_by_whom)
    claimed = [row for row in rows if row.claim_no]
    await attempts.end_open(tx, claimed, AttemptOutcome.CANCELLED)
    await landings.let_go(tx, claimed)
    return rows


def _by_whom(row: Row[Any]) -> dict[str, str]:
    return {"superseded_by": str(row.superseded_by)}


def _superseding(each: Each) -> Executable:
    seen = [column for column in jobs.c if column is not jobs.c.input]
    is_holder = jobs.c.id == each["id"]
    return moving(Happening.CANCELLED, is_holder, values={"superseded_by": each["by"]}, returning=seen)


_SUPERSEDE = Many({"id": Uuid(), "by": Uuid()}, _superseding)


# --- further request ids ---------------------------------------------------------------------------------


async def remember(tx: Transaction, answered: Mapping[Request, uuid.UUID]) -> None:
    """Keep which requests were answered with which job, so that the same request is the same job for good.

    Raises:
        Contended: somebody else has just answered one of them.
    """
    rows = [
        {"tenant_id": tenant_id, "request_id": request_id, "job_id": job_id}
        for (tenant_id, request_id), job_id in sorted(answered.items())
    ]
    if len(await _REMEMBER.execute(tx, rows)) < len(rows):
        raise Contended("a request was answered meanwhile")


_ALIAS: Types = {"tenant_id": Uuid(), "request_id": Text(), "job_id": Uuid()}


def _remembering(each: Each) -> Executable:
    inserting = insert_into(request_aliases, on_postgresql=each.on_postgresql)
    chosen = select(*(each[name] for name in _ALIAS)).where(each["tenant_id"].is_not(None))  # as of the insert of jobs
    statement: Executable = (
        inserting.from_select(list(_ALIAS), chosen).on_conflict_do_nothing().returning(request_aliases.c.request_id)
    )
    return statement


_REMEMBER = Many(_ALIAS, _remembering)


def answered_with(each: Each) -> ColumnElement[uuid.UUID]:
    """The id of the job that has another request id, or none, with which each one's request was answered; or NULL."""
    same = and_(request_aliases.c.tenant_id == each["tenant_id"], request_aliases.c.request_id == each["request_id"])
    return select(request_aliases.c.job_id).where(same).scalar_subquery()
