"""What waits in the outbox while the broker is away goes out when it is back, whoever took it up meanwhile."""

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import func, select

from imprimatur import outbox as publishing
from imprimatur.broker import Message, Queue, memory
from imprimatur.broker.memory import MemoryBroker
from imprimatur.outbox import Outbox
from imprimatur.storage.database import Database
from imprimatur.storage.schema import outbox
from tests import makers
from tests.contract.polling import eventually

#: So long a lease that no test sees its end.
FOR_EVER_SECONDS = 3600.0


class Counting(MemoryBroker):
    """Says how often it was asked to take a message."""

    tried = 0

    async def publish(self, message: Message) -> None:
        """As of any broker."""
        self.tried += 1
        await super().publish(message)


async def test_a_lease_taken_while_the_broker_is_away_does_not_outlast_that(database: Database) -> None:
    broker = Counting()
    sending = Outbox(database, broker, left_behind_after_seconds=0.0, lease_seconds=FOR_EVER_SECONDS, poll_seconds=0.01)
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(5)))  # by a writer that is gone
    sending.start()
    await eventually(lambda: broker.tried >= 3)
    assert await _rows(database) == 5
    await broker.start()
    await makers.until(lambda: _is_empty(database))
    assert await broker.depth(Queue.REVIEW_NORMAL) == 5
    await sending.stop()
    await broker.close()


async def test_a_broker_in_memory_that_is_full_leaves_messages_in_the_outbox(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_READY", 3)
    broker = Counting()
    await broker.start()
    sending = Outbox(database, broker, left_behind_after_seconds=0.0, poll_seconds=0.01)
    sending.start()
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(5)))
    await makers.until(lambda: _has_rows(database, 2))
    assert await broker.depth(Queue.REVIEW_NORMAL) == 3
    await broker.consume(Queue.REVIEW_NORMAL, lambda _delivery: None, prefetch=0)
    await makers.until(lambda: _is_empty(database))
    await sending.stop()
    await broker.close()


async def test_confirmed_rows_that_find_no_room_to_be_forgotten_are_published_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_WAITING_ROWS", 2)
    broker = Counting()
    await broker.start()
    sending = Outbox(database, broker, left_behind_after_seconds=0.0, lease_seconds=0.05, poll_seconds=0.01)
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(6)))  # by a writer that is gone
    before = _failures()
    sending.start()
    await makers.until(lambda: _is_empty(database))
    assert broker.tried > 6
    assert _failures() == before
    await sending.stop()
    await broker.close()


def _failures() -> float:
    counts = (
        REGISTRY.get_sample_value("imprimatur_background_failures_total", {"loop": loop})
        for loop in ("outbox", "outbox-poller")
    )
    return sum(count or 0.0 for count in counts)


async def _has_rows(database: Database, number: int) -> bool:
    return await _rows(database) == number


async def _rows(database: Database) -> int:
    async with database.read() as reader:
        return (await reader.connection.execute(select(func.count()).select_from(outbox))).scalar_one()


async def _is_empty(database: Database) -> bool:
    return await _rows(database) == 0
