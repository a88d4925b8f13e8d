"""Rows that are chosen and locked before they are changed, so that two processes never take the same ones; and how
the planner is kept from finding them in another way than by their ids."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY

_Statement = TypeVar("_Statement")


def in_locked(column: ColumnElement[Any], chosen: Select[Any]) -> ColumnElement[bool]:
    """`column IN (chosen)`, where `chosen` is a one-column `SELECT … LIMIT … FOR UPDATE`, and runs once.

    As a common table expression: a plain sub-select may be run again for every row of the outer statement, and
    since it does not see again what that statement has changed already, it takes more rows than its limit
    (PostgreSQL never inlines a CTE that locks rows).
    """
    chosen_once = chosen.cte()
    return column.in_(select(chosen_once.c[0]))


def among(column: ColumnElement[Any], *, on_postgresql: bool) -> ColumnElement[bool]:
    """`column IN (those of the parameter "ids")`; on PostgreSQL as one array, so that the statement is the same, and
    planned once, however many they are."""
    if not on_postgresql:
        return column.in_(bindparam("ids", expanding=True))
    return column == any_(bindparam("ids", type_=ARRAY(column.type, dimensions=1)))


def for_both(build: Callable[[bool], _Statement]) -> Mapping[bool, _Statement]:
    """A statement by `on_postgresql`, put together once: for a short one that takes as long as running it."""
    return {on_postgresql: build(on_postgresql) for on_postgresql in (True, False)}


def by_no_index(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column that is looked at in rows that are found already.

    What the planner knows of how many rows are in a state is always old: it takes a queue of thousands for empty, and
    would rather read all of it than look an id up.
    """
    return func.coalesce(column, "", type_=column.type)
