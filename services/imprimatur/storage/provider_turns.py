"""Turns at AI providers, over all reviewers: one row for each provider, tenant and type of job that must keep apart.

Whose turn it is, is `imprimatur.pacing`; here the row is locked, looked at and written.
"""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, select, update

from imprimatur import pacing
from imprimatur.job import JobType
from imprimatur.pacing import Line, Turn
from imprimatur.storage import clock
from imprimatur.storage.database import Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.schema import provider_turns


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Calls that must lie apart from each other, and from no others."""

    provider: str
    tenant_id: uuid.UUID
    type: JobType


async def take(tx: Transaction, lane: Lane, *, interval_seconds: float, hold_seconds: float, was_here: bool) -> Turn:
    """Take a turn or a place in the line, as `imprimatur.pacing.take` says."""
    row = await _locked(tx, lane)
    if row is None:
        await _begin(tx, lane)
        row = await _locked(tx, lane)
    # Looked at after the lock: whoever held it has taken its turn by then.
    now = await clock.present(tx)
    line, turn = pacing.take(
        Line(free_at=row.free_at, ends_at=row.ends_at),
        now=now,
        interval_seconds=interval_seconds,
        hold_seconds=hold_seconds,
        was_here=was_here,
    )
    await tx.connection.execute(
        update(provider_turns).where(_is(lane)).values(free_at=line.free_at, ends_at=line.ends_at)
    )
    return turn


async def _locked(tx: Transaction, lane: Lane) -> Any:
    found = select(provider_turns.c.free_at, provider_turns.c.ends_at).where(_is(lane)).with_for_update()
    return (await tx.connection.execute(found)).one_or_none()


async def _begin(tx: Transaction, lane: Lane) -> None:
    made = insert_into(provider_turns, on_postgresql=tx.on_postgresql).values(
        provider=lane.provider,
        tenant_id=lane.tenant_id,
        job_type=lane.type,
        free_at=clock.now(),
        ends_at=clock.now(),
    )
    await tx.connection.execute(made.on_conflict_do_nothing())


def _is(lane: Lane) -> ColumnElement[bool]:
    return and_(
        provider_turns.c.provider == lane.provider,
        provider_turns.c.tenant_id == lane.tenant_id,
        provider_turns.c.job_type == lane.type,
    )
