"""Time as the database sees it, spelled for both databases.

Workers' clocks never matter: every stored instant comes from here. PostgreSQL stores timestamptz, SQLite
integer microseconds since the epoch; both come out as aware UTC datetimes.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Dialect, Float, Integer, literal, select
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from imprimatur.storage.database import Reader

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Instant(TypeDecorator[datetime]):
    """A point in time, microsecond resolution, UTC."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """timestamptz on PostgreSQL, an integer elsewhere."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Python to database. Raises ValueError for a naive one, which drivers take for local time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} is naive: an instant has a time zone")
        if dialect.name == "postgresql":
            return value
        return (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Database to Python."""
        if value is None or dialect.name == "postgresql":
            return value  # type: ignore[no-any-return]  # asyncpg gives aware datetimes
        return _EPOCH + timedelta(microseconds=value)


class now(FunctionElement[datetime]):  # reads as the SQL function that it is
    """The present instant. Inside a sub-select on PostgreSQL, so that it is taken once and indexes serve."""

    type = Instant()
    inherit_cache = True


class _shifted(FunctionElement[datetime]):
    """An instant plus a number of seconds."""

    type = Instant()
    inherit_cache = True


class seconds_between(FunctionElement[float]):
    """seconds_between(later, earlier), as a float."""

    type = Float()
    inherit_cache = True


class today(FunctionElement[int]):
    """The present day, counted from 1970, of UTC."""

    type = Integer()
    inherit_cache = True


def after(seconds: float | ColumnElement[float], start: Any = None) -> ColumnElement[datetime]:
    """`seconds` after `start` (default: now). May be negative."""
    amount = seconds if isinstance(seconds, ColumnElement) else literal(float(seconds), Float())
    return _shifted(now() if start is None else start, amount)


async def present(reader: Reader) -> datetime:
    """The present instant, for what is put together in Python."""
    return (await reader.connection.execute(_PRESENT)).scalar_one()


_PRESENT = select(now())


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    return "(SELECT clock_timestamp())"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    # 2440587.5 is the Julian day of the Unix epoch.
    return "CAST(round((julianday('now') - 2440587.5) * 86400000) * 1000 AS INTEGER)"


@compiles(today, "postgresql")
def _today_postgresql(element: today, compiler: Any, **kw: Any) -> str:
    return "(SELECT floor(extract(epoch from clock_timestamp()) / 86400)::integer)"


@compiles(today, "sqlite")
def _today_sqlite(element: today, compiler: Any, **kw: Any) -> str:
    return "CAST(julianday('now') - 2440587.5 AS INTEGER)"


@compiles(_shifted, "postgresql")
def _shifted_postgresql(element: _shifted, compiler: Any, **kw: Any) -> str:
    start, seconds = element.clauses
    return f"({compiler.process(start, **kw)} + make_interval(secs => {compiler.process(seconds, **kw)}))"


@compiles(_shifted, "sqlite")
def _shifted_sqlite(element: _shifted, compiler: Any, **kw: Any) -> str:
    start, seconds = element.clauses
    return f"({compiler.process(start, **kw)} + CAST({compiler.process(seconds, **kw)} * 1000000 AS INTEGER))"


@compiles(seconds_between, "postgresql")
def _between_postgresql(element: seconds_between, compiler: Any, **kw: Any) -> str:
    later, earlier = element.clauses
    return f"extract(epoch from {compiler.process(later, **kw)} - {compiler.process(earlier, **kw)})::float8"


@compiles(seconds_between, "sqlite")
def _between_sqlite(element: seconds_between, compiler: Any, **kw: Any) -> str:
    later, earlier = element.clauses
    return f"(({compiler.process(later, **kw)} - {compiler.process(earlier, **kw)}) / 1000000.0)"
