"""Messages on their way to the broker: none is lost, none is taken by two pollers at once."""

import asyncio
from collections.abc import Mapping, Sequence

from sqlalchemy import select, update

from imprimatur.broker import EVENTS
from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Claim, Happening, State
from imprimatur.storage import clock, conclusions, outbox, schema, webhooks
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion, Ending
from imprimatur.storage.database import Database, OutboxRow
from imprimatur.storage.transitions import move
from imprimatur.storage.webhooks import SealedSecret
from imprimatur.wire.messages import JobChange, JobsChanged
from tests import makers

CALLBACK = "https://ads.example/hook"


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
    claim = await makers.running(database, tenant, callback_url=CALLBACK)
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    await makers.conclude(database, claim, Happening.COMPLETED)
    [row] = written
    assert (row.exchange, row.routing_key, row.stored) == (EVENTS, "outcome.succeeded", True)
    assert JobsChanged.decode(row.body).changes == [
        JobChange(job_id=claim.job_id, tenant_id=tenant, version=3, state=State.SUCCEEDED)
    ]


async def test_an_outcome_is_stored_only_where_somebody_wants_to_hear_of_it(database: Database) -> None:
    """By a callback, or by an endpoint of the tenant's that is not deleted; whoever watches is told all the same."""
    nobody, everything, deleted = [await makers.make_tenant(database) for _ in range(3)]
    async with database.begin() as tx:
        for tenant in (everything, deleted):
            secret = SealedSecret(id=new_id(), tenant_id=tenant, ciphertext=b"sealed")
            made = await webhooks.create_endpoint(
                tx, tenant, url=CALLBACK, description="", event_types=(), secret=secret
            )
        await webhooks.delete_endpoint(tx, deleted, made.id)
    wishes = [(nobody, ""), (nobody, CALLBACK), (everything, ""), (deleted, ""), (deleted, CALLBACK)]
    held = [await makers.running(database, tenant, callback_url=url) for tenant, url in wishes]
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    await conclude(database, dict.fromkeys(held, Happening.COMPLETED))
    told = {(row.routing_key, row.stored): JobsChanged.decode(row.body).changes for row in written}
    assert {how: {one.job_id for one in changes} for how, changes in told.items()} == {
        ("outcome.succeeded", True): {held[place].job_id for place in (1, 2, 4)},
        ("state.succeeded", False): {held[place].job_id for place in (0, 3)},
    }
    assert len(written) == 2
    async with database.read() as reader:
        pending = select(schema.job_events.c.job_id).where(schema.job_events.c.webhook_pending)
        found = (await reader.connection.execute(pending)).scalars().all()
    assert sorted(found) == sorted(held[place].job_id for place in (1, 2, 4))


async def conclude(database: Database, ways: Mapping[Claim, Happening]) -> None:
    async with database.begin() as tx:
        await conclusions.conclude(
            tx,
            [
                Ending(
                    claim=claim,
                    conclusion=Conclusion(happening=way, outcome=AttemptOutcome.SUCCEEDED),
                    spent=Spent(),
                )
                for claim, way in ways.items()
            ],
        )


async def test_what_happens_to_many_jobs_in_one_way_is_one_message(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    owners = (tenant, other, tenant, tenant)
    held = [await makers.running(database, owner, callback_url=CALLBACK) for owner in owners]
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    ways = [Happening.COMPLETED, Happening.COMPLETED, Happening.HANDED_BACK, Happening.COMPLETED]
    await conclude(database, dict(zip(held, ways, strict=True)))
    told = {row.routing_key: JobsChanged.decode(row.body).changes for row in written}
    assert len(told) == len(written) == 2
    assert in_order(told["outcome.succeeded"]) == [
        JobChange(job_id=one.job_id, tenant_id=one.tenant_id, version=3, state=State.SUCCEEDED)
        for one in (held[0], held[1], held[3])
    ]
    assert told["state.handed_back"] == [
        JobChange(job_id=held[2].job_id, tenant_id=tenant, version=3, state=State.QUEUED)
    ]
    assert [row.id for row in await lease(database)][-1:] == [row.id for row in written if row.stored]


async def test_no_message_tells_of_more_than_256_jobs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    submitted = await makers.submit(
        database, *(makers.new_job(tenant, callback_url=CALLBACK) for _ in range(260)), release_at_once=0
    )
    async with database.begin() as tx:
        await move(tx, Happening.CANCELLED, schema.jobs.c.tenant_id == tenant)
    for kind, stored in (("state.submitted", False), ("outcome.cancelled", True)):
        told = [(row.stored, JobsChanged.decode(row.body).changes) for row in written if row.routing_key == kind]
        assert [(kept, len(changes)) for kept, changes in told] == [(stored, 256), (stored, 4)]
        assert sorted(one.job_id for _, changes in told for one in changes) == [job.id for job in submitted]
    assert len(await lease(database)) == await backlog(database) == 2


def in_order(changes: Sequence[JobChange]) -> list[JobChange]:
    return sorted(changes, key=lambda change: change.job_id)
