"""Statements that many rows go through together: what is given for a row comes out in that row, on both databases."""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Executable,
    Float,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    Uuid,
    event,
    func,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from imprimatur.identity import new_id
from imprimatur.storage.clock import Instant
from imprimatur.storage.database import Database
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import Document, jobs
from tests import makers

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)

#: Of each type that a column of ours has, what a row may hold.
VALUES: dict[str, tuple[TypeEngine[Any], Sequence[Any]]] = {
    "uuid": (Uuid(), [new_id(), uuid.UUID(int=0), None]),
    "text": (Text(), ["plain", "", "NULL", None, "ü 🛋 {\"},' \\ \n", "{a,b}"]),
    "small integer": (SmallInteger(), [0, -32_768, None, 32_767]),
    "integer": (Integer(), [None, 0, 2**31 - 1]),
    "big integer": (BigInteger(), [2**62, None, -1]),
    "float": (Float(), [0.1, None, 1e300, 5]),
    "boolean": (Boolean(), [True, None, False]),
    "binary": (LargeBinary(), [b"", b"\x00\xff'\\", None, b"x" * 70_000]),
    "document": (Document, [{"a": [1, {"b": None}]}, {}, None, ["a", ["b"]], [], "text", 1.5]),
    "instant": (Instant(), [NOON, None, NOON.astimezone(timezone(timedelta(hours=5.5)))]),
}


def given_back(types: Types) -> Callable[[Each], Executable]:
    """Selects each row's values, and which of them are NULL."""
    return lambda each: select(
        *(each[name].label(name) for name in types), *(each[name].is_(None).label(f"no_{name}") for name in types)
    )


@pytest.mark.parametrize("kind", VALUES)
async def test_a_value_of_each_type_comes_out_as_it_was_given(database: Database, kind: str) -> None:
    value_type, values = VALUES[kind]
    types: Types = {"place": Integer(), "value": value_type}
    many = Many(types, given_back(types))
    async with database.begin() as tx:
        found = await many.execute(tx, [{"place": place, "value": value} for place, value in enumerate(values)])
    rows = sorted(found, key=lambda row: row.place)
    assert [row.value for row in rows] == list(values)
    assert [bool(row.no_value) for row in rows] == [value is None for value in values]


@pytest.mark.parametrize("kind", VALUES)
async def test_nothing_but_none_may_be_given(database: Database, kind: str) -> None:
    value_type, _ = VALUES[kind]
    types = {"value": value_type}
    many = Many(types, given_back(types))
    async with database.begin() as tx:
        rows = await many.execute(tx, [{"value": None}] * 2)
    assert [(row.value, bool(row.no_value)) for row in rows] == [(None, True)] * 2


async def test_the_values_of_a_row_stay_together_and_more_than_is_asked_for_may_be_given(database: Database) -> None:
    types: Types = {"number": Integer(), "name": Text(), "flag": Boolean()}
    many = Many(types, given_back(types))
    rows = [{"flag": number % 3 == 0, "name": f"n{number}", "more": object(), "number": number} for number in range(99)]
    async with database.begin() as tx:
        found = await many.execute(tx, rows)
    assert sorted((row.number, row.name, row.flag) for row in found) == [
        (number, f"n{number}", number % 3 == 0) for number in range(99)
    ]


async def test_for_no_rows_nothing_is_executed(database: Database) -> None:
    statements: list[str] = []
    many = Many({"value": Integer()}, given_back({"value": Integer()}))
    async with database.begin() as tx:
        await tx.connection.execute(select(1))  # a connection says things of its own at first
        event.listen(
            database.engine.sync_engine, "before_cursor_execute", lambda *event: statements.append(str(event[2]))
        )
        assert await many.execute(tx, []) == []
    assert statements == []


async def test_what_returns_nothing_returns_no_rows_and_changes_those_that_it_names(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    one, other, untouched = await makers.submit(database, *(makers.new_job(tenant) for _ in range(3)))

    def naming(each: Each) -> Executable:
        chosen = (each.locked(jobs.c.id, "id"), jobs.c.id == each["id"])
        return update(jobs).where(*chosen).values(subject_id=each["subject"])

    many = Many({"id": Uuid(), "subject": Text()}, naming)
    named = {one.id: "first", other.id: "second", new_id(): "nobody"}
    async with database.begin() as tx:
        assert await many.execute(tx, [{"id": key, "subject": subject} for key, subject in named.items()]) == []
    async with database.read() as reader:
        found = await reader.connection.execute(select(jobs.c.id, jobs.c.subject_id))
        assert {row.id: row.subject_id for row in found} == {one.id: "first", other.id: "second", untouched.id: ""}


async def test_on_postgresql_one_statement_serves_any_number_of_rows(database: Database) -> None:
    statements: list[str] = []
    many = Many({"value": Integer()}, lambda each: select(func.abs(each["value"]).label("value")))
    async with database.begin() as tx:
        event.listen(
            database.engine.sync_engine, "before_cursor_execute", lambda *event: statements.append(str(event[2]))
        )
        for number in (1, 2, 500):
            found = await many.execute(tx, [{"value": -value} for value in range(number)])
            assert sorted(row.value for row in found) == list(range(number))
    assert len(set(statements)) == 1
    assert len(statements) == (3 if database.on_postgresql else 503)
