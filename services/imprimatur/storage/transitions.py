"""The one place that writes a job's state.

`moving` turns a happening of the transition table into one UPDATE, whose WHERE holds the allowed states; the events and
the messages that tell of what it changed are written in the same transaction. `move` does that for jobs that a
condition names, `Moves` for many that each have values of their own.
"""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Insert,
    Row,
    Text,
    Update,
    Uuid,
    case,
    exists,
    false,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from imprimatur.job import TRANSITIONS, Happening, State
from imprimatur.storage import clock, outbox
from imprimatur.storage.database import Transaction
from imprimatur.storage.locks import by_no_index
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import Document, job_events, jobs, webhook_endpoints
from imprimatur.wire.messages import JobChange

#: What ends a person's hold.
UNHELD: Mapping[str, Any] = {"held_by": "", "held_until": null(), "hold_token": null(), "hold_key_id": null()}
_NO_PROGRESS: dict[str, Any] = {"progress_percent": 0, "progress_stage": "", "progress_message": ""}
#: Whoever worked on it does so no more, and what was shown of that work is over.
_UNCLAIMED: dict[str, Any] = {"claim_id": null(), "worker_id": null(), "lease_until": null(), **_NO_PROGRESS}
#: What entering a state sets besides the state, whatever led there.
_ON_ENTERING: Mapping[State, dict[str, Any]] = {
    State.QUEUED: {**_UNCLAIMED, "released_at": null(), "awaiting_since": null(), "waits_for": null()},
    State.RUNNING: _NO_PROGRESS,
    State.AWAITING_REVIEW: {
        **_UNCLAIMED,
        "awaiting_since": case((jobs.c.state == State.AWAITING_REVIEW, jobs.c.awaiting_since), else_=clock.now()),
    },
    State.SUCCEEDED: {**_UNCLAIMED, **UNHELD, "finished_at": clock.now(), "progress_percent": 100},
    State.FAILED: {**_UNCLAIMED, **UNHELD, "finished_at": clock.now()},
    State.CANCELLED: {**_UNCLAIMED, **UNHELD, "finished_at": clock.now()},
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
        .where(by_no_index(jobs.c.state).in_(sorted(transition.sources)), *conditions)
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


async def move(
    tx: Transaction,
    happening: Happening,
    *conditions: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
    details: Details | None = None,
    returning: Sequence[ColumnElement[Any]] = tuple(jobs.c),
) -> list[Row[Any]]:
    """Let `happening` happen as `moving` describes it, and tell of it.

    Returns:
        The changed rows. Empty: no such job, or not in a state in which this can happen.
    """
    statement = moving(happening, *conditions, values=values, returning=returning)
    changed = (await tx.connection.execute(statement)).all()
    await record(tx, changed, kind=happening, outcome=_is_outcome(happening), details=details or {})
    return list(changed)


class Moves:
    """One happening of many jobs together; on PostgreSQL in one statement, which writes the events as well.

    Args:
        types: the values of each, by name; besides, `details` is what the history says.
        build: the conditions for these jobs, and the columns to set.
        returning: what is wanted of the changed rows; at least `TOLD`.
        waits: for jobs that others have locked; else these are left as they are.
        also: writes further rows about the changed ones. On SQLite that is the caller's.
    """

    def __init__(
        self,
        happening: Happening,
        types: Types,
        build: Callable[[Each], tuple[Sequence[ColumnElement[bool]], Mapping[str, Any]]],
        *,
        returning: Sequence[ColumnElement[Any]],
        waits: bool = True,
        also: Callable[[CTE], Insert] | None = None,
    ) -> None:
        self._happening = happening
        self._waits = waits
        self._returning = returning
        self._build = build
        self._also = also
        self._alone = Many(types, self._moving)
        self._told = Many({**types, "details": Document}, self._moving_and_telling)

    async def execute(self, tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> list[Row[Any]]:
        """Let it happen; returns the changed rows, in no order."""
        outcome = _is_outcome(self._happening)
        if tx.on_postgresql:
            changed = await self._told.execute(tx, rows)
            await _publish(tx, changed, self._happening, {row.id for row in changed if outcome and row.webhook_pending})
            return changed
        changed, said = [], {}
        for row in rows:  # one by one, since a job may be named twice and only one of them be its own
            for found in await self._alone.execute(tx, [row]):
                changed.append(found)
                said[found.id, found.version] = row["details"]
        await record(tx, changed, kind=self._happening, outcome=outcome, details=lambda row: said[row.id, row.version])
        return changed

    def _moving(self, each: Each, *carried: ColumnElement[Any]) -> Update:
        conditions, values = self._build(each)
        chosen = each.locked(jobs.c.id, "job_id") if self._waits else each.free(jobs.c.id, "job_id")
        named = (chosen, jobs.c.id == each["job_id"])
        return moving(self._happening, *named, *conditions, values=values, returning=(*self._returning, *carried))

    def _moving_and_telling(self, each: Each) -> Executable:
        changed = self._moving(each, jobs.c.callback_url, each["details"].label("said")).cte("changed")
        pending = _is_heard(changed) if _is_outcome(self._happening) else false()
        events = telling(changed, kind=self._happening, details=changed.c.said, pending=pending)
        told = events.returning(job_events.c.job_id, job_events.c.webhook_pending).cte("told")
        wanted = [changed.c[column.name] for column in self._returning]
        found = select(*wanted, told.c.webhook_pending).join(told, told.c.job_id == changed.c.id)
        return found if self._also is None else found.add_cte(self._also(changed).cte("also"))


def _is_outcome(happening: Happening) -> bool:
    return bool(TRANSITIONS[happening].notifies)


async def record(tx: Transaction, changed: Sequence[Row[Any]], *, kind: str, outcome: bool, details: Details) -> None:
    """Write the event of each changed (or newly made) row, and the messages that tell of them.

    Of an `outcome`, those are stored whose jobs somebody wants to hear of by webhook.
    """
    if not changed:
        return
    written = await (_INSERT_OUTCOMES if outcome else _INSERT_EVENTS).execute(tx, _events(changed, kind, details))
    await _publish(tx, changed, kind, {row.job_id for row in written if row.webhook_pending})


async def record_untold(tx: Transaction, changed: Sequence[Row[Any]], *, kind: str, details: Details) -> None:
    """Write the event of each row for what is no outcome. The messages that tell of them are another matter:
    `broadcast`."""
    if changed:
        await _INSERT_EVENTS.execute(tx, _events(changed, kind, details))


def _events(changed: Sequence[Row[Any]], kind: str, details: Details) -> list[dict[str, Any]]:
    return [
        {
            "job_id": row.id,
            "version": row.version,
            "kind": str(kind),
            "state": row.state,
            "details": dict(details(row) if callable(details) else details),
        }
        for row in changed
    ]


def telling(
    changed: FromClause, *, kind: str, details: ColumnElement[Any], pending: ColumnElement[bool] | None = None
) -> Insert:
    """Writes the event of each of these rows, which the same statement changes or makes, untold as well."""
    columns = {
        "job_id": changed.c.id,
        "version": changed.c.version,
        "kind": literal(str(kind), Text()),
        "state": changed.c.state,
        "details": details,
        "at": clock.now(),
        "webhook_pending": false() if pending is None else pending,
    }
    return insert(job_events).from_select(list(columns), select(*columns.values()))


def broadcast(tx: Transaction, changed: Sequence[Row[Any]], *, kind: str, place: int) -> None:
    """Tell watchers, after the commit, of rows whose events are written, and which are no outcomes; `place`: among the
    messages of this transaction, before those that let more happen to these jobs."""
    tx.outbox[place:place] = outbox.jobs_changed(_changes(changed), kind=kind, outcome=False)


async def _publish(tx: Transaction, changed: Sequence[Row[Any]], kind: str, heard: Collection[uuid.UUID]) -> None:
    for stored in (True, False):
        changes = _changes([row for row in changed if (row.id in heard) is stored])
        await outbox.add(tx, outbox.jobs_changed(changes, kind=kind, outcome=stored))


def _changes(changed: Sequence[Row[Any]]) -> list[JobChange]:
    return [
        JobChange(job_id=row.id, tenant_id=row.tenant_id, version=row.version, state=State(row.state))
        for row in changed
    ]


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


def _is_heard(these: FromClause) -> ColumnElement[bool]:
    """Whether somebody wants to hear of these jobs by webhook."""
    endpoint = exists().where(
        webhook_endpoints.c.tenant_id == these.c.tenant_id, webhook_endpoints.c.deleted_at.is_(None)
    )
    return or_(these.c.callback_url != "", endpoint)


def _insert_outcomes(each: Each) -> Executable:
    heard = select(_is_heard(jobs)).where(jobs.c.id == each["job_id"]).scalar_subquery()
    return _insert_events(each, heard).returning(job_events.c.job_id, job_events.c.webhook_pending)


_INSERT_EVENTS = Many(_EVENT, lambda each: _insert_events(each, false()))
_INSERT_OUTCOMES = Many(_EVENT, _insert_outcomes)


def is_job(job_id: uuid.UUID) -> ColumnElement[bool]:
    """The condition for one job."""
    return jobs.c.id == job_id
