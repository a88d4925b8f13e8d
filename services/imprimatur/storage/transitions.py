"""The one place that writes a job's state.

`moving` turns a happening of the transition table into one UPDATE, whose WHERE holds the allowed states; `moved`
writes the events and the message that tell of what it changed, in the same transaction.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Insert,
    Row,
    Text,
    Update,
    Uuid,
    case,
    exists,
    false,
    insert,
    null,
    or_,
    select,
    update,
)

from imprimatur.job import TRANSITIONS, Happening, State
from imprimatur.storage import clock, outbox
from imprimatur.storage.database import Transaction
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import Document, job_events, jobs, webhook_endpoints
from imprimatur.wire.messages import JobChange

_UNHELD: dict[str, Any] = {"held_by": "", "held_until": null()}
_NO_PROGRESS: dict[str, Any] = {"progress_percent": 0, "progress_stage": "", "progress_message": ""}
#: Whoever worked on it does so no more, and what was shown of that work is over.
_UNCLAIMED: dict[str, Any] = {"claim_id": null(), "worker_id": null(), "lease_until": null(), **_NO_PROGRESS}
#: What entering a state sets besides the state, whatever led there.
_ON_ENTERING: Mapping[State, dict[str, Any]] = {
    State.QUEUED: {**_UNCLAIMED, "released_at": null(), "awaiting_since": null()},
    State.RUNNING: _NO_PROGRESS,
    State.AWAITING_REVIEW: {
        **_UNCLAIMED,
        "awaiting_since": case((jobs.c.state == State.AWAITING_REVIEW, jobs.c.awaiting_since), else_=clock.now()),
    },
    State.SUCCEEDED: {**_UNCLAIMED, **_UNHELD, "finished_at": clock.now(), "progress_percent": 100},
    State.FAILED: {**_UNCLAIMED, **_UNHELD, "finished_at": clock.now()},
    State.CANCELLED: {**_UNCLAIMED, **_UNHELD, "finished_at": clock.now()},
}

#: What `moved` needs of each changed row.
TOLD = (jobs.c.id, jobs.c.tenant_id, jobs.c.version, jobs.c.state, jobs.c.type)

#: What the history says about a change; of each row, or the same of all.
Details = Mapping[str, str] | Callable[[Row[Any]], Mapping[str, str]]


def moving(
    happening: Happening,
    *conditions: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
    returning: Sequence[ColumnElement[Any]] = tuple(jobs.c),
) -> Update:
    """The statement that lets `happening` happen to every job that the conditions name and whose state allows it.

    Args:
        conditions: which jobs; for more than one, an `id IN (… FOR UPDATE)` in id order.
        values: other columns to set.
        returning: what is wanted of the changed rows; at least `TOLD`.
    """
    transition = TRANSITIONS[happening]
    return (
        update(jobs)
        .where(jobs.c.state.in_(transition.sources), *conditions)
        .values(
            {
                **_ON_ENTERING[transition.target],
                **(values or {}),
                "state": transition.target,
                "version": jobs.c.version + 1,
                "updated_at": clock.now(),
            }
        )
        .returning(*returning)
    )


async def moved(
    tx: Transaction, happening: Happening, changed: Sequence[Row[Any]], details: Details | None = None
) -> None:
    """Tell of the rows that a statement made by `moving` has changed."""
    await record(tx, changed, kind=happening, outcome=bool(TRANSITIONS[happening].notifies), details=details or {})


async def move(
    tx: Transaction,
    happening: Happening,
    *conditions: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
    details: Mapping[str, str] | None = None,
    returning: Sequence[ColumnElement[Any]] = tuple(jobs.c),
) -> list[Row[Any]]:
    """Both at once, as `moving` and `moved` describe it.

    Returns:
        The changed rows. Empty: no such job, or not in a state in which this can happen.
    """
    statement = moving(happening, *conditions, values=values, returning=returning)
    changed = (await tx.connection.execute(statement)).all()
    await moved(tx, happening, changed, details)
    return list(changed)


async def record(tx: Transaction, changed: Sequence[Row[Any]], *, kind: str, outcome: bool, details: Details) -> None:
    """Write the event of each changed (or newly made) row, and the messages that tell of them.

    Of an `outcome`, those are stored whose jobs somebody wants to hear of by webhook.
    """
    if not changed:
        return
    events = [
        {
            "job_id": row.id,
            "version": row.version,
            "kind": str(kind),
            "state": row.state,
            "details": dict(details(row) if callable(details) else details),
        }
        for row in changed
    ]
    written = await (_INSERT_OUTCOMES if outcome else _INSERT_EVENTS).execute(tx, events)
    heard = {row.job_id for row in written if row.webhook_pending}
    for stored in (True, False):
        changes = [
            JobChange(job_id=row.id, tenant_id=row.tenant_id, version=row.version, state=State(row.state))
            for row in changed
            if (row.id in heard) is stored
        ]
        await outbox.add(tx, outbox.jobs_changed(changes, kind=kind, outcome=stored))


_EVENT: Types = {
    "job_id": Uuid(),
    "version": BigInteger(),
    "kind": Text(),
    "state": Text(),
    "details": Document,
}


def _insert_events(each: Each, pending: ColumnElement[bool]) -> Insert:
    columns = {name: each[name] for name in _EVENT} | {"at": clock.now(), "webhook_pending": pending}
    return insert(job_events).from_select(list(columns), select(*columns.values()))


def _insert_outcomes(each: Each) -> Executable:
    endpoint = exists().where(
        webhook_endpoints.c.tenant_id == jobs.c.tenant_id, webhook_endpoints.c.deleted_at.is_(None)
    )
    heard = select(or_(jobs.c.callback_url != "", endpoint)).where(jobs.c.id == each["job_id"]).scalar_subquery()
    return _insert_events(each, heard).returning(job_events.c.job_id, job_events.c.webhook_pending)


_INSERT_EVENTS = Many(_EVENT, lambda each: _insert_events(each, false()))
_INSERT_OUTCOMES = Many(_EVENT, _insert_outcomes)


def is_job(job_id: uuid.UUID) -> ColumnElement[bool]:
    """The condition for one job."""
    return jobs.c.id == job_id
