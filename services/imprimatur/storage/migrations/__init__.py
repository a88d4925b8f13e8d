"""The schema's versions, and the one way to apply them.

How a migration changes a big table that others use is `online`.
"""

import asyncio
from collections.abc import Callable
from importlib.resources import files

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection

from imprimatur.errors import ConfigurationError, Unavailable
from imprimatur.storage.database import Database
from imprimatur.storage.migrations import online

log = structlog.get_logger(__name__)

#: Whoever wants a table after us queues up behind us while we wait for it: so we wait shortly, and again.
LOCK_SECONDS = 2.0
_PAUSE_SECONDS = 1.0
_MOST_TRIES = 200
#: lock_not_available, deadlock_detected.
_HELD_UP = ("55P03", "40P01")
_TURN = text("SELECT pg_try_advisory_lock(7315201)")
_TURN_SECONDS = 0.2


def _note(sentence: str) -> None:
    log.info("migrating", step=sentence)


async def upgrade(database: Database, tell: Callable[[str], None] = _note) -> None:
    """Bring the schema to the newest version. Safe to run from several processes at once, and again after one that
    was killed at any point.

    Args:
        tell: is told what is done that may take long, and what is waited for.

    Raises:
        Unavailable: the database is out of reach, or others kept a lock for minutes.
    """
    if database.on_postgresql:
        async with database.migrating(lock_seconds=LOCK_SECONDS) as connection:
            await _take_turn(connection, tell)
            await _upgrade_when_let(connection, tell)
    else:
        async with database.begin() as tx:
            await tx.connection.run_sync(_upgrade, tell)


async def require_current(database: Database) -> None:
    """Make sure that the schema is the one this code was written for.

    Raises:
        ConfigurationError: it is another.
        Unavailable: the database is out of reach.
    """
    async with database.read() as reader:
        found = await reader.connection.run_sync(_revision)
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found != wanted:
        raise ConfigurationError(
            f"the database schema is at {found or 'nothing'}, this version needs {wanted}: run `imprimatur migrate`"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files(__package__)))
    return config


async def _take_turn(connection: AsyncConnection, tell: Callable[[str], None]) -> None:
    """One migrates at a time, to the end of its connection. We ask again and again: in a statement that waits, an
    index being built would wait for us."""
    told = False
    while True:
        ours = (await connection.execute(_TURN)).scalar_one()
        await connection.commit()
        if ours:
            return
        if not told:
            tell("another migration of this database is under way; waiting for its end")
            told = True
        await asyncio.sleep(_TURN_SECONDS)


async def _upgrade_when_let(connection: AsyncConnection, tell: Callable[[str], None]) -> None:
    for tries_left in reversed(range(_MOST_TRIES)):
        await connection.exec_driver_sql("RESET lock_timeout")
        await connection.commit()
        try:
            await connection.run_sync(_upgrade, tell)
        except exc.DBAPIError as fault:
            if getattr(fault.orig, "sqlstate", None) not in _HELD_UP:
                raise
            await connection.rollback()
            others = await connection.run_sync(online.oldest_transactions)
            await connection.rollback()
            wanted = " ".join((fault.statement or "").split())[:100]
            waiting = f"waiting for a lock, to do: {wanted}; open transactions: {others}"
            if not tries_left:
                raise Unavailable(f"gave up {waiting}. It may be run again, and goes on where it was") from fault
            tell(waiting)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return


def _upgrade(connection: Connection, tell: Callable[[str], None]) -> None:
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["tell"] = tell
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
