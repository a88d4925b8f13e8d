"""Messages on their way to the broker: written with the change they tell of, deleted once confirmed."""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Executable,
    Insert,
    LargeBinary,
    Text,
    Uuid,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from imprimatur.broker import EVENTS, Queue
from imprimatur.identity import new_id
from imprimatur.job import Priority
from imprimatur.storage import clock
from imprimatur.storage.database import OutboxRow, Reader, Transaction
from imprimatur.storage.locks import among, for_both, in_locked
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import outbox
from imprimatur.wire.messages import JobChange, JobsChanged, Released, ReviewRequested

_REVIEW_QUEUES = {
    Priority.HIGH: Queue.REVIEW_HIGH,
    Priority.NORMAL: Queue.REVIEW_NORMAL,
    Priority.LOW: Queue.REVIEW_LOW,
}

#: Changed jobs in one message at most, so that none grows beyond some 20 kB.
_TOLD_TOGETHER = 256

#: Jobs that are put up together are put into so many messages or more, so that no idle reviewer goes without.
_MESSAGES_AT_LEAST = 8

_Item = TypeVar("_Item")


def review_requested(released: Iterable[tuple[Released, Priority]], *, together: int) -> list[OutboxRow]:
    """The rows that ask reviewers to claim jobs; up to `together` in one message where there are many."""
    by_priority: dict[Priority, list[Released]] = {}
    for job, priority in released:
        by_priority.setdefault(priority, []).append(job)
    return [
        OutboxRow(
            id=new_id(),
            exchange="",
            routing_key=_REVIEW_QUEUES[priority],
            body=ReviewRequested(jobs=some).encode(),
            stored=True,
        )
        for priority, jobs in by_priority.items()
        for some in _batched(jobs, max(1, min(together, len(jobs) // _MESSAGES_AT_LEAST)))
    ]


def _batched(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def jobs_changed(changes: Sequence[JobChange], *, kind: str, outcome: bool) -> list[OutboxRow]:
    """The rows that tell of what happened to jobs. Outcomes are stored, since webhooks hang on them."""
    key = f"outcome.{kind}" if outcome else f"state.{kind}"
    return [
        OutboxRow(
            id=new_id(), exchange=EVENTS, routing_key=key, body=JobsChanged(changes=some).encode(), stored=outcome
        )
        for some in _batched(changes, _TOLD_TOGETHER)
    ]


async def add(tx: Transaction, rows: Iterable[OutboxRow]) -> None:
    """Put messages on their way with this transaction."""
    rows = list(rows)
    tx.outbox.extend(rows)
    await _INSERT.execute(tx, [values_of(row) for row in rows if row.stored])


#: A message among the values of a statement.
MESSAGE: Types = {"message_id": Uuid(), "exchange": Text(), "routing_key": Text(), "body": LargeBinary()}
NO_MESSAGE: Mapping[str, Any] = dict.fromkeys(MESSAGE)


def values_of(row: OutboxRow) -> dict[str, Any]:
    """A row as such values."""
    return {"message_id": row.id, "exchange": row.exchange, "routing_key": row.routing_key, "body": row.body}


def inserting(each: Each, *conditions: ColumnElement[bool]) -> Insert:
    """Writes those of the messages for which the conditions hold."""
    columns = {
        "id": each["message_id"],
        "exchange": each["exchange"],
        "routing_key": each["routing_key"],
        "body": each["body"],
        "created_at": clock.now(),
    }
    return insert(outbox).from_select(list(columns), select(*columns.values()).where(*conditions))


_INSERT = Many(MESSAGE, inserting)


async def lease(tx: Transaction, *, older_than_seconds: float, lease_seconds: float, limit: int) -> list[OutboxRow]:
    """Take rows that their writer has not delivered, oldest first, for `lease_seconds`."""
    taken = await tx.connection.execute(_leasing(older_than_seconds, lease_seconds, limit))
    return sorted((OutboxRow(**row._mapping, stored=True) for row in taken), key=lambda row: row.id)


@lru_cache(16)
def _leasing(older_than_seconds: float, lease_seconds: float, limit: int) -> Executable:
    waiting = (
        select(outbox.c.id)
        .where(
            outbox.c.created_at < clock.after(-older_than_seconds),
            or_(outbox.c.leased_until.is_(None), outbox.c.leased_until < clock.now()),
        )
        .order_by(outbox.c.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return (
        update(outbox)
        .where(in_locked(outbox.c.id, waiting))
        .values(leased_until=clock.after(lease_seconds))
        .returning(outbox.c.id, outbox.c.exchange, outbox.c.routing_key, outbox.c.body)
    )


async def give_back(tx: Transaction, ids: Collection[uuid.UUID]) -> None:
    """End leases early: what was taken may be taken again."""
    await tx.connection.execute(_GIVE_BACK[tx.on_postgresql], {"ids": sorted(ids)})


_GIVE_BACK = for_both(
    lambda on_postgresql: (
        update(outbox).where(among(outbox.c.id, on_postgresql=on_postgresql)).values(leased_until=null())
    )
)


async def remove(tx: Transaction, ids: Collection[uuid.UUID]) -> None:
    """Forget what the broker has confirmed."""
    await tx.connection.execute(_REMOVE[tx.on_postgresql], {"ids": sorted(ids)})


_REMOVE = for_both(lambda on_postgresql: delete(outbox).where(among(outbox.c.id, on_postgresql=on_postgresql)))


async def backlog(reader: Reader) -> int:
    """Messages written and not yet confirmed."""
    return (await reader.connection.execute(_COUNT)).scalar_one()


_COUNT = select(func.count()).select_from(outbox)
