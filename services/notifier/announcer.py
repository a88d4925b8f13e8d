"""From outcomes to messages: hears of them from the broker, and looks for those that nobody told it of.

A broker message is a hint. Whatever fails here, and whatever the broker loses, the sweep finds in the database.
"""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from imprimatur import metrics
from imprimatur.broker import Broker, Delivery, Queue, Subscription
from imprimatur.errors import MalformedMessage, Unavailable
from imprimatur.gathering import Gathering
from imprimatur.runtime import Loop
from imprimatur.storage import announcements as stored
from imprimatur.storage.announcements import EventKey, NewMessage, PendingEvent
from imprimatur.storage.database import Database
from imprimatur.vault import Vault
from imprimatur.webhooks import ensure_default_secrets
from imprimatur.wire.messages import JobChange, JobsChanged
from imprimatur.wire.webhooks import body_of, event_type
from notifier.deliverer import Deliverer

log = structlog.get_logger(__name__)

_PREFETCH = 256
_SWEPT_AT_ONCE = 200
#: Of so many it is remembered that they have a default secret; of others it is looked up again.
_MOST_TENANTS_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """When to look for outcomes that the broker did not tell of."""

    every_seconds: float = 5.0
    older_than_seconds: float = 10.0


class Announcer:
    """Stores a message with its deliveries for each outcome, and hands them to the deliverer."""

    def __init__(self, database: Database, broker: Broker, vault: Vault, deliverer: Deliverer, *, sweep: Sweep) -> None:
        self._database = database
        self._broker = broker
        self._vault = vault
        self._deliverer = deliverer
        self._older_than_seconds = sweep.older_than_seconds
        self._outcomes: Gathering[EventKey, None] = Gathering("webhook-messages", self._announce)
        self._loop = Loop("webhook-sweep", self._sweep, interval_seconds=sweep.every_seconds)
        self._subscription: Subscription | None = None
        self._handling: set[asyncio.Task[None]] = set()
        self._have_default_secret: set[uuid.UUID] = set()

    async def start(self) -> None:
        """Begin to listen and to sweep."""
        self._subscription = await self._broker.consume(Queue.NOTIFIER_EVENTS, self._receive, prefetch=_PREFETCH)
        self._loop.start()

    async def stop(self) -> None:
        """Stop; what was received is stored first."""
        await self._loop.stop()
        if self._subscription is not None:
            await self._subscription.close()
        await asyncio.gather(*self._handling, return_exceptions=True)
        await self._outcomes.drained()

    @property
    def consuming(self) -> bool:
        """Whether the broker knows our consumer."""
        return self._subscription is not None and self._subscription.active

    # --- from the broker ---------------------------------------------------------------------------------

    def _receive(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._handle(delivery))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, delivery: Delivery) -> None:
        metrics.messages_consumed.labels(Queue.NOTIFIER_EVENTS, str(delivery.redelivered).lower()).inc()
        try:
            changed = JobsChanged.decode(delivery.message.body)
        except MalformedMessage as fault:
            metrics.messages_set_aside.labels(Queue.NOTIFIER_EVENTS).inc()
            log.error("an outcome cannot be read", error=str(fault), message_id=delivery.message.message_id)  # noqa: TRY400
            await delivery.set_aside()
            return
        await asyncio.gather(*(self._tell_of(change) for change in changed.changes))
        await delivery.ack()

    async def _tell_of(self, change: JobChange) -> None:
        try:
            await self._outcomes.add((change.job_id, change.version))
        except Unavailable:
            log.warning("an outcome is left to the sweep", job_id=str(change.job_id))
        except Exception:
            metrics.loop_failures.labels("webhook-messages").inc()
            log.exception("an outcome is left to the sweep", job_id=str(change.job_id))

    # --- what nobody told of -----------------------------------------------------------------------------

    async def _sweep(self) -> None:
        async with self._database.read() as reader:
            keys = await stored.pending_keys(reader, older_than_seconds=self._older_than_seconds, limit=_SWEPT_AT_ONCE)
        if not keys:
            return
        log.info("outcomes that the broker did not tell of", outcomes=len(keys))
        results = await asyncio.gather(*(self._outcomes.add(key) for key in keys), return_exceptions=True)
        faults = [fault for fault in results if isinstance(fault, Exception)]
        if len(keys) == _SWEPT_AT_ONCE and len(faults) < len(keys):
            self._loop.wake()
        if faults:
            raise faults[0]

    # --- both --------------------------------------------------------------------------------------------

    async def _announce(self, keys: Sequence[EventKey], lock_seconds: float | None) -> list[None]:
        written = [None] * len(keys)
        async with self._database.read() as reader:
            pending = await stored.pending_events(reader, set(keys))
        if not pending:
            return written
        messages = [_message_of(event) for event in pending]
        unsigned = {message.tenant_id for message in messages if message.callback_url} - self._have_default_secret
        lease_seconds = self._deliverer.lease_seconds
        async with self._database.begin(lock_seconds=lock_seconds) as tx:
            await ensure_default_secrets(tx, self._vault, unsigned)
            leases = await stored.store_messages(tx, messages, lease_seconds=lease_seconds)
        if len(self._have_default_secret) >= _MOST_TENANTS_REMEMBERED:
            self._have_default_secret.clear()
        self._have_default_secret |= unsigned
        await self._deliverer.take(leases)
        return written


def _message_of(pending: PendingEvent) -> NewMessage:
    return NewMessage(
        job_id=pending.job.id,
        version=pending.event.version,
        tenant_id=pending.job.tenant_id,
        type=event_type(pending.event),
        body=body_of(pending.job, pending.event, pending.input),
        callback_url=pending.job.callback_url,
    )
