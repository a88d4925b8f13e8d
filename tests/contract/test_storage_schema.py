"""The migrations make exactly the tables that the code believes in, on both databases."""

import asyncio
import hashlib
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Table, select
from tests import makers
from tests.conftest import MakePostgresURL

from imprimatur.errors import ConfigurationError
from imprimatur.identity import new_id
from imprimatur.job import Happening, State
from imprimatur.storage import clock, jobs, migrations, schema
from imprimatur.storage.database import Database
from imprimatur.storage.schema import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'folder' / 'new.db'}"
    else:
        make: MakePostgresURL = request.getfixturevalue("postgresql_url")
        yield make(migrated=False)


async def test_the_migrated_schema_is_the_one_the_code_declares(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_every_partial_index_is_partial_in_the_database_too(database: Database) -> None:
    """Alembic does not compare the conditions of indexes."""
    declared = {
        index.name
        for table in metadata.tables.values()
        for index in table.indexes
        if index.dialect_options["sqlite"]["where"] is not None
    }
    async with database.engine.connect() as connection:
        assert await connection.run_sync(_partial_indexes) == declared


async def test_a_database_without_tables_is_refused_with_the_command_that_helps(empty_url: str) -> None:
    database = Database(empty_url)
    try:
        with pytest.raises(ConfigurationError, match="imprimatur migrate"):
            await migrations.require_current(database)
    finally:
        await database.close()


async def test_several_processes_may_migrate_at_once_and_again(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(4)]
    try:
        await asyncio.gather(*(migrations.upgrade(database) for database in databases))
        await migrations.upgrade(databases[0])
        await migrations.require_current(databases[0])
    finally:
        for database in databases:
            with suppress(OSError):
                await database.close()


async def test_a_new_file_that_another_is_just_writing_to_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses the change to a write-ahead log at once then, whatever the busy time-out."""
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        database = Database(f"sqlite:///{path}")
        try:
            upgrade = asyncio.create_task(migrations.upgrade(database))
            await asyncio.sleep(0.3)
            assert not upgrade.done()
            other.execute("COMMIT")
            await upgrade
            await migrations.require_current(database)
        finally:
            await database.close()


async def test_who_waited_for_a_person_before_that_was_noted_has_waited_all_the_time(empty_url: str) -> None:
    database = Database(empty_url)
    tenant, job = new_id(), new_id()
    try:
        async with database.begin() as tx:
            await tx.connection.run_sync(_upgrade_to_before, "_since_when_people_are_awaited.py")
            since = await clock.present(tx)
            referred = {
                "job_id": job,
                "version": 3,
                "kind": Happening.REFERRED,
                "state": State.AWAITING_REVIEW,
                "at": since,
                "details": {},
                "webhook_pending": False,
            }
            for table, values in [
                *_submitted(tenant, job, since, {"state": State.AWAITING_REVIEW}),
                (schema.job_events, referred),
            ]:
                await tx.connection.execute(table.insert().values(values))
        await migrations.upgrade(database)
        async with database.read() as reader:
            found = (await reader.connection.execute(select(schema.jobs.c.id, schema.jobs.c.awaiting_since))).one()
        assert (found.id, found.awaiting_since) == (job, since)
    finally:
        await database.close()


async def test_a_decision_of_before_says_what_it_was_about_and_needs_its_job_no_more(empty_url: str) -> None:
    database = Database(empty_url)
    tenant, job = new_id(), new_id()
    try:
        async with database.begin() as tx:
            await tx.connection.run_sync(_upgrade_to_before, "_retention.py")
            for table, values in _decided(tenant, job, await clock.present(tx)):
                await tx.connection.execute(table.insert().values(values))
        await migrations.upgrade(database)
        async with database.begin() as tx:
            await tx.connection.execute(schema.jobs.delete())
            [row] = (await tx.connection.execute(schema.human_decisions.select())).all()
    finally:
        await database.close()
    assert (row.job_id, row.tenant_id, row.reviewer, row.reason) == (job, tenant, "ada", "It is fine.")
    assert (row.job_type, row.subject_id, row.submitted_by) == ("creative_review", "cr-1", "bob")
    assert (row.input_hash, row.policy_triggered) == (hashlib.sha256(b"a creative").digest(), "human_required")


def _upgrade_to_before(connection: Connection, file: str) -> None:
    config = migrations._config()
    config.attributes["connection"] = connection
    [found] = [one for one in ScriptDirectory.from_config(config).walk_revisions() if one.path.endswith(file)]
    assert isinstance(found.down_revision, str)
    command.upgrade(config, found.down_revision)


def _decided(tenant: uuid.UUID, job: uuid.UUID, now: datetime) -> list[tuple[Table, dict[str, object]]]:
    told = {"state": "succeeded", "decision": "approved", "policy_triggered": "human_required"}
    decision = {
        "id": new_id(),
        "job_id": job,
        "tenant_id": tenant,
        "reviewer": "ada",
        "decision": "approved",
        "reason": "It is fine.",
        "ai_recommendation": "",
        "overrides_ai": False,
        "decided_at": now,
    }
    return [*_submitted(tenant, job, now, told), (schema.human_decisions, decision)]


def _submitted(
    tenant: uuid.UUID, job: uuid.UUID, now: datetime, told: Mapping[str, object]
) -> list[tuple[Table, dict[str, object]]]:
    new = replace(makers.new_job(tenant, job_id=job, subject_id="cr-1"), user_id="bob")
    row = {**jobs.FRESH, **jobs._row_of(new, now, fast=False), "updated_at": now, **told}
    return [
        (schema.tenants, {"id": tenant, "name": "acme", "policy_version": 1, "created_at": now}),
        (schema.jobs, row),
    ]


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


def _partial_indexes(connection: Connection) -> set[str]:
    if connection.dialect.name == "postgresql":
        query = "SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL"
    else:
        query = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'"
    return set(connection.exec_driver_sql(query).scalars())
