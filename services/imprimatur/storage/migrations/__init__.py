"""The schema's versions, and the one way to apply them."""

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from imprimatur.errors import ConfigurationError
from imprimatur.storage.database import Database


async def upgrade(database: Database) -> None:
    """Bring the schema to the newest version. Safe to run from several processes at once.

    Raises:
        Unavailable: the database is out of reach.
    """
    async with database.begin() as tx:
        await tx.connection.run_sync(_upgrade)


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


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7315201)")
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
