"""Servers for every test: a private PostgreSQL, SQLite files, a migrated, empty schema in each; a private RabbitMQ."""

import asyncio
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import settings

from deploy.local.postgres import PrivatePostgres
from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur.storage import migrations
from imprimatur.storage.database import Database
from imprimatur.storage.schema import metadata

#: Makes a database on the private PostgreSQL and returns its URL. `migrated=False` leaves it without tables.
MakePostgresURL = Callable[..., str]

_TEMPLATE = "imprimatur_template"
#: Whoever is still connected is sent away first, with what they hold locked.
_EMPTY = ";".join(
    [
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "SET session_replication_role = replica",  # else the audit trail refuses
        *(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables)),
    ]
)

#: What the engine's own children are told. On a busy machine two threads wait for each other at each small matrix, and
#: take twelve times as long. It is read when numpy is imported, and our processes are told nothing.
_BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
with pytest.MonkeyPatch.context() as environment:
    for name in _BLAS_THREADS:
        environment.setenv(name, "1")
    import_module("numpy")

# How long one example takes depends on what else the machine does.
settings.register_profile("imprimatur", deadline=None)
settings.load_profile("imprimatur")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell that starts the tests in the background has SIGINT ignored, and so would their processes."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """A private server that lives as long as the test session. Tests that hurt servers start their own."""
    folder = tmp_path_factory.mktemp("postgresql")
    with PrivatePostgres.start(folder, fsync=False, max_connections=200) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    """A private node. A test that hurts it heals it before it ends."""
    with PrivateRabbitMQ.start(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql: PrivatePostgres) -> str:
    """What to copy a migrated, empty database from, as CREATE DATABASE wants it said."""
    _wait_for(_migrate(postgresql.create_database(_TEMPLATE)))
    version = int(str(_wait_for(_ask(postgresql.dsn, "SHOW server_version_num"))))
    # Copying files takes a sixth of the time of the default, which PostgreSQL 15 brought.
    return f"TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY" if version >= 150_000 else f"TEMPLATE {_TEMPLATE}"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _wait_for(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def postgresql_url(postgresql: PrivatePostgres, postgresql_template: str) -> Iterator[MakePostgresURL]:
    """Makes databases for tests that start whole services; drops them afterwards, whoever is connected."""
    made: list[str] = []

    def make(*, migrated: bool = True) -> str:
        name = f"test_{uuid.uuid4().hex}"
        template = postgresql_template if migrated else "TEMPLATE template0"
        _wait_for(_execute(postgresql.dsn, f"CREATE DATABASE {name} {template}"))
        made.append(name)
        return postgresql.url(name)

    yield make
    for name in made:
        _wait_for(_execute(postgresql.dsn, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite database of the test's own."""
    shutil.copy(sqlite_template, tmp_path / "test.db")
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(scope="session")
def emptied_postgresql(postgresql: PrivatePostgres, postgresql_template: str) -> str:
    """A database for one test after the other: to empty one is ten times as fast as to copy one."""
    _wait_for(_execute(postgresql.dsn, f"CREATE DATABASE emptied {postgresql_template}"))
    return postgresql.url("emptied")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a migrated, empty database that no other test uses meanwhile, once of each kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
    else:
        url: str = request.getfixturevalue("emptied_postgresql")
        yield url
        _wait_for(_execute(url, _EMPTY))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated, empty database, once of each kind."""
    opened = Database(database_url)
    try:
        yield opened
    finally:
        await opened.close()


async def _migrate(url: str) -> None:
    database = Database(url)
    try:
        await migrations.upgrade(database)
    finally:
        await database.close()


async def _ask(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def _execute(dsn: str, statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


def _wait_for(work: Coroutine[object, object, object]) -> object:
    """Run to the end in a thread of its own, since the caller may be inside a running loop or not."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
