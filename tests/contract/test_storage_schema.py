"""The migrations make exactly the tables that the code believes in, on both databases."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from imprimatur.errors import ConfigurationError
from imprimatur.storage import migrations
from imprimatur.storage.database import Database
from imprimatur.storage.schema import metadata
from tests.conftest import MakePostgresURL


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


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


def _partial_indexes(connection: Connection) -> set[str]:
    if connection.dialect.name == "postgresql":
        query = "SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL"
    else:
        query = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'"
    return set(connection.exec_driver_sql(query).scalars())
