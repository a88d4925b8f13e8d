"""The connection to the database: transactions, reads, and what its faults mean.

A `Transaction` collects the outbox rows that it writes; after the commit they are handed to whoever
`on_commit` names, so that publishing cannot be forgotten and cannot happen before the commit.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # ships no types
import structlog
from sqlalchemy import URL, event, exc, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from imprimatur.errors import Locked, Unavailable

log = structlog.get_logger(__name__)

#: SQLSTATEs that mean "not now": shutdown, too many connections, lock time-outs, read-only after a failover.
_PASSING_SQLSTATES = ("08", "53", "57", "40001", "40P01", "55P03", "25006", "25P03")

#: SQLSTATEs of who waited for a lock: for too long, or in a circle.
_HELD_UP_SQLSTATES = ("55P03", "40P01")

#: A farewell to PostgreSQL that takes longer is cut short. A call that timed out waits for it before it can be
#: answered, so it must fit between our time limit and the client's.
_FAREWELL_SECONDS = 0.1

_CONNECT_SECONDS = 5.0

#: More than this in a row is not a race for a new file any more.
_MOST_REFUSALS = 10


@dataclass(frozen=True, kw_only=True)
class OutboxRow:
    """A message about a change made in the same transaction.

    `stored` ones are rows of the outbox and reach the broker sooner or later; the others are broadcast once,
    for watchers who would find the change by themselves a little later.
    """

    id: uuid.UUID
    exchange: str
    routing_key: str
    body: bytes
    stored: bool


@dataclass(kw_only=True)
class Reader:
    """One connection to read with."""

    connection: AsyncConnection

    @property
    def on_postgresql(self) -> bool:
        """Which of two spellings to use."""
        return self.connection.dialect.name == "postgresql"


@dataclass(kw_only=True)
class Transaction(Reader):
    """One write transaction, with the outbox rows it has written."""

    outbox: list[OutboxRow] = field(default_factory=list)


class Database:
    """Where everything is kept. One per process.

    Args:
        url: "postgresql://user:password@host/name" or "sqlite:////folder/file".
        pool_size: connections kept, PostgreSQL only.
        command_timeout_seconds: the longest that one statement may take, PostgreSQL only.
    """

    def __init__(self, url: str, *, pool_size: int = 10, command_timeout_seconds: float = 5.0) -> None:
        self.on_commit: Callable[[Sequence[OutboxRow]], None] = lambda _rows: None
        self._url = make_url(url)
        self.on_postgresql = self._url.get_backend_name() == "postgresql"
        if self.on_postgresql:
            self._writer = self._reader = _postgresql(self._url, pool_size, command_timeout_seconds)
        else:
            self._writer = _sqlite(url, writes=True)
            self._reader = _sqlite(url, writes=False)

    @asynccontextmanager
    async def begin(self, *, lock_seconds: float | None = None) -> AsyncIterator[Transaction]:
        """A write transaction: committed at the end of the block, rolled back if it raises.

        Args:
            lock_seconds: how long it waits for each thing that others have locked; None: as long as a statement may
                take. On SQLite nobody else can have anything locked.

        Raises:
            Unavailable: the database is out of reach or refuses for now. Whether a commit under way has
                happened is then unknown.
            Locked: it waited for `lock_seconds`.
        """
        with _faults_explained(lock_seconds):
            async with self._writer.begin() as connection:
                if self.on_postgresql:
                    _driver_of(connection).lock_seconds = lock_seconds
                transaction = Transaction(connection=connection)
                yield transaction
        if transaction.outbox:
            self.on_commit(transaction.outbox)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reader]:
        """A connection for reading; each statement sees what is committed when it runs.

        Raises:
            Unavailable: the database is out of reach.
        """
        with _faults_explained():
            async with self._reader.connect() as connection:
                if self.on_postgresql:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                yield Reader(connection=connection)

    @asynccontextmanager
    async def migrating(self, *, lock_seconds: float) -> AsyncIterator[AsyncConnection]:
        """A connection of its own to change the schema with, PostgreSQL only: each statement may take as long as it
        does, but waits for a lock no longer than `lock_seconds`. The caller commits.

        Raises:
            Unavailable: the database is out of reach.
        """
        engine = _postgresql(self._url, 1, None, lock_seconds=lock_seconds)
        try:
            with _faults_explained():
                async with engine.connect() as connection:
                    yield connection
        finally:
            await engine.dispose()

    async def ping(self, timeout_seconds: float = 1.0) -> None:
        """Ask the database for a sign of life.

        Raises:
            Unavailable: none came within the time.
        """
        try:
            async with asyncio.timeout(timeout_seconds), self.read() as reader:
                await reader.connection.execute(text("SELECT 1"))
        except TimeoutError:
            raise Unavailable("the database does not answer") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()

    @property
    def pool_in_use(self) -> int:
        """Connections checked out now."""
        pool = self._writer.pool
        return pool.checkedout() if isinstance(pool, AsyncAdaptedQueuePool) else 0

    @property
    def pool_size(self) -> int:
        """Connections that may be checked out at once."""
        pool = self._writer.pool
        return pool.size() if isinstance(pool, AsyncAdaptedQueuePool) else 0

    @property
    def engine(self) -> AsyncEngine:
        """The writing engine, for who looks at the schema."""
        return self._writer


class _faults_explained:  # a context manager used as a statement
    """Turns what drivers raise for an unreachable database into Unavailable, and into Locked what they raise for
    whoever waited so long for a lock as it was told to; the rest passes."""

    def __init__(self, lock_seconds: float | None = None) -> None:
        self._lock_seconds = lock_seconds

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, fault: BaseException | None, _trace: object) -> None:
        if fault is not None and self._lock_seconds is not None and _sqlstate_of(fault) in _HELD_UP_SQLSTATES:
            raise Locked(f"others kept locked what was needed for {self._lock_seconds:g} s") from fault
        if fault is not None and is_passing(fault):
            log.warning("the database cannot serve now", error=type(fault).__name__, detail=str(fault)[:200])
            raise Unavailable(
                "the database is out of reach; try again shortly", reason="DATABASE_UNAVAILABLE"
            ) from fault


def is_passing(fault: BaseException) -> bool:
    """Whether a driver's exception means that the same statement may succeed later."""
    if isinstance(fault, exc.DBAPIError):
        if fault.connection_invalidated or isinstance(fault, exc.OperationalError):
            return True
        return _sqlstate_of(fault).startswith(_PASSING_SQLSTATES) or isinstance(fault.orig, TimeoutError | OSError)
    return isinstance(fault, exc.TimeoutError | OSError) and not isinstance(fault, FileNotFoundError)


def _sqlstate_of(fault: BaseException) -> str:
    return getattr(getattr(fault, "orig", None), "sqlstate", None) or ""


class _PostgreSQLConnection(asyncpg.Connection):  # type: ignore[misc]  # ships no types
    """Does not wait long for a server that does not answer. What a statement left behind on it goes on there until
    the server's own `statement_timeout`.

    Attributes:
        lock_seconds: how long the transactions that begin from now on wait for a lock; None: as the server was told.
    """

    lock_seconds: float | None = None

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        """As of any connection. How long a transaction waits for locks is said as it begins, in one round trip."""
        if self.lock_seconds is not None and query.startswith("BEGIN"):
            query += f" SET LOCAL lock_timeout = {max(1, round(self.lock_seconds * 1000))};"
        status: str = await super().execute(query, *args, timeout=timeout)
        return status

    async def close(self, *, timeout: float | None = None) -> None:
        """As of any connection, which cancels what runs on it first."""
        await super().close(timeout=min(timeout or _FAREWELL_SECONDS, _FAREWELL_SECONDS))


def _driver_of(connection: AsyncConnection) -> _PostgreSQLConnection:
    assert connection.sync_connection is not None, "it is open"
    driver = connection.sync_connection.connection.driver_connection
    assert isinstance(driver, _PostgreSQLConnection)
    return driver


def _postgresql(
    url: URL, pool_size: int, command_timeout_seconds: float | None, *, lock_seconds: float | None = None
) -> AsyncEngine:
    """`command_timeout_seconds` limits whatever has no limit of its own; None: a statement has none."""
    connect_seconds = command_timeout_seconds or _CONNECT_SECONDS
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=connect_seconds,
        pool_recycle=1800,
        pool_use_lifo=True,
        hide_parameters=True,  # an error's text reaches logs; the values in it may be secrets
        connect_args={
            "connection_class": _PostgreSQLConnection,
            "timeout": connect_seconds,
            "command_timeout": command_timeout_seconds,
            "server_settings": {
                "application_name": "imprimatur",
                "idle_in_transaction_session_timeout": "10000",
                "statement_timeout": str(int((command_timeout_seconds or 0) * 1000)),  # 0: none
                "lock_timeout": str(int((lock_seconds or command_timeout_seconds or 0) * 1000)),
                "jit": "off",
                # Every statement that matters has its index. By statistics that are always old the planner would
                # read a small table whole, and keep that plan while it grows; and a bitmap scan never marks the
                # dead entries of an index over live rows, which all later looks then pass again.
                "enable_seqscan": "off",
                "enable_bitmapscan": "off",
            },
        },
    )
    event.listen(engine.sync_engine, "handle_error", _hide_values)
    return engine


def _hide_values(context: ExceptionContext) -> None:
    """Take out of an error what `hide_parameters` does not reach: PostgreSQL quotes the row in its DETAIL, which
    asyncpg's exception shows in a trace, and both quote the value itself where it is no good (class 22)."""
    original, shown = context.original_exception, context.sqlalchemy_exception
    if not isinstance(original, exc.EmulatedDBAPIException) or shown is None:
        return
    original.__cause__ = None
    if str(getattr(original, "sqlstate", None) or "").startswith("22"):
        original.args = shown.args = ("a value is not one that its column can hold",)


class _SQLiteConnection(sqlite3.Connection):
    """Rolls back before it closes. A cancelled task may leave a cursor behind with rows unread (RETURNING), and as
    long as that is not collected, closing alone would keep the transaction's lock."""

    def close(self) -> None:
        """As of any connection."""
        if self.in_transaction:
            self.rollback()
        super().close()


def _write_ahead(cursor: Any) -> None:
    """Keep a write-ahead log. Of several who make this change to a new file at once, all but one are refused without
    their time-out; a write lock, though, they can wait for, and after it the change is made."""
    for _ in range(_MOST_REFUSALS):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("ROLLBACK")
        else:
            return
    raise sqlite3.OperationalError("others keep the database from being changed to a write-ahead log")


def _sqlite(url: str, *, writes: bool) -> AsyncEngine:
    """One writer, several readers: SQLite allows no more, and so nobody ever waits for a lock inside it."""
    path = make_url(url).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        make_url(url).set(drivername="sqlite+aiosqlite"),
        connect_args={"factory": _SQLiteConnection},
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1 if writes else 4,
        max_overflow=0,
        pool_timeout=10,
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 5000")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if not writes:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    if writes:  # a reader begins none, so that each of its statements sees the newest commit

        @event.listens_for(engine.sync_engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
