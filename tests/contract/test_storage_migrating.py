"""What a migration does to what is there, and that processes of the version before go on meanwhile."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Row, select, update

from imprimatur.errors import ConfigurationError, Unavailable
from imprimatur.job import Claim, Happening
from imprimatur.storage import migrations
from imprimatur.storage.database import Database
from imprimatur.storage.migrations import online
from imprimatur.storage.schema import human_decisions, job_events, jobs
from tests import makers
from tests.conftest import MakePostgresURL
from tests.contract.leasing import renew
from tests.contract.test_storage_people import decide


async def test_who_waited_for_a_person_before_that_was_noted_has_waited_all_the_time(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    since = await referred_at(database)
    await go_back(database)
    await migrations.upgrade(database)
    assert await awaited_since(database) == since
    assert list(since) == [job.id]


async def test_a_decision_of_before_says_what_it_was_about(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    await decide(database, job, reviewer="ada")
    described = await decisions(database)
    described_by = ("job_type", "subject_id", "input_hash", "submitted_by", "policy_triggered")
    async with database.begin() as tx:
        kept_by = "keep_rows ON human_decisions" if database.on_postgresql else "no_update"
        await tx.connection.exec_driver_sql(f"DROP TRIGGER human_decisions_{kept_by}")
        await tx.connection.execute(update(human_decisions).values(dict.fromkeys(described_by)))
        await tx.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0006'")
    await migrations.upgrade(database)
    [found] = await decisions(database)
    assert [found] == described
    assert (found.subject_id, found.input_hash) == (job.subject_id, hashlib.sha256(b"a creative").digest())


async def decisions(database: Database) -> list[Row[Any]]:
    async with database.read() as reader:
        return list((await reader.connection.execute(select(human_decisions))).all())


async def go_back(database: Database) -> None:
    """To the schema before it was noted since when people are awaited."""
    async with database.begin() as tx:
        await tx.connection.exec_driver_sql("DROP INDEX ix_jobs_awaiting_since")
        await tx.connection.exec_driver_sql("DROP INDEX ix_jobs_waiting")
        await tx.connection.exec_driver_sql("ALTER TABLE jobs DROP COLUMN awaiting_since")
        await tx.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0004'")


async def referred_at(database: Database) -> dict[uuid.UUID, datetime]:
    referred = select(job_events.c.job_id, job_events.c.at).where(job_events.c.kind == Happening.REFERRED)
    async with database.read() as reader:
        return {row.job_id: row.at for row in await reader.connection.execute(referred)}


async def awaited_since(database: Database) -> dict[uuid.UUID, datetime | None]:
    async with database.read() as reader:
        rows = await reader.connection.execute(select(jobs.c.id, jobs.c.awaiting_since))
        return {row.id: row.awaiting_since for row in rows}


@pytest.fixture
async def old(postgresql_url: MakePostgresURL) -> AsyncIterator[Database]:
    """A database on PostgreSQL with the schema of before."""
    opened = Database(postgresql_url())
    await go_back(opened)
    yield opened
    await opened.close()


@asynccontextmanager
async def open_transaction(database: Database, *statements: str) -> AsyncIterator[None]:
    """Somebody who keeps one open inside the block, which sees the tables as they are now."""
    async with database.engine.connect() as other:
        await other.execution_options(isolation_level="REPEATABLE READ")
        for statement in ("SELECT 1 FROM tenants", *statements):
            await other.exec_driver_sql(statement)
        yield


async def ask(database: Database, query: str) -> object:
    async with database.read() as reader:
        return (await reader.connection.exec_driver_sql(query)).scalar()


_HALF_BUILT = "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_jobs_awaiting_since')"
_SEND_AWAY = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%'"


async def test_the_work_goes_on_while_an_index_is_built_and_a_migration_killed_then_is_run_again(old: Database) -> None:
    tenant = await makers.make_tenant(old)
    async with open_transaction(old):
        migration = asyncio.create_task(migrations.upgrade(old))
        await makers.until(lambda: _is_true(old, _HALF_BUILT))
        [job] = await makers.submit(old, makers.new_job(tenant))
        claim = await makers.claim(old, job)
        assert isinstance(claim, Claim)
        assert await renew(old, claim)
        assert not migration.done()
        assert await ask(old, _SEND_AWAY)
        with pytest.raises(Unavailable):
            await migration
        assert await ask(old, _HALF_BUILT)
    with pytest.raises(ConfigurationError, match="imprimatur migrate"):
        await migrations.require_current(old)
    await migrations.upgrade(old)
    await migrations.require_current(old)
    assert await ask(old, _HALF_BUILT) is False


async def _is_true(database: Database, query: str) -> bool:
    return bool(await ask(database, query))


_COLUMN = "ALTER TABLE jobs ADD COLUMN awaiting_since timestamptz"


async def test_nobody_queues_up_behind_a_migration_that_waits_for_a_table(
    old: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.05)
    told: list[str] = []
    async with open_transaction(old, "SELECT 1 FROM jobs"):
        migration = asyncio.create_task(migrations.upgrade(old, told.append))
        await makers.until(lambda: _told(told, "ALTER TABLE jobs"))
        async with old.begin() as tx:
            await tx.connection.exec_driver_sql("UPDATE jobs SET version = version + 1")
        assert not migration.done()
    await migration
    await migrations.require_current(old)
    assert "(imprimatur, idle in transaction, for " in told[0]


async def test_rows_are_filled_a_batch_at_a_time_from_where_a_killed_migration_was(
    postgresql_url: MakePostgresURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "BATCH_ROWS", 2)
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.05)
    database = Database(postgresql_url())
    try:
        tenant = await makers.make_tenant(database)
        jobs_waiting = [await makers.awaiting(database, tenant) for _ in range(5)]
        since = await referred_at(database)
        await go_back(database)
        async with database.begin() as tx:
            await tx.connection.exec_driver_sql(_COLUMN)  # so far it came
        told: list[str] = []
        in_use = max(job.id for job in jobs_waiting)
        async with open_transaction(database, f"SELECT 1 FROM jobs WHERE id = '{in_use}' FOR UPDATE"):
            migration = asyncio.create_task(migrations.upgrade(database, told.append))
            await makers.until(lambda: _told(told, "waiting for a lock, to do: UPDATE jobs"))
            assert await awaited_since(database) == {**since, in_use: None}
        await migration
        assert await awaited_since(database) == since
    finally:
        await database.close()


async def _told(told: list[str], what: str) -> bool:
    return any(what in sentence for sentence in told)
