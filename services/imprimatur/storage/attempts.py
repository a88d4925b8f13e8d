"""The attempt log: one row per claim of a job, with how it ended and what it used.

An attempt ends once: whoever comes second changes nothing, but what was spent is booked even when the result is
discarded.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    Integer,
    Row,
    Text,
    Uuid,
    and_,
    case,
    exists,
    insert,
    literal,
    not_,
    null,
    select,
    tuple_,
    update,
)

from imprimatur.job import Attempt, AttemptOutcome, JobError
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.many import Each, Many
from imprimatur.storage.schema import attempts, jobs


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an attempt used, booked whether or not its result counts."""

    engine: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


@dataclass(frozen=True, kw_only=True)
class End:
    """How one attempt ended."""

    job_id: uuid.UUID
    claim_no: int
    outcome: AttemptOutcome
    error: JobError | None
    spent: Spent
    reused_from: uuid.UUID | None = None


def beginning(claimed: FromClause, worker: ColumnElement[str]) -> Insert:
    """Writes the beginning of an attempt at each of these job rows."""
    return _begun(claimed.c.id, claimed.c.claim_no, worker)


async def begin(tx: Transaction, claimed: Collection[Row[Any]], worker: str) -> None:
    """Write the beginning of an attempt at each of these job rows."""
    await _BEGIN.execute(tx, [{"job_id": row.id, "claim_no": row.claim_no, "worker": worker} for row in claimed])


def _begun(job_id: ColumnElement[Any], claim_no: ColumnElement[int], worker: ColumnElement[str]) -> Insert:
    nothing_yet = {name: literal(value, attempts.c[name].type) for name, value in asdict(Spent()).items()}
    columns = {"job_id": job_id, "claim_no": claim_no, "worker": worker, **nothing_yet, "started_at": clock.now()}
    return insert(attempts).from_select(list(columns), select(*columns.values()))


_BEGIN = Many(
    {"job_id": Uuid(), "claim_no": Integer(), "worker": Text()},
    lambda each: _begun(each["job_id"], each["claim_no"], each["worker"]),
)


async def end(tx: Transaction, ends: Sequence[End]) -> list[tuple[uuid.UUID, int]]:
    """Write how attempts ended, and what they used: what is booked already only grows.

    Returns:
        (job id, claim_no) of those that had been ended as lost before, in order.
    """
    rows = await _END.execute(tx, [_row_of(one) for one in ends])
    return sorted((row.job_id, row.claim_no) for row in rows if row.outcome == AttemptOutcome.LOST)


def _ending_each(each: Each) -> Executable:
    is_open = attempts.c.outcome.is_(None)
    ending = {
        "finished_at": clock.now(),
        **{name: each[name] for name in ("outcome", "error", "error_code", "reused_from")},
    }
    booked = {
        name: case((each[name] > attempts.c[name], each[name]), else_=attempts.c[name]) for name in asdict(Spent())
    }
    return (
        update(attempts)
        .where(attempts.c.job_id == each["job_id"], attempts.c.claim_no == each["claim_no"])
        .values({name: case((is_open, value), else_=attempts.c[name]) for name, value in ending.items()} | booked)
        .returning(attempts.c.job_id, attempts.c.claim_no, attempts.c.outcome)
    )


_ENDED = ("job_id", "claim_no", "outcome", "error", "error_code", "reused_from", *asdict(Spent()))
_END = Many({name: attempts.c[name].type for name in _ENDED}, _ending_each)


def _row_of(one: End) -> dict[str, Any]:
    return {
        "job_id": one.job_id,
        "claim_no": one.claim_no,
        "outcome": str(one.outcome),
        "error": asdict(one.error) if one.error else None,
        "error_code": one.error.code if one.error else None,
        "reused_from": one.reused_from,
        **vars(one.spent),
    }


async def has_returned(tx: Transaction, job_id: uuid.UUID, claim_no: int) -> bool:
    """Note that the worker of an attempt that was ended as lost is back. False: that was known, or the job's loss of
    another worker was taken back before."""
    of_the_job = attempts.alias()
    before = exists().where(of_the_job.c.job_id == job_id, of_the_job.c.returned_at.is_not(None))
    mine = and_(attempts.c.job_id == job_id, attempts.c.claim_no == claim_no)
    changed = await tx.connection.execute(
        update(attempts)
        .where(mine, attempts.c.outcome == AttemptOutcome.LOST, not_(before))
        .values(returned_at=clock.now())
        .returning(attempts.c.claim_no)
    )
    return bool(changed.all())


async def end_open(
    tx: Transaction, rows: Collection[Row[Any]], outcome: AttemptOutcome, error: JobError | None = None
) -> None:
    """End the open attempt of each of these job rows, when somebody other than its worker ends it."""
    if rows:
        latest = tuple_(attempts.c.job_id, attempts.c.claim_no).in_(sorted((row.id, row.claim_no) for row in rows))
        # SQLite finds pairs by no index, so the ids are named by themselves too.
        mine = and_(attempts.c.job_id.in_({row.id for row in rows}), latest, attempts.c.outcome.is_(None))
        await tx.connection.execute(update(attempts).where(mine).values(_ending(outcome, error)))


def _ending(outcome: AttemptOutcome, error: JobError | None) -> dict[str, ColumnElement[Any]]:
    return {
        "finished_at": clock.now(),
        "outcome": literal(outcome, attempts.c.outcome.type),
        "error": literal(asdict(error), attempts.c.error.type) if error else null(),
        "error_code": literal(error.code, attempts.c.error_code.type) if error else null(),
    }


async def of_job(reader: Reader, job_id: uuid.UUID, *, seen_by: str = "") -> list[Attempt]:
    """Every attempt at a job, oldest first.

    Args:
        seen_by: a user, for whom other users' jobs are not named; empty: whoever sees the whole tenant.
    """
    source: ColumnElement[Any] = attempts.c.reused_from
    if seen_by:
        theirs = select(jobs.c.id).where(jobs.c.id == attempts.c.reused_from, jobs.c.user_id == seen_by)
        source = theirs.scalar_subquery()
    rows = await reader.connection.execute(
        select(attempts, source.label("source")).where(attempts.c.job_id == job_id).order_by(attempts.c.claim_no)
    )
    return [
        Attempt(
            claim_no=row.claim_no,
            worker=row.worker,
            started_at=row.started_at,
            finished_at=row.finished_at,
            outcome=AttemptOutcome(row.outcome) if row.outcome else None,
            error=JobError(**row.error) if row.error else None,
            engine=row.engine,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            cost_micros=row.cost_micros,
            reused_from=row.source,
        )
        for row in rows
    ]
