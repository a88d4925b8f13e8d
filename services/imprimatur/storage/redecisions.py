"""Reviews looked at again by what was found before: those that a person is awaited for, to be decided by a changed
policy, and the newest of all, to see what another policy would have made of them.

Creatives may be large: what is read at once is bounded, and so is what one look reads in all.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, LargeBinary, Select, Text, Uuid, and_, func, null, or_, select

from imprimatur.human import AuditAction
from imprimatur.identity import first_id_at
from imprimatur.job import Happening, JobType, State
from imprimatur.storage import audit
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import UNFINISHED
from imprimatur.storage.many import Each, Types
from imprimatur.storage.review_queue import IS_HELD
from imprimatur.storage.schema import Document, jobs
from imprimatur.storage.transitions import TOLD, Moves

#: Creatives and results read at once, together; a single one may be larger.
MOST_BYTES_AT_ONCE = 32 * 1024 * 1024
#: The same of one look at the newest reviews.
MOST_BYTES_LOOKED_AT = 256 * 1024 * 1024
#: So that nobody else waits for long while they are read and judged.
_MOST_AT_ONCE = 100
#: Ids are made by the gateways' clocks, times of creation are the database's: one may be so far from the other.
_MOST_SKEW_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A job that a person is awaited for, locked. `result` is empty when there is none."""

    id: uuid.UUID
    type: JobType
    subject_id: str
    held: bool  #: by a person, now
    input: bytes
    result: bytes


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some of them, in the order of their ids. `following`: go on behind it; None when all were looked at."""

    waiting: Sequence[Waiting]
    following: uuid.UUID | None


@dataclass(frozen=True, kw_only=True)
class Redecided:
    """What a changed policy makes of a job."""

    job_id: uuid.UUID
    decision: str
    policy_triggered: str
    reason: str
    policy_version: int
    result: bytes
    categories: Sequence[str]
    decision_before: str
    triggered_before: str


# --- what waits ------------------------------------------------------------------------------------------

#: An appeal is a person's to decide, whatever the policy says.
_REDECIDABLE = and_(
    UNFINISHED,  # by whose index they are found
    jobs.c.state == State.AWAITING_REVIEW,
    jobs.c.type == JobType.CREATIVE_REVIEW,
    jobs.c.appeal_of.is_(None),
)
_SIZE = func.length(jobs.c.input) + func.coalesce(func.length(jobs.c.result), 0)


async def lock_waiting(tx: Transaction, tenant_id: uuid.UUID, *, after: uuid.UUID | None, limit: int) -> Batch:
    """The next creative reviews that a person is awaited for, from just behind the job `after`. What is decided or sent
    back meanwhile is left out."""
    ours = and_(_REDECIDABLE, jobs.c.tenant_id == tenant_id)
    sizes = select(jobs.c.id, _SIZE.label("size")).where(ours).order_by(jobs.c.id).limit(limit + 1)
    if after is not None:
        sizes = sizes.where(jobs.c.id > after)
    found = (await tx.connection.execute(sizes)).all()
    ids = _fitting(found, most=limit)
    locked = (
        select(jobs.c.id, jobs.c.type, jobs.c.subject_id, IS_HELD.label("held"), jobs.c.input, jobs.c.result)
        .where(ours, jobs.c.id.in_(ids))
        .order_by(jobs.c.id)
        .with_for_update()
    )
    rows = (await tx.connection.execute(locked)).all() if ids else []
    return Batch(
        waiting=[
            Waiting(
                id=row.id,
                type=JobType(row.type),
                subject_id=row.subject_id,
                held=bool(row.held),
                input=row.input,
                result=row.result or b"",
            )
            for row in rows
        ],
        following=ids[-1] if len(found) > len(ids) else None,
    )


def _fitting(rows: Sequence[Any], *, most: int) -> list[uuid.UUID]:
    """The first of them that are not too much together, and at least one."""
    fitting: list[uuid.UUID] = []
    size = 0
    for row in rows[:most]:
        size += row.size
        if fitting and size > MOST_BYTES_AT_ONCE:
            break
        fitting.append(row.id)
    return fitting


async def redecide(tx: Transaction, decided: Sequence[Redecided], *, by: Actor) -> set[uuid.UUID]:
    """Finish jobs locked by `lock_waiting` with what was decided, and put each on record; returns their ids."""
    decided = sorted(decided, key=lambda one: one.job_id)
    rows = await _REDECIDED.execute(
        tx,
        [
            {
                "job_id": one.job_id,
                "decision": one.decision,
                "policy_triggered": one.policy_triggered,
                "result": one.result,
                "categories": list(one.categories),
                "details": {**_outcome(one), "reason": one.reason, "by": by.person},
            }
            for one in decided
        ],
    )
    found = {row.id: row for row in rows}
    told = [
        audit.Told(job=found[one.job_id], reason=one.reason, details={**_outcome(one), **_before(one)})
        for one in decided
        if one.job_id in found
    ]
    await audit.record_each(tx, AuditAction.REDECIDED, told, by)
    return set(found)


def _outcome(one: Redecided) -> dict[str, str]:
    return {
        "decision": one.decision,
        "policy_triggered": one.policy_triggered,
        "policy_version": str(one.policy_version),
    }


def _before(one: Redecided) -> dict[str, str]:
    return {"decision_before": one.decision_before, "policy_triggered_before": one.triggered_before}


_SHOWN: Types = {
    **{"decision": Text(), "policy_triggered": Text(), "result": LargeBinary()},
    "categories": Document,
}


def _redeciding(each: Each) -> tuple[Sequence[ColumnElement[bool]], dict[str, Any]]:
    shown = {name: each[name] for name in _SHOWN}
    return (), {**shown, "result_count": 1, "error": null()}


_REDECIDED = Moves(
    Happening.REDECIDED,
    {"job_id": Uuid(), **_SHOWN},
    _redeciding,
    returning=(*TOLD, jobs.c.subject_id, jobs.c.user_id),
)


# --- what was reviewed -----------------------------------------------------------------------------------


async def newest_reviewed(
    reader: Reader,
    tenant_id: uuid.UUID,
    *,
    created_from: datetime | None,
    created_before: datetime | None,
    limit: int,
) -> AsyncIterator[Sequence[Any]]:
    """Creative reviews that the machine is done with, newest first, some at a time: `id`, `subject_id`, `input`,
    `result`. What is removed meanwhile is left out; so are appeals, which no policy decides."""
    sizes = _reviewed(tenant_id, created_from, created_before).order_by(jobs.c.id.desc()).limit(limit)
    found = (await reader.connection.execute(sizes)).all()
    read = 0
    while found and read < MOST_BYTES_LOOKED_AT:
        ids = _fitting(found, most=_MOST_AT_ONCE)
        read += sum(row.size for row in found[: len(ids)])
        found = found[len(ids) :]
        content = select(jobs.c.id, jobs.c.subject_id, jobs.c.input, jobs.c.result).where(
            jobs.c.id.in_(ids), jobs.c.result.is_not(None)
        )
        yield (await reader.connection.execute(content.order_by(jobs.c.id.desc()))).all()


def _reviewed(tenant_id: uuid.UUID, created_from: datetime | None, created_before: datetime | None) -> Select[Any]:
    found = select(jobs.c.id, _SIZE.label("size")).where(
        jobs.c.tenant_id == tenant_id,
        jobs.c.type == JobType.CREATIVE_REVIEW,
        jobs.c.appeal_of.is_(None),
        or_(jobs.c.state == State.SUCCEEDED, jobs.c.state == State.AWAITING_REVIEW),
        jobs.c.result.is_not(None),
    )
    if created_from is not None:
        first = first_id_at(created_from, moved_seconds=-_MOST_SKEW_SECONDS)
        found = found.where(jobs.c.id >= first, jobs.c.created_at >= created_from)
    if created_before is not None:
        first = first_id_at(created_before, moved_seconds=_MOST_SKEW_SECONDS)
        found = found.where(jobs.c.id < first, jobs.c.created_at < created_before)
    return found
