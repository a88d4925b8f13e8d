"""The one place that writes a job's state.

`move` turns a happening of the transition table into one UPDATE, whose WHERE holds the allowed states, and
writes the event and the message that tell of it in the same transaction.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, case, insert, null, update

from imprimatur.job import TRANSITIONS, Happening, State
from imprimatur.storage import clock, outbox
from imprimatur.storage.database import Transaction
from imprimatur.storage.schema import job_events, jobs
from imprimatur.wire.messages import JobChanged

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


#: Built once: putting a statement of so many columns together costs as much as running it.
_UPDATE = update(jobs).returning(*jobs.c)
_UPDATE_IN_SHORT = update(jobs).returning(jobs.c.id, jobs.c.tenant_id, jobs.c.version, jobs.c.state, jobs.c.type)
_INSERT_EVENTS = insert(job_events).values(at=clock.now())


async def move(
    tx: Transaction,
    happening: Happening,
    *conditions: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
    details: Mapping[str, str] | None = None,
    in_short: bool = False,
) -> list[Row[Any]]:
    """Let `happening` happen to every job that the conditions name and whose state allows it.

    Args:
        conditions: which jobs; for more than one, an `id IN (… FOR UPDATE)` in id order.
        values: other columns to set.
        details: what the history says about it.
        in_short: the rows are wanted without the tasks, which may be large: `id`, `tenant_id`, `version`,
            `state` and `type` only.

    Returns:
        The changed rows, whole unless `in_short`. Empty: no such job, or not in a state in which this can happen.
    """
    transition = TRANSITIONS[happening]
    statement = _UPDATE_IN_SHORT if in_short else _UPDATE
    changed = (
        await tx.connection.execute(
            statement.where(jobs.c.state.in_(transition.sources), *conditions).values(
                {
                    **_ON_ENTERING[transition.target],
                    **(values or {}),
                    "state": transition.target,
                    "version": jobs.c.version + 1,
                    "updated_at": clock.now(),
                }
            )
        )
    ).all()
    outcome = bool(transition.notifies)
    if changed:
        await record(tx, changed, kind=happening, outcome=outcome, details=details or {})
    return list(changed)


async def record(
    tx: Transaction, changed: list[Row[Any]] | Any, *, kind: str, outcome: bool, details: Mapping[str, str]
) -> None:
    """Write the event of each changed (or newly made) row, and the message that tells of it."""
    await tx.connection.execute(
        _INSERT_EVENTS,
        [
            {
                "job_id": row.id,
                "version": row.version,
                "kind": str(kind),
                "state": row.state,
                "details": dict(details),
                "webhook_pending": outcome,
            }
            for row in changed
        ],
    )
    await outbox.add(
        tx,
        [
            outbox.job_changed(
                JobChanged(job_id=row.id, tenant_id=row.tenant_id, version=row.version, state=State(row.state)),
                kind=kind,
                outcome=outcome,
            )
            for row in changed
        ],
    )


def is_job(job_id: uuid.UUID) -> ColumnElement[bool]:
    """The condition for one job."""
    return jobs.c.id == job_id
