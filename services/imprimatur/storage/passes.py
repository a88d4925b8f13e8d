"""Passes of clean-up over everything: one at a time over all gateways, and when the last one came to its end.

What a pass does, is `storage.retention`.
"""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import null, or_, select, update

from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.schema import cleanup

#: Of the one row.
_NAME = "retention"


async def begin(tx: Transaction, holder: uuid.UUID, *, every_seconds: float, hold_seconds: float) -> datetime | None:
    """Begin a pass over everything, whose `now` is returned; None while another is under way, or it is too early."""
    mine = {"holder": holder, "held_until": clock.after(hold_seconds)}
    free = or_(cleanup.c.held_until.is_(None), cleanup.c.held_until < clock.now())
    due = or_(cleanup.c.succeeded_at.is_(None), cleanup.c.succeeded_at < clock.after(-every_seconds))
    begun = await tx.connection.execute(
        insert_into(cleanup, on_postgresql=tx.on_postgresql)
        .values(name=_NAME, **mine)
        .on_conflict_do_update(index_elements=["name"], set_=mine, where=free & due)
        .returning(clock.now())
    )
    return begun.scalar_one_or_none()


async def keep(tx: Transaction, holder: uuid.UUID, *, hold_seconds: float) -> bool:
    """Go on with one's pass, in the transaction of a step. False: it took so long that another has taken it over."""
    kept = await tx.connection.execute(
        update(cleanup)
        .where(cleanup.c.holder == holder)
        .values(held_until=clock.after(hold_seconds))
        .returning(cleanup.c.name)
    )
    return kept.one_or_none() is not None


async def end(tx: Transaction, holder: uuid.UUID, *, forgotten_until: datetime | None) -> datetime:
    """The pass has come to its end: returns when.

    Args:
        forgotten_until: of the jobs that ended before, none has a request id now.
    """
    values: dict[str, Any] = {"holder": null(), "held_until": null(), "succeeded_at": clock.now()}
    if forgotten_until is not None:
        values["forgotten_until"] = forgotten_until
    ended = update(cleanup).where(cleanup.c.holder == holder).values(values).returning(cleanup.c.succeeded_at)
    succeeded_at: datetime = (await tx.connection.execute(ended)).scalar_one()
    return succeeded_at


async def last_success(reader: Reader) -> datetime | None:
    """When a pass last came to its end, in whatever process."""
    return (await reader.connection.execute(select(cleanup.c.succeeded_at))).scalar_one_or_none()


async def forgotten_until(reader: Reader) -> datetime | None:
    """Of the jobs that ended before, none has a request id any more; None: no pass has forgotten any yet."""
    return (await reader.connection.execute(select(cleanup.c.forgotten_until))).scalar_one_or_none()
