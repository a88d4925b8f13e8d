"""The gateways that live: they share what may be put up for claiming by submits themselves."""

import uuid

from sqlalchemy import ColumnElement, delete, func, select

from imprimatur.storage import clock
from imprimatur.storage.database import Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.schema import gateways


async def seen(tx: Transaction, gateway_id: uuid.UUID) -> None:
    """Record that a gateway lives."""
    fresh = {"seen_at": clock.now()}
    given = insert_into(gateways, on_postgresql=tx.on_postgresql).values(id=gateway_id, **fresh)
    await tx.connection.execute(given.on_conflict_do_update(index_elements=["id"], set_=fresh))


def live(*, silent_seconds: float) -> ColumnElement[int]:
    """How many were heard of within the last `silent_seconds`."""
    alive = gateways.c.seen_at > clock.after(-silent_seconds)
    return select(func.count()).select_from(gateways).where(alive).scalar_subquery()


async def forget_silent(tx: Transaction, *, silent_seconds: float) -> None:
    """Remove those that were not heard of for so long."""
    await tx.connection.execute(delete(gateways).where(gateways.c.seen_at < clock.after(-silent_seconds)))
