"""From the outbox to the broker: what a transaction wrote is published after its commit, and again until confirmed.

Each process publishes its own rows at once and deletes them when the broker has them. A poller in each process
takes what a dead or cut-off writer left behind. A message may so be published twice; it is only a hint.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from imprimatur import metrics
from imprimatur.broker import Broker, Message
from imprimatur.errors import BrokerError
from imprimatur.runtime import Loop
from imprimatur.storage import outbox as stored
from imprimatur.storage.database import Database, OutboxRow

log = structlog.get_logger(__name__)

_Item = TypeVar("_Item")

#: Rows in memory at most; more are left to the poller.
_WAITING_ROWS = 20_000
#: Rows published together.
_BATCH = 256
#: Confirmed rows are deleted together so often. A delete that is lost costs a second publish and nothing else.
_FORGET_TOGETHER_SECONDS = 0.2


class Outbox:
    """Publishes what this process commits, and what others left behind.

    Args:
        left_behind_after_seconds: rows older than this have lost their writer and are the poller's.
        lease_seconds: how long the poller may take over the rows it took.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        *,
        left_behind_after_seconds: float = 2.0,
        lease_seconds: float = 15.0,
        poll_seconds: float = 1.0,
    ) -> None:
        self._database = database
        self._broker = broker
        self._left_behind_after_seconds = left_behind_after_seconds
        self._lease_seconds = lease_seconds
        self._waiting: asyncio.Queue[OutboxRow] = asyncio.Queue(maxsize=_WAITING_ROWS)
        self._confirmed: asyncio.Queue[uuid.UUID] = asyncio.Queue(maxsize=_WAITING_ROWS)
        self._tasks: list[asyncio.Task[None]] = []
        self._poller = Loop("outbox-poller", self._poll, interval_seconds=poll_seconds)

    def start(self) -> None:
        """Begin to publish, this process's commits first."""
        self._database.on_commit = self._offer
        self._tasks = [
            asyncio.create_task(self._for_each_batch(self._waiting, self._publish_all), name="outbox-sender"),
            asyncio.create_task(
                self._for_each_batch(self._confirmed, self._forget, gather_seconds=_FORGET_TOGETHER_SECONDS),
                name="outbox-forgetter",
            ),
        ]
        self._poller.start()

    async def stop(self, *, drain_seconds: float = 2.0) -> None:
        """Publish what waits, for `drain_seconds` at most; the rest stays in the database for others."""
        await self._poller.stop()
        try:
            async with asyncio.timeout(drain_seconds):
                await self._waiting.join()
                await self._confirmed.join()
        except TimeoutError:
            log.warning("messages are left in the outbox", waiting=self._waiting.qsize())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _offer(self, rows: Sequence[OutboxRow]) -> None:
        for row in rows:
            try:
                self._waiting.put_nowait(row)
            except asyncio.QueueFull:  # a stored row is the poller's then; a broadcast is found by re-reading
                return

    async def _for_each_batch(
        self,
        queue: asyncio.Queue[_Item],
        handle: Callable[[Sequence[_Item]], Awaitable[object]],
        *,
        gather_seconds: float = 0.0,
    ) -> None:
        while True:
            batch = [await queue.get()]
            await asyncio.sleep(gather_seconds)
            while len(batch) < _BATCH and not queue.empty():
                batch.append(queue.get_nowait())
            try:
                await handle(batch)
            except Exception:
                metrics.loop_failures.labels("outbox").inc()
                log.exception("outbox rows are left to the poller", rows=len(batch))
            finally:
                for _ in batch:
                    queue.task_done()

    async def _poll(self) -> float | None:
        limit = _BATCH if self._broker.connected else 1  # one, to see whether it is taken all the same
        async with self._database.begin() as tx:
            rows = await stored.lease(
                tx,
                older_than_seconds=self._left_behind_after_seconds,
                lease_seconds=self._lease_seconds,
                limit=limit,
            )
        left = await self._publish_all(rows)
        if left:  # they need not wait for the end of a lease that nobody uses
            async with self._database.begin() as tx:
                await stored.give_back(tx, left)
        async with self._database.read() as reader:
            metrics.outbox_backlog.show(await stored.backlog(reader))
        return 0.0 if len(rows) == limit and not left else None

    async def _publish_all(self, rows: Sequence[OutboxRow]) -> list[uuid.UUID]:
        """Publish together; returns the ids of the rows that the broker did not take."""
        faults = await asyncio.gather(*(self._publish(row) for row in rows))
        left = {row.id: fault for row, fault in zip(rows, faults, strict=True) if fault is not None}
        for row in rows:
            if row.stored and row.id not in left and not self._confirmed.full():  # else it is published twice
                self._confirmed.put_nowait(row.id)
        metrics.outbox_published.labels("confirmed").inc(len(rows) - len(left))
        metrics.outbox_published.labels("failed").inc(len(left))
        if left:
            log.warning("the broker did not take messages", messages=len(left), error=str(next(iter(left.values()))))
        return list(left)

    async def _forget(self, confirmed: Sequence[uuid.UUID]) -> None:
        async with self._database.begin() as tx:
            await stored.remove(tx, confirmed)

    async def _publish(self, row: OutboxRow) -> BrokerError | None:
        message = Message(
            exchange=row.exchange,
            routing_key=row.routing_key,
            body=row.body,
            message_id=str(row.id),
            mandatory=row.stored,
        )
        try:
            await self._broker.publish(message)
        except BrokerError as fault:
            return fault
        return None
