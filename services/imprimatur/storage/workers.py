"""The reviewer processes that live, and how much they can take."""

import uuid
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Integer, delete, exists, func, null, select

from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import jobs, workers


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One reviewer process."""

    id: uuid.UUID
    name: str
    slots: int


async def seen(tx: Transaction, worker: Worker, *, running: int, locked_out_seconds: float | None = None) -> None:
    """Record that a worker lives, with its slots and how many are in use.

    Args:
        locked_out_seconds: since others keep some of its jobs locked, it may be without their leases for so long.
    """
    locked_out_until = null() if locked_out_seconds is None else clock.after(locked_out_seconds)
    fresh = {
        **{"name": worker.name, "slots": worker.slots, "running": running},
        **{"seen_at": clock.now(), "locked_out_until": locked_out_until},
    }
    await tx.connection.execute(
        insert_into(workers, on_postgresql=tx.on_postgresql)
        .values(id=worker.id, started_at=clock.now(), **fresh)
        .on_conflict_do_update(index_elements=["id"], set_=fresh)
    )


def is_locked_out() -> ColumnElement[bool]:
    """Whether the worker of a job has said lately that it is kept from renewing leases."""
    return exists().where(workers.c.id == jobs.c.worker_id, workers.c.locked_out_until > clock.now())


async def gone(tx: Transaction, worker: Worker) -> None:
    """Record that a worker has stopped."""
    await tx.connection.execute(workers.delete().where(workers.c.id == worker.id))


async def forget_silent(tx: Transaction, *, silent_seconds: float) -> None:
    """Remove those that were not heard of for so long. Who comes back all the same is recorded anew."""
    silent = select(workers.c.id).where(workers.c.seen_at < clock.after(-silent_seconds)).order_by(workers.c.id)
    await tx.connection.execute(
        delete(workers).where(in_locked(workers.c.id, silent.with_for_update(skip_locked=True)))
    )


async def live_capacity(reader: Reader, *, silent_seconds: float) -> tuple[int, int]:
    """(worker processes, slots) of the workers heard of within the last `silent_seconds`."""
    row = (
        await reader.connection.execute(
            select(func.count(), func.coalesce(func.sum(workers.c.slots), 0, type_=Integer)).where(
                workers.c.seen_at > clock.after(-silent_seconds)
            )
        )
    ).one()
    return row[0], row[1]
