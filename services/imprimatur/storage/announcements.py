"""From outcomes to messages: which events are not told yet, and the message with its deliveries that tells them.

An event keeps `webhook_pending` until its message is stored, in the transaction that stores it: whatever becomes
of the broker, no outcome is forgotten. How messages are delivered is `storage.deliveries`.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Row, case, exists, func, insert, null, select, tuple_, update

from imprimatur.identity import new_id
from imprimatur.job import Happening, Job, JobEvent, State
from imprimatur.storage import clock, deliveries
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.deliveries import DeliveryState, Lease
from imprimatur.storage.jobs import VISIBLE, job_of
from imprimatur.storage.schema import job_events, jobs, webhook_deliveries, webhook_endpoints, webhook_messages

#: Inputs above this are read one by one, so that a batch of large creatives does not fill the memory.
_SMALL_INPUT_BYTES = 65_536

#: (job id, version).
EventKey = tuple[uuid.UUID, int]


@dataclass(frozen=True, kw_only=True)
class PendingEvent:
    """An outcome whose message is not stored yet. The job is without result where that is not the event's own."""

    job: Job
    event: JobEvent
    input: bytes


@dataclass(frozen=True, kw_only=True)
class NewMessage:
    """What is told of one event, byte for byte, at every attempt."""

    job_id: uuid.UUID
    version: int
    tenant_id: uuid.UUID
    type: str
    body: bytes
    callback_url: str


# --- events without a message ----------------------------------------------------------------------------


async def pending_keys(reader: Reader, *, older_than_seconds: float, limit: int) -> list[EventKey]:
    """Events whose message should be stored by now, oldest first."""
    rows = await reader.connection.execute(
        select(job_events.c.job_id, job_events.c.version)
        .where(deliveries.IS_UNTOLD, job_events.c.at < clock.after(-older_than_seconds))
        .order_by(job_events.c.at)
        .limit(limit)
    )
    return [(row.job_id, row.version) for row in rows]


async def pending_events(reader: Reader, keys: Collection[EventKey]) -> list[PendingEvent]:
    """Those of `keys` whose message is not stored yet, with the jobs as they stand now."""
    if not keys:
        return []
    small = case((func.length(jobs.c.input) <= _SMALL_INPUT_BYTES, jobs.c.input), else_=null())
    event_columns = [column.label(f"event_{column.name}") for column in job_events.c]
    rows = await reader.connection.execute(
        select(*VISIBLE, small.label("small_input"), _sent_back_since().label("sent_back"), *event_columns)
        .join_from(job_events, jobs, job_events.c.job_id == jobs.c.id)
        .where(_is_one_of(keys), job_events.c.webhook_pending)
        .order_by(job_events.c.job_id, job_events.c.version)
    )
    return [
        PendingEvent(job=_job_of(row), event=_event_of(row), input=await _input_of(reader, row)) for row in rows.all()
    ]


def _sent_back_since() -> ColumnElement[bool]:
    """Whether the engine was asked anew after the event: what it then said must not be told as of before."""
    later = job_events.alias("later")
    return exists().where(
        later.c.job_id == job_events.c.job_id,
        later.c.version > job_events.c.version,
        later.c.kind == Happening.REVIEW_AGAIN,
    )


def _job_of(row: Any) -> Job:
    job = job_of(row)
    return replace(job, result=None) if row.sent_back else job


async def _input_of(reader: Reader, row: Any) -> bytes:
    if row.small_input is not None:
        return bytes(row.small_input)
    return bytes((await reader.connection.execute(select(jobs.c.input).where(jobs.c.id == row.id))).scalar_one())


def _event_of(row: Any) -> JobEvent:
    return JobEvent(
        version=row.event_version,
        kind=row.event_kind,
        state=State(row.event_state),
        at=row.event_at,
        details=row.event_details,
    )


def _is_one_of(keys: Collection[EventKey]) -> ColumnElement[bool]:
    return tuple_(job_events.c.job_id, job_events.c.version).in_(sorted(keys))


# --- messages --------------------------------------------------------------------------------------------


async def store_messages(
    tx: Transaction, messages: Sequence[NewMessage], *, lease_seconds: float | None
) -> list[Lease]:
    """Store messages with a delivery to each endpoint that hears of them, and tick their events off.

    Doing it twice, or in two processes at once, stores each once.

    Args:
        lease_seconds: lease the new deliveries to the caller for so long; None leaves them to whoever has room.

    Returns:
        The leased deliveries.
    """
    wanted = await _still_pending(tx, {(message.job_id, message.version): message for message in messages})
    targets = await _targets(tx, wanted)
    rows: list[dict[str, Any]] = [
        {
            "id": new_id(),
            "message_id": message_id,
            "endpoint_id": endpoint_id,
            "url": url,
            "lane": deliveries.lane_of(tenant, url),
        }
        for message_id, tenant, endpoint_id, url in targets
    ]
    if rows:
        lease = clock.after(lease_seconds) if lease_seconds is not None else null()
        await tx.connection.execute(
            insert(webhook_deliveries).values(
                state=DeliveryState.PENDING, attempts=0, next_attempt_at=clock.now(), leased_until=lease
            ),
            rows,
        )
    if wanted:
        keys = [(message.job_id, message.version) for message in wanted]
        await tx.connection.execute(update(job_events).where(_is_one_of(keys)).values(webhook_pending=False))
    return await deliveries.leases(tx, [row["id"] for row in rows]) if lease_seconds is not None else []


async def _still_pending(tx: Transaction, by_key: Mapping[EventKey, NewMessage]) -> list[NewMessage]:
    """Locks the events, so that another process with the same ones waits and then finds them done."""
    if not by_key:
        return []
    rows = await tx.connection.execute(
        select(job_events.c.job_id, job_events.c.version)
        .where(_is_one_of(by_key), job_events.c.webhook_pending)
        .order_by(job_events.c.job_id, job_events.c.version)
        .with_for_update()
    )
    return [by_key[row.job_id, row.version] for row in rows]


async def _targets(
    tx: Transaction, messages: Sequence[NewMessage]
) -> list[tuple[uuid.UUID, uuid.UUID, uuid.UUID | None, str]]:
    """Store the messages that anyone hears of: (message, tenant, endpoint, URL) of each delivery to make."""
    endpoints = await _hearing(tx, {message.tenant_id for message in messages})
    stored: list[dict[str, Any]] = []
    targets: list[tuple[uuid.UUID, uuid.UUID, uuid.UUID | None, str]] = []
    for message in messages:
        heard = [row for row in endpoints if row.tenant_id == message.tenant_id and _hears(row, message.type)]
        to: list[tuple[uuid.UUID | None, str]] = [(row.id, row.url) for row in heard]
        if message.callback_url:
            to.append((None, message.callback_url))
        if to:
            message_id = new_id()
            stored.append(_message_row(message_id, message))
            targets += [(message_id, message.tenant_id, endpoint_id, url) for endpoint_id, url in to]
    if stored:
        await tx.connection.execute(insert(webhook_messages).values(created_at=clock.now()), stored)
    return targets


async def _hearing(tx: Transaction, tenant_ids: Collection[uuid.UUID]) -> Sequence[Row[Any]]:
    """Live endpoints, kept from being deleted until the transaction ends."""
    if not tenant_ids:
        return []
    found = await tx.connection.execute(
        select(webhook_endpoints)
        .where(webhook_endpoints.c.tenant_id.in_(sorted(tenant_ids)), webhook_endpoints.c.deleted_at.is_(None))
        .order_by(webhook_endpoints.c.id)
        .with_for_update(read=True)
    )
    return found.all()


def _hears(endpoint: Row[Any], event_type: str) -> bool:
    return not endpoint.event_types or event_type in endpoint.event_types


def _message_row(message_id: uuid.UUID, message: NewMessage) -> dict[str, Any]:
    return {
        "id": message_id,
        "tenant_id": message.tenant_id,
        "job_id": message.job_id,
        "version": message.version,
        "type": message.type,
        "body": message.body,
    }
