"""`INSERT … ON CONFLICT`: both databases have it, and SQLAlchemy has it in the dialect of each."""

from typing import cast

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_into(table: Table, *, on_postgresql: bool) -> postgresql.Insert:
    """An insert that says what happens on a conflict. That of SQLite takes the same words."""
    return postgresql.insert(table) if on_postgresql else cast("postgresql.Insert", sqlite.insert(table))
