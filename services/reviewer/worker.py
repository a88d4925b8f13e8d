"""Slots and messages: takes review messages as slots come free, claims their jobs, and starts the attempts.

A message is acknowledged once the claims of its jobs are committed, not at the end of the work: the lease is the
ownership. Jobs in hand wait for a free slot in the `Inbox`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

import structlog

from imprimatur import metrics
from imprimatur.broker import Broker, Delivery, Message, Queue, Subscription
from imprimatur.errors import Locked, MalformedMessage, Unavailable
from imprimatur.gathering import LINGER_SECONDS, Gathering
from imprimatur.identity import new_id
from imprimatur.job import Claim, Happening, Priority
from imprimatur.storage import claims
from imprimatur.storage.claims import Wanted
from imprimatur.storage.database import Database
from imprimatur.storage.workers import Worker as Identity
from imprimatur.wire.messages import JobsChanged, Released
from reviewer.asked import Asked, Fate, asked_for
from reviewer.attempt import Attempts
from reviewer.inbox import Inbox
from reviewer.leases import Leases

log = structlog.get_logger(__name__)

_QUEUES = {
    Priority.HIGH: Queue.REVIEW_HIGH,
    Priority.NORMAL: Queue.REVIEW_NORMAL,
    Priority.LOW: Queue.REVIEW_LOW,
}
#: Between tries to claim a job that others keep locked, or while the database is out of reach.
_CLAIM_PAUSES_SECONDS = (0.02, 0.1, 0.3, 0.4)
#: How long a worker that stops waits for the claims that are under way.
_LAST_CLAIMS_SECONDS = 2.0
#: Whether a webhook tells of it or not.
_CANCELLATIONS = (f"outcome.{Happening.CANCELLED}", f"state.{Happening.CANCELLED}")


class Worker:
    """N slots, fed from the three review queues, with few messages in hand so that an idle peer gets its share."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        identity: Identity,
        attempts: Attempts,
        leases: Leases,
    ) -> None:
        self._database = database
        self._broker = broker
        self._identity = identity
        self._attempts = attempts
        self._leases = leases
        self._claims: Gathering[Wanted, Claim | None] = Gathering(
            "claims", self._claim_all, most=max(1, identity.slots // 2), linger_seconds=LINGER_SECONDS
        )
        self._prefetch = max(2, identity.slots // 4)
        self._free_slots = asyncio.Semaphore(identity.slots)
        self._inbox = Inbox(self._give_back)
        self._subscriptions: list[Subscription] = []
        self._cancellations: Subscription | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        metrics.slots.set(identity.slots)

    @property
    def consuming(self) -> bool:
        """Whether the broker knows a consumer of ours on every review queue."""
        return bool(self._subscriptions) and all(one.active for one in self._subscriptions)

    async def start(self) -> None:
        """Begin to take messages."""
        for priority, queue in _QUEUES.items():
            self._subscriptions.append(
                await self._broker.consume(queue, self._receiver(priority, queue), prefetch=self._prefetch)
            )
        self._cancellations = await self._broker.listen(_CANCELLATIONS, self._hear_of_cancellation, lambda: None)
        self._feeder = asyncio.create_task(self._feed(), name="worker-feeder")

    async def stop(self, *, drain_seconds: float) -> None:
        """Take nothing more, finish what runs for `drain_seconds` at most, hand the rest back at once."""
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.gather(self._feeder, return_exceptions=True)
        await asyncio.gather(*self._settling, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self._subscriptions))
        if self._cancellations is not None:
            await self._cancellations.close()
        self._inbox.clear()  # closing has given them back
        if self._running:
            await asyncio.wait(self._running, timeout=drain_seconds)
        with suppress(TimeoutError):  # what is claimed while nobody waits for it any more would be with nobody
            async with asyncio.timeout(_LAST_CLAIMS_SECONDS):
                await self._claims.drained()
        self._attempts.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    # --- messages ----------------------------------------------------------------------------------------

    def _receiver(self, priority: Priority, queue: Queue) -> Callable[[Delivery], None]:
        def receive(delivery: Delivery) -> None:
            metrics.messages_consumed.labels(queue, str(delivery.redelivered).lower()).inc()
            try:
                every = asked_for(delivery)
            except MalformedMessage as fault:
                message_id = delivery.message.message_id
                log.warning("a message cannot be read; set aside", error=str(fault), message_id=message_id)
                metrics.messages_set_aside.labels(queue).inc()
                self._settle(delivery.set_aside())
                return
            for asked in every:
                self._inbox.put(priority, asked)

        return receive

    def _hear_of_cancellation(self, message: Message) -> None:
        """A hint, so that a cancelled engine call ends at once: the renewal of leases, which decides, comes sooner."""
        try:
            cancelled = JobsChanged.decode(message.body)
        except MalformedMessage as fault:
            metrics.messages_set_aside.labels("job.events").inc()
            log.warning("an event cannot be read", error=str(fault), message_id=message.message_id)
            return
        self._leases.doubt({change.job_id for change in cancelled.changes})

    def _give_back(self, asked: Asked) -> None:
        metrics.claims.labels("given_back").inc()
        self._settle(asked.settle(Fate.UNWANTED))

    def _settle(self, settling: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(settling)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    # --- slots -------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        while True:
            await self._free_slots.acquire()
            try:
                asked = await self._inbox.next()
            except asyncio.CancelledError:
                self._free_slots.release()
                raise
            task = asyncio.create_task(self._serve(asked))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._free_slots.release()
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("an attempt ended without a conclusion; its lease will run out", exc_info=fault)

    async def _serve(self, asked: Asked) -> None:
        job_id = str(asked.released.job_id)
        try:
            claim = await self._claim(asked.released)
        except asyncio.CancelledError:
            self._give_back(asked)
            raise
        except (Unavailable, Locked):
            self._give_back(asked)
            log.warning("a job could not be claimed; its message is given back", job_id=job_id)
            return
        except Exception:
            log.exception("a job cannot be claimed; its message is set aside", job_id=job_id)
            metrics.messages_set_aside.labels(asked.queue).inc()
            self._settle(asked.settle(Fate.IMPOSSIBLE))
            return
        self._settle(asked.settle(Fate.DONE))
        metrics.claims.labels("claimed" if claim else "stale").inc()
        if claim is not None:
            if claim.first_wait_seconds is not None:
                started = metrics.submit_to_start_seconds.labels(claim.type, claim.priority.name.lower())
                started.observe(claim.first_wait_seconds)
            await self._attempts.run(claim)

    async def _claim(self, released: Released) -> Claim | None:
        """Claim, asking again with the same id when the answer was lost, or the job locked."""
        wanted = Wanted(job_id=released.job_id, release_no=released.release_no, claim_id=new_id())
        for pause in _CLAIM_PAUSES_SECONDS:
            try:
                return await self._claims.add(wanted)
            except (Unavailable, Locked):
                await asyncio.sleep(pause)
        return await self._claims.add(wanted)

    async def _claim_all(self, wanted: Sequence[Wanted], lock_seconds: float | None) -> Sequence[Claim | Locked | None]:
        async with self._database.begin(lock_seconds=lock_seconds) as tx:
            return await claims.claim(tx, self._identity, wanted, lease_seconds=self._leases.lease_seconds)
