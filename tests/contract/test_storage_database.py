"""Transactions, faults and time, on both databases."""

import asyncio
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Float, cast, func, select, text
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from imprimatur.errors import Locked, Unavailable
from imprimatur.identity import new_id
from imprimatur.storage import acceptance, clock, schema, tenants
from imprimatur.storage.database import Database, OutboxRow, Transaction
from tests import makers


async def test_what_a_failing_block_wrote_is_rolled_back_and_nothing_is_handed_over(database: Database) -> None:
    handed_over: list[OutboxRow] = []
    database.on_commit = handed_over.extend
    tenant = await makers.make_tenant(database)

    async def fail() -> None:
        async with database.begin() as tx:
            await acceptance.submit(tx, [makers.new_job(tenant)], release_at_once=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert handed_over == []
    async with database.read() as reader:
        assert (await reader.connection.execute(select(func.count()).select_from(schema.jobs))).scalar_one() == 0


async def test_messages_are_handed_over_after_the_commit(database: Database) -> None:
    committed: list[tuple[int, int]] = []

    def look(rows: Sequence[OutboxRow]) -> None:
        committed.append((len(rows), sum(row.stored for row in rows)))

    database.on_commit = look
    tenant = await makers.make_tenant(database)
    assert committed == []  # a transaction without messages hands nothing over
    await makers.submit(database, makers.new_job(tenant))
    assert committed == [(2, 1)]  # "queued" is broadcast, the request to review is stored


async def test_a_cancelled_transaction_is_rolled_back_and_the_next_one_works(database: Database) -> None:
    inside = asyncio.Event()

    async def never_ends() -> None:
        async with database.begin() as tx:
            await tenants.create_tenant(tx, "undone")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(never_ends())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.begin() as tx:
        assert await tenants.find_tenant(tx, "undone") is None
        await tenants.create_tenant(tx, "done")


async def test_readers_see_what_is_committed_while_a_transaction_is_open(database: Database) -> None:
    async with database.begin() as tx:
        await tenants.create_tenant(tx, "acme")
        async with database.read() as reader:
            assert await tenants.find_tenant(reader, "acme") is None
    async with database.read() as reader:
        assert await tenants.find_tenant(reader, "acme") is not None


async def test_each_statement_of_one_reader_sees_the_newest_commit(database: Database) -> None:
    async with database.read() as reader:
        assert await tenants.find_tenant(reader, "acme") is None
        await makers.make_tenant(database, "acme")
        assert await tenants.find_tenant(reader, "acme") is not None


async def test_an_unreachable_database_is_unavailable_soon() -> None:
    database = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    try:
        async with asyncio.timeout(20.0):  # shorter than whatever might be waited for
            with pytest.raises(Unavailable):
                async with database.begin():
                    pytest.fail("there is no database")
            with pytest.raises(Unavailable):
                await database.ping()
    finally:
        await database.close()


async def test_a_database_that_answers_has_a_ping(database: Database) -> None:
    await database.ping()


# --- what others have locked -----------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_transaction_waits_for_what_is_locked_as_long_as_it_was_told_and_the_next_one_as_usual(
    database: Database,
) -> None:
    await makers.make_tenant(database)
    one = select(schema.tenants.c.id).with_for_update()
    async with database.begin() as tx:
        usual = await patience_of(tx)
    async with database.begin() as tx:
        await tx.connection.execute(one)
        with pytest.raises(Locked):
            async with database.begin(lock_seconds=0.001) as waiting:
                await waiting.connection.execute(one)
    async with database.begin(lock_seconds=0.25) as tx:
        assert await patience_of(tx) == "250ms"
    async with database.begin() as tx:
        assert await patience_of(tx) == usual == "5s"


async def patience_of(tx: Transaction) -> str:
    return str((await tx.connection.execute(text("SHOW lock_timeout"))).scalar_one())


# --- what an error says ----------------------------------------------------------------------------------

SECRET = "a-value-that-nobody-may-see"


async def test_no_value_is_in_the_text_or_the_trace_of_an_error(database: Database) -> None:
    good = {"id": new_id(), "name": SECRET, "policy_version": 1, "created_at": clock.now()}
    twice = {**good, "id": new_id()}
    for rows in (
        [good, twice],  # a name that is taken
        [{**good, "policy_version": None}],
        [{**good, "id": SECRET}],
        [{**good, "name": [SECRET]}],
        [{**good, "name": f"{SECRET}\udce4"}],  # what has no UTF-8
    ):
        with capture_logs() as logged, pytest.raises(Exception, match=r"\S") as caught:  # noqa: PT012  # one transaction
            async with database.begin() as tx:
                for row in rows:
                    await tx.connection.execute(schema.tenants.insert().values(row))
        trace = "".join(traceback.format_exception(caught.value))
        assert SECRET not in f"{caught.value}{trace}{logged}", rows


async def test_no_value_is_logged_of_a_statement_that_the_database_cannot_serve_now(database: Database) -> None:
    takes_too_long = "SELECT pg_sleep(5), CAST(:secret AS text)" if database.on_postgresql else "SELECT :secret FROM no"
    hurried = Database(database.engine.url.render_as_string(hide_password=False), command_timeout_seconds=0.1)
    with capture_logs() as logged, pytest.raises(Unavailable) as caught:  # one transaction
        async with hurried.begin() as tx:
            await tx.connection.execute(text(takes_too_long), {"secret": SECRET})
    await hurried.close()
    assert [entry["event"] for entry in logged] == ["the database cannot serve now"]
    assert SECRET not in f"{caught.value}{''.join(traceback.format_exception(caught.value))}{logged}"


# --- time ------------------------------------------------------------------------------------------------


async def test_time_is_aware_utc_and_close_to_ours(database: Database) -> None:
    async with database.read() as reader:
        before = datetime.now(UTC)
        seen = await clock.present(reader)
        after = datetime.now(UTC)
    assert seen.utcoffset() == timedelta(0)
    assert before - timedelta(milliseconds=2) <= seen <= after + timedelta(milliseconds=2)


async def test_time_goes_on_inside_a_transaction(database: Database) -> None:
    async with database.begin() as tx:
        first = await clock.present(tx)
        second = first
        while second == first:  # the function's own resolution: microseconds or milliseconds
            second = await clock.present(tx)
    assert first < second < first + timedelta(seconds=2)


@pytest.mark.parametrize("seconds", [0.0, 0.25, 3.0, -10.0, 86_400.0 * 365])
async def test_seconds_can_be_added_and_taken_apart_again(database: Database, seconds: float) -> None:
    start = datetime(2024, 2, 29, 23, 59, 59, 123_456, tzinfo=UTC)
    later = clock.after(seconds, start=cast(start, clock.Instant()))
    async with database.read() as reader:
        shifted, between = (
            await reader.connection.execute(
                select(later, cast(clock.seconds_between(later, cast(start, clock.Instant())), Float))
            )
        ).one()
    assert shifted == start + timedelta(seconds=seconds)
    assert between == pytest.approx(seconds)


async def test_an_instant_without_a_time_zone_is_refused(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    with pytest.raises(Exception, match="naive"):
        await makers.submit(database, makers.new_job(tenant, run_at=datetime(2030, 1, 1)))
