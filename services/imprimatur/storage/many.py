"""Statements that many rows go through together, each with values of its own.

On PostgreSQL that is one statement whose text never changes, so that it is put together and planned once, whatever
the number of rows: the values come as one array for each column. SQLite, which has no round trips to spare, runs
the same statement once for each row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Executable, Row, Select, any_, bindparam, column, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from imprimatur.storage.database import Reader
from imprimatur.storage.locks import in_locked

#: The values of each row, by name.
Types = Mapping[str, TypeEngine[Any]]


class Each:
    """The values given for each row, as columns of a statement."""

    def __init__(self, types: Types, *, on_postgresql: bool) -> None:
        self.on_postgresql = on_postgresql
        if on_postgresql:
            self._given = {
                name: bindparam(_parameter(name), type_=ARRAY(kind, dimensions=1)) for name, kind in types.items()
            }
            columns: list[ColumnElement[Any]] = [column(name, kind) for name, kind in types.items()]
            table = func.unnest(*self._given.values()).table_valued(*columns, name="each").render_derived()
            self._columns: Mapping[str, ColumnElement[Any]] = {name: table.c[name] for name in types}
        else:
            self._columns = {name: bindparam(_parameter(name), type_=kind) for name, kind in types.items()}

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        return self._columns[name]

    def locked(self, key: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """The rows whose `key` is one of the values `name`, locked in one order, so that two batches never wait
        for each other in a circle. SQLite has one writer, and nobody who waits."""
        if not self.on_postgresql:
            return key == self[name]
        return in_locked(key, self._wanted(key, name).with_for_update())

    def free(self, key: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """As `locked`, without those that others have locked: nothing is waited for. What refers to a row, and so
        keeps it from being removed, is no hindrance."""
        if not self.on_postgresql:
            return key == self[name]
        return in_locked(key, self._wanted(key, name).with_for_update(skip_locked=True, key_share=True))

    def _wanted(self, key: ColumnElement[Any], name: str) -> Select[Any]:
        return select(key).where(key == any_(self._given[name])).order_by(key)


class Many:
    """A statement for many rows.

    Args:
        types: the values of each row.
        build: puts the statement together, once for each kind of database.
    """

    def __init__(self, types: Types, build: Callable[[Each], Executable]) -> None:
        self._names = tuple(types)
        self._statements = {
            on_postgresql: build(Each(types, on_postgresql=on_postgresql)) for on_postgresql in (True, False)
        }

    async def execute(self, reader: Reader, rows: Sequence[Mapping[str, Any]]) -> list[Row[Any]]:
        """Run it for all of `rows`; returns what it returns, in no order."""
        if not rows:
            return []
        statement = self._statements[reader.on_postgresql]
        if reader.on_postgresql:
            arrays = {_parameter(name): [row[name] for row in rows] for name in self._names}
            return _rows(await reader.connection.execute(statement, arrays))
        found: list[Row[Any]] = []
        for row in rows:
            one = {_parameter(name): row[name] for name in self._names}
            found += _rows(await reader.connection.execute(statement, one))
        return found


def _parameter(name: str) -> str:
    """Not the column's own name, which SQLAlchemy keeps for itself in INSERT and UPDATE."""
    return f"each_{name}"


def _rows(result: Any) -> list[Row[Any]]:
    return list(result.all()) if result.returns_rows else []
