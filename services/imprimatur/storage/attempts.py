"""The attempt log: one row per claim of a job, with how it ended and what it used.

An attempt ends once: whoever comes second changes nothing, but what was spent is booked even when the result is
discarded.
"""

import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, exists, insert, literal, not_, null, select, tuple_, update

from imprimatur.job import Attempt, AttemptOutcome, JobError
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.schema import attempts


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an attempt used, booked whether or not its result counts."""

    engine: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


async def begin(tx: Transaction, job_id: uuid.UUID, claim_no: int, worker: str) -> None:
    """Write the beginning of an attempt."""
    nothing_yet = asdict(Spent())
    await tx.connection.execute(
        insert(attempts).values(job_id=job_id, claim_no=claim_no, worker=worker, started_at=clock.now(), **nothing_yet)
    )


async def end(
    tx: Transaction,
    job_id: uuid.UUID,
    claim_no: int,
    outcome: AttemptOutcome,
    *,
    error: JobError | None,
    spent: Spent,
) -> AttemptOutcome | None:
    """Write an attempt's end, and what it used: what is booked already only grows. Returns how it ended: as it was
    ended before, if it was; None when there is no such attempt."""
    mine = and_(attempts.c.job_id == job_id, attempts.c.claim_no == claim_no)
    is_open = attempts.c.outcome.is_(None)
    ending = {name: case((is_open, value), else_=attempts.c[name]) for name, value in _ending(outcome, error).items()}
    changed = await tx.connection.execute(
        update(attempts).where(mine).values(**_booked(spent), **ending).returning(attempts.c.outcome)
    )
    found = changed.scalar_one_or_none()
    return AttemptOutcome(found) if found else None


def _booked(spent: Spent) -> dict[str, ColumnElement[Any]]:
    columns = {name: (attempts.c[name], literal(value, attempts.c[name].type)) for name, value in asdict(spent).items()}
    return {name: case((value > column, value), else_=column) for name, (column, value) in columns.items()}


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


async def of_job(reader: Reader, job_id: uuid.UUID) -> list[Attempt]:
    """Every attempt at a job, oldest first."""
    rows = await reader.connection.execute(
        select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.claim_no)
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
        )
        for row in rows
    ]
