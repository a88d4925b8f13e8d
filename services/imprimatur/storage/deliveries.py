"""Webhook deliveries: lease what is due, record every attempt, give up.

A delivery is leased while it is attempted; `leased_until` is also the token that fences what is written about a
failed attempt. Deliveries of one tenant to one host form a *lane*, so that what is due can be found lane by lane
and a lane with a long backlog costs the others nothing.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, insert, literal_column, null, or_, select, update
from yarl import URL

from imprimatur.identity import new_id
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import job_events, jobs, webhook_attempts, webhook_deliveries, webhook_messages


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"  #: to be attempted, or attempted again
    DELIVERED = "delivered"  #: the receiver answered 2xx
    ABANDONED = "abandoned"  #: given up, or its endpoint is gone


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A delivery to attempt now. `endpoint_id` is None for the job's callback URL."""

    delivery_id: uuid.UUID
    message_id: uuid.UUID
    tenant_id: uuid.UUID
    endpoint_id: uuid.UUID | None
    job_id: uuid.UUID
    url: str
    lane: str
    body: bytes
    attempts: int  #: made before
    occurred_at: datetime  #: the event
    leased_at: datetime
    leased_until: datetime
    traceparent: str | None  #: the span that accepted the job


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """How one attempt went, and what becomes of its delivery. `delay_seconds` counts for PENDING."""

    lease: Lease
    status_code: int | None
    error: str
    duration_ms: int
    state: DeliveryState
    delay_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is not done yet."""

    events: int
    deliveries: int
    oldest_untried_seconds: float  #: since the oldest delivery that was never attempted; 0 without any


def lane_of(tenant_id: uuid.UUID, url: str) -> str:
    """The lane of a tenant's deliveries to a URL's host and port."""
    try:
        return f"{tenant_id.hex}:{URL(url).host_port_subcomponent or ''}"
    except ValueError:
        return f"{tenant_id.hex}:"


def tenant_and_host(lane: str) -> tuple[str, str]:
    """The two parts of a lane's name."""
    tenant, _, host = lane.partition(":")
    return tenant, host


def is_pending(table: Any) -> ColumnElement[bool]:
    """Spelled as the partial indexes spell it, so that they serve with any parameters."""
    condition: ColumnElement[bool] = table.c.state == literal_column("'pending'")
    return condition


#: Of events without a message, spelled as their index spells it: SQLite would be asked whether the column is 1, which
#: is not the same to it, and it would read the whole history.
IS_UNTOLD: ColumnElement[bool] = literal_column("job_events.webhook_pending")


def _due(table: Any) -> ColumnElement[bool]:
    free = or_(table.c.leased_until.is_(None), table.c.leased_until < clock.now())
    return and_(is_pending(table), table.c.next_attempt_at <= clock.now(), free)


async def due_lanes(reader: Reader, *, after: str, limit: int) -> list[str]:
    """The lanes behind `after` in which something is due, in order. Costs one look into the index a lane."""
    first, following, waiting = (webhook_deliveries.alias() for _ in range(3))
    lanes = (
        select(func.min(first.c.lane).label("lane")).where(is_pending(first), first.c.lane > after).cte(recursive=True)
    )
    onward = select(func.min(following.c.lane)).where(is_pending(following), following.c.lane > lanes.c.lane)
    lanes = lanes.union_all(select(onward.scalar_subquery()).where(lanes.c.lane.is_not(None)))
    something_due = exists().where(_due(waiting), waiting.c.lane == lanes.c.lane)
    found = await reader.connection.execute(
        select(lanes.c.lane).where(lanes.c.lane.is_not(None), something_due).limit(limit)
    )
    return list(found.scalars())


async def lease_due(tx: Transaction, room: Mapping[str, int], *, lease_seconds: float) -> list[Lease]:
    """Lease due deliveries, the longest due first: from each lane as many as `room` says."""
    taken: list[uuid.UUID] = []
    for lane in sorted(room):
        due = (
            select(webhook_deliveries.c.id)
            .where(_due(webhook_deliveries), webhook_deliveries.c.lane == lane)
            .order_by(webhook_deliveries.c.next_attempt_at)
            .limit(room[lane])
            .with_for_update(skip_locked=True)
        )
        rows = await tx.connection.execute(
            update(webhook_deliveries)
            .where(in_locked(webhook_deliveries.c.id, due))
            .values(leased_until=clock.after(lease_seconds))
            .returning(webhook_deliveries.c.id)
        )
        taken += rows.scalars()
    return await leases(tx, taken)


async def leases(reader: Reader, delivery_ids: Collection[uuid.UUID]) -> list[Lease]:
    """Everything that is needed to attempt these leased deliveries, oldest message first."""
    if not delivery_ids:
        return []
    rows = await reader.connection.execute(
        select(
            webhook_deliveries.c.id.label("delivery_id"),
            webhook_deliveries.c.message_id,
            webhook_messages.c.tenant_id,
            webhook_deliveries.c.endpoint_id,
            webhook_messages.c.job_id,
            webhook_deliveries.c.url,
            webhook_deliveries.c.lane,
            webhook_messages.c.body,
            webhook_deliveries.c.attempts,
            job_events.c.at.label("occurred_at"),
            clock.now().label("leased_at"),
            webhook_deliveries.c.leased_until,
            jobs.c.traceparent,
        )
        .join_from(webhook_deliveries, webhook_messages)
        .join(jobs, jobs.c.id == webhook_messages.c.job_id)
        .join(
            job_events,
            and_(job_events.c.job_id == webhook_messages.c.job_id, job_events.c.version == webhook_messages.c.version),
        )
        .where(webhook_deliveries.c.id.in_(sorted(delivery_ids)))
        .order_by(webhook_deliveries.c.id)
    )
    return [Lease(**row._mapping) for row in rows]


async def give_back(tx: Transaction, held: Collection[Lease], *, delay_seconds: float = 0.0) -> None:
    """End leases without an attempt; due again after `delay_seconds`."""
    for lease in sorted(held, key=lambda item: item.delivery_id):
        await tx.connection.execute(
            update(webhook_deliveries)
            .where(*_held(lease))
            .values(leased_until=null(), next_attempt_at=clock.after(delay_seconds))
        )


async def record_attempts(tx: Transaction, records: Sequence[AttemptRecord]) -> None:
    """Add attempts to the record and let each delivery be delivered, wait for its next time or be given up.

    A success counts whoever holds the lease by now; a failure only for its holder. What somebody else delivered long
    ago may have been cleaned up since.
    """
    table = webhook_deliveries
    ids = {record.lease.delivery_id for record in records}
    locked = select(table.c.id).where(table.c.id.in_(sorted(ids))).order_by(table.c.id).with_for_update()
    kept = set((await tx.connection.execute(locked)).scalars())
    records = sorted(
        (record for record in records if record.lease.delivery_id in kept), key=lambda record: record.lease.delivery_id
    )
    if not records:
        return
    await tx.connection.execute(insert(webhook_attempts).values(at=clock.now()), [_attempt_row(r) for r in records])
    for record in records:
        fence = () if record.state is DeliveryState.DELIVERED else _held(record.lease)
        again = record.state is DeliveryState.PENDING
        await tx.connection.execute(
            update(table)
            .where(table.c.id == record.lease.delivery_id, table.c.state == DeliveryState.PENDING, *fence)
            .values(
                state=record.state,
                attempts=table.c.attempts + 1,
                leased_until=null(),
                next_attempt_at=clock.after(record.delay_seconds) if again else table.c.next_attempt_at,
                finished_at=null() if again else clock.now(),
            )
        )


def _held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (
        webhook_deliveries.c.id == lease.delivery_id,
        webhook_deliveries.c.state == DeliveryState.PENDING,
        webhook_deliveries.c.leased_until == lease.leased_until,
    )


def _attempt_row(record: AttemptRecord) -> dict[str, Any]:
    return {
        "id": new_id(),
        "delivery_id": record.lease.delivery_id,
        "status_code": record.status_code,
        "error": record.error,
        "duration_ms": record.duration_ms,
    }


async def abandon_open(tx: Transaction, endpoint_id: uuid.UUID) -> None:
    """Give up what is still to be delivered to an endpoint."""
    table = webhook_deliveries
    still_open = (
        select(table.c.id)
        .where(table.c.endpoint_id == endpoint_id, is_pending(table))
        .order_by(table.c.id)
        .with_for_update()
    )
    await tx.connection.execute(
        update(table)
        .where(in_locked(table.c.id, still_open))
        .values(state=DeliveryState.ABANDONED, leased_until=null(), finished_at=clock.now())
    )


async def counts(reader: Reader) -> Counts:
    """What is not done yet, for the metrics."""
    waiting = select(func.count()).select_from(webhook_deliveries).where(is_pending(webhook_deliveries))
    untold = select(func.count()).select_from(job_events).where(IS_UNTOLD)
    row = (
        await reader.connection.execute(
            select(
                waiting.scalar_subquery().label("deliveries"),
                untold.scalar_subquery().label("events"),
                func.coalesce(_oldest_untried_seconds(), 0.0).label("oldest_untried_seconds"),
            )
        )
    ).one()
    return Counts(**row._mapping)


def _oldest_untried_seconds() -> ColumnElement[float]:
    table = webhook_deliveries
    untried = (
        select(table.c.id, table.c.message_id)
        .where(is_pending(table), table.c.attempts == 0)
        .cte("untried")
        .prefix_with("MATERIALIZED")  # or the first by id is looked for among all deliveries that ever were
    )
    oldest = select(untried.c.message_id).order_by(untried.c.id).limit(1).scalar_subquery()
    stored = select(webhook_messages.c.created_at).where(webhook_messages.c.id == oldest).scalar_subquery()
    return clock.seconds_between(clock.now(), stored)
