"""What tenants spend in a day: counted once for each attempt, by whichever reviewer, and never for nothing."""

import asyncio
import uuid

import pytest
from sqlalchemy import select, update

from imprimatur.budgets import Budget, Used
from imprimatur.errors import NotFound
from imprimatur.job import AttemptOutcome, Claim, Happening
from imprimatur.storage import conclusions, schema, spending
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Ending
from imprimatur.storage.database import Database
from tests import makers

SPENT = Spent(engine="test", input_tokens=1000, output_tokens=100, cost_micros=7)


async def used(database: Database, tenant: uuid.UUID) -> Used:
    async with database.read() as reader:
        return (await spending.of_tenant(reader, tenant))[1]


async def book(database: Database, held: Claim, spent: Spent = SPENT) -> None:
    """What a worker does whose job is somebody else's by now."""
    async with database.begin() as tx:
        await conclusions.book(tx, [Ending(claim=held, conclusion=_ANY, spent=spent)])


_ANY = conclusions.Conclusion(happening=Happening.CANCELLED, outcome=AttemptOutcome.CANCELLED, spends_attempt=False)


async def test_every_end_counts_tokens_in_and_out_and_their_cost_for_its_tenant(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    assert await used(database, acme) == Used()
    for happening in (Happening.COMPLETED, Happening.REFERRED, Happening.RETRY_SCHEDULED, Happening.HANDED_BACK):
        await makers.conclude(database, await makers.running(database, acme), happening, spent=SPENT)
    assert await used(database, acme) == Used(tokens=4400, cost_micros=28)
    assert await used(database, globex) == Used()


async def test_ends_that_are_written_together_are_counted_together(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    held = [await makers.running(database, tenant) for tenant in (acme, globex, acme)]
    async with database.begin() as tx:
        await conclusions.book(tx, [Ending(claim=one, conclusion=_ANY, spent=SPENT) for one in held])
    assert await used(database, acme) == Used(tokens=2200, cost_micros=14)
    assert await used(database, globex) == Used(tokens=1100, cost_micros=7)


async def test_what_is_booked_twice_counts_once_and_what_comes_on_top_is_added(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await makers.running(database, tenant)
    for _ in range(3):
        await book(database, held)
    assert await used(database, tenant) == Used(tokens=1100, cost_micros=7)
    await book(database, held, Spent(engine="test", input_tokens=2000, output_tokens=100, cost_micros=9))
    assert await used(database, tenant) == Used(tokens=2100, cost_micros=9)
    await book(database, held, Spent())
    assert await used(database, tenant) == Used(tokens=2100, cost_micros=9)


async def test_a_worker_that_was_given_up_is_counted_when_it_comes_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await makers.running(database, tenant)
    await makers.cancel(database, await makers.find(database, tenant, held.job_id))
    assert await used(database, tenant) == Used()
    await book(database, held)
    assert await used(database, tenant) == Used(tokens=1100, cost_micros=7)


async def test_many_reviewers_at_once_lose_no_count(database: Database) -> None:
    tenants = [await makers.make_tenant(database) for _ in range(3)]
    held = [await makers.running(database, tenant) for tenant in tenants for _ in range(8)]
    await asyncio.gather(*(book(database, one) for one in held), *(book(database, one) for one in held))
    for tenant in tenants:
        assert await used(database, tenant) == Used(tokens=8800, cost_micros=56)


async def test_a_new_day_begins_at_nothing(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await book(database, await makers.running(database, tenant))
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.spending).values(day=schema.spending.c.day - 1))
    assert await used(database, tenant) == Used()
    await book(database, await makers.running(database, tenant))
    assert await used(database, tenant) == Used(tokens=1100, cost_micros=7)


async def test_the_day_is_that_of_utc_by_the_databases_clock(database: Database) -> None:
    await book(database, await makers.running(database, await makers.make_tenant(database)))
    async with database.read() as reader:
        row = (await reader.connection.execute(select(schema.spending.c.day))).one()
        job = (await reader.connection.execute(select(schema.jobs.c.created_at))).one()
    assert row.day - job.created_at.toordinal() + 719163 in {0, 1}  # midnight may lie between the two


async def test_what_costs_nothing_leaves_no_trace(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await makers.conclude(database, await makers.running(database, tenant), Happening.COMPLETED, spent=Spent())
    async with database.read() as reader:
        assert (await reader.connection.execute(select(schema.spending))).all() == []


async def test_a_budget_is_set_shown_and_taken_back(database: Database) -> None:
    await makers.make_tenant(database, "acme")
    for budget in (Budget(daily_tokens=10**12, daily_cost_micros=0), Budget(daily_cost_micros=1), Budget()):
        async with database.begin() as tx:
            await spending.put_budget(tx, "acme", budget)
            assert await spending.by_name(tx, "acme") == (budget, Used())
    async with database.begin() as tx:
        with pytest.raises(NotFound, match="initech"):
            await spending.by_name(tx, "initech")
        with pytest.raises(NotFound, match="initech"):
            await spending.put_budget(tx, "initech", Budget())
