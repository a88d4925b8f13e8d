"""Rows that are chosen and locked before they are changed, so that two processes never take the same ones."""

from typing import Any

from sqlalchemy import ColumnElement, Select, select


def in_locked(column: ColumnElement[Any], chosen: Select[Any]) -> ColumnElement[bool]:
    """`column IN (chosen)`, where `chosen` is a one-column `SELECT … LIMIT … FOR UPDATE`, and runs once.

    As a common table expression: a plain sub-select may be run again for every row of the outer statement, and
    since it does not see again what that statement has changed already, it takes more rows than its limit
    (PostgreSQL never inlines a CTE that locks rows).
    """
    chosen_once = chosen.cte()
    return column.in_(select(chosen_once.c[0]))
