"""Messages on their way to the broker: written with the change they tell of, deleted once confirmed."""

import uuid
from collections.abc import Collection, Iterable

from sqlalchemy import delete, func, insert, or_, select, update

from imprimatur.broker import EVENTS, Queue
from imprimatur.identity import new_id
from imprimatur.job import Priority
from imprimatur.storage import clock
from imprimatur.storage.database import OutboxRow, Reader, Transaction
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import outbox
from imprimatur.wire.messages import JobChanged, ReviewRequested

_REVIEW_QUEUES = {
    Priority.HIGH: Queue.REVIEW_HIGH,
    Priority.NORMAL: Queue.REVIEW_NORMAL,
    Priority.LOW: Queue.REVIEW_LOW,
}


def review_requested(request: ReviewRequested, priority: Priority) -> OutboxRow:
    """The row that asks reviewers to claim a released job."""
    queue = _REVIEW_QUEUES[priority]
    return OutboxRow(id=new_id(), exchange="", routing_key=queue, body=request.encode(), stored=True)


def job_changed(change: JobChanged, *, kind: str, outcome: bool) -> OutboxRow:
    """The row that tells of a change. Outcomes are stored, since a webhook hangs on them."""
    key = f"outcome.{kind}" if outcome else f"state.{kind}"
    return OutboxRow(id=new_id(), exchange=EVENTS, routing_key=key, body=change.encode(), stored=outcome)


_INSERT = insert(outbox).values(created_at=clock.now())


async def add(tx: Transaction, rows: Iterable[OutboxRow]) -> None:
    """Put messages on their way with this transaction."""
    rows = list(rows)
    tx.outbox.extend(rows)
    if stored := [row for row in rows if row.stored]:
        await tx.connection.execute(
            _INSERT,
            [
                {"id": row.id, "exchange": row.exchange, "routing_key": row.routing_key, "body": row.body}
                for row in stored
            ],
        )


async def lease(tx: Transaction, *, older_than_seconds: float, lease_seconds: float, limit: int) -> list[OutboxRow]:
    """Take rows that their writer has not delivered, oldest first, for `lease_seconds`."""
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
    taken = await tx.connection.execute(
        update(outbox)
        .where(in_locked(outbox.c.id, waiting))
        .values(leased_until=clock.after(lease_seconds))
        .returning(outbox.c.id, outbox.c.exchange, outbox.c.routing_key, outbox.c.body)
    )
    return sorted((OutboxRow(**row._mapping, stored=True) for row in taken), key=lambda row: row.id)


async def give_back(tx: Transaction, ids: Collection[uuid.UUID]) -> None:
    """End leases early: what was taken may be taken again."""
    await tx.connection.execute(update(outbox).where(outbox.c.id.in_(sorted(ids))).values(leased_until=None))


async def remove(tx: Transaction, ids: Collection[uuid.UUID]) -> None:
    """Forget what the broker has confirmed."""
    await tx.connection.execute(delete(outbox).where(outbox.c.id.in_(sorted(ids))))


async def backlog(reader: Reader) -> int:
    """Messages written and not yet confirmed."""
    return (await reader.connection.execute(select(func.count()).select_from(outbox))).scalar_one()
