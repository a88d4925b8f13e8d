"""Messages on their way to the broker: none is lost, none is taken by two pollers at once."""

import asyncio

from sqlalchemy import update
from tests import makers

from imprimatur.broker import EVENTS
from imprimatur.job import Happening, State
from imprimatur.storage import clock, outbox, schema
from imprimatur.storage.database import Database, OutboxRow
from imprimatur.wire.messages import JobChanged


async def lease(
    database: Database, *, older_than_seconds: float = -1.0, lease_seconds: float = 30.0, limit: int = 100
) -> list[OutboxRow]:
    async with database.begin() as tx:
        return await outbox.lease(tx, older_than_seconds=older_than_seconds, lease_seconds=lease_seconds, limit=limit)


async def backlog(database: Database) -> int:
    async with database.read() as reader:
        return await outbox.backlog(reader)


async def fill(database: Database, number: int) -> list[OutboxRow]:
    """Rows that their writer did not deliver."""
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(number)))
    return [row for row in written if row.stored]


async def test_a_poller_takes_what_was_written_as_it_was_written(database: Database) -> None:
    written = await fill(database, 3)
    assert await lease(database) == sorted(written, key=lambda row: row.id)


async def test_fresh_rows_are_left_to_their_writer(database: Database) -> None:
    written = await fill(database, 2)
    assert await lease(database, older_than_seconds=2.0) == []
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.outbox).where(schema.outbox.c.id == written[0].id).values(created_at=clock.after(-3.0))
        )
    assert await lease(database, older_than_seconds=2.0) == written[:1]


async def test_a_leased_row_is_not_taken_again_before_its_lease_ends(database: Database) -> None:
    await fill(database, 2)
    assert len(await lease(database, lease_seconds=0.3)) == 2
    assert await lease(database) == []

    async def free_again() -> bool:
        return len(await lease(database)) == 2

    await makers.until(free_again)


async def test_two_pollers_share_the_rows(database: Database) -> None:
    written = await fill(database, 40)
    taken: list[OutboxRow] = []
    for _ in range(3):
        for batch in await asyncio.gather(*(lease(database, limit=8) for _ in range(4))):
            assert len(batch) <= 8
            taken.extend(batch)
    assert len(taken) == len({row.id for row in taken}) == len(written)


async def test_no_more_are_taken_than_asked_for_and_the_oldest_first(database: Database) -> None:
    first = await fill(database, 3)
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.outbox).values(created_at=clock.after(-60.0)))
    second = await fill(database, 3)
    batches = [{row.id for row in await lease(database, limit=3)} for _ in range(3)]
    assert batches == [{row.id for row in first}, {row.id for row in second}, set()]


async def test_what_the_broker_confirmed_is_forgotten(database: Database) -> None:
    written = await fill(database, 3)
    async with database.begin() as tx:
        await outbox.remove(tx, [written[0].id, written[1].id])
        await outbox.remove(tx, [written[0].id])  # twice is harmless
        await outbox.remove(tx, [])
    assert await backlog(database) == 1
    assert await lease(database) == written[2:]


async def test_outcomes_are_stored_and_other_changes_are_only_broadcast(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    await makers.conclude(database, claim, Happening.COMPLETED)
    [row] = written
    assert (row.exchange, row.routing_key, row.stored) == (EVENTS, "outcome.succeeded", True)
    assert JobChanged.decode(row.body) == JobChanged(
        job_id=claim.job_id, tenant_id=tenant, version=3, state=State.SUCCEEDED
    )
