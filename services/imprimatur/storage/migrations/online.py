"""How a migration changes a table that processes of the version before work on meanwhile.

On PostgreSQL nothing here keeps them from their rows for longer than one batch takes. For that each step commits what
was done until then, so it must find its work again, done or half done, when the migration is run once more. On
SQLite, where one process does everything, all migrations are one transaction.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op

#: Rows of one transaction: few enough that nobody waits long for one of them.
BATCH_ROWS = 500

_BEFORE_ALL = uuid.UUID(int=0)
#: Who has been in a transaction for longest, in a line: what waits for anybody, waits for them.
_OLDEST_TRANSACTIONS = """
    SELECT string_agg(format('pid %s (%s, %s, for %s s)', pid, application_name, state, seconds), ', ')
    FROM (
        SELECT pid, application_name, state, extract(epoch FROM clock_timestamp() - xact_start)::int AS seconds
        FROM pg_stat_activity
        WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
        ORDER BY xact_start LIMIT 3
    ) AS oldest
"""


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column that may be empty, which takes no time, if it is not there yet."""
    if column.name not in {found["name"] for found in sa.inspect(op.get_bind()).get_columns(table)}:
        op.add_column(table, column)


def back_fill(table: str, column: str, value: str, *, where: str) -> None:
    """Set the column where it is empty and `where` holds, a batch at a time; in the order of `id`, as everybody does
    who locks several rows.

    Args:
        value: an SQL expression.
    """
    update = f"UPDATE {table} SET {column} = {value} WHERE "  # noqa: S608  # of the migration's own words
    empty = f"{column} IS NULL AND {where}"
    if not _on_postgresql():
        op.execute(update + empty)
        return
    batch = f"SELECT id FROM {table} WHERE id > :after AND {empty} ORDER BY id LIMIT :rows FOR UPDATE"  # noqa: S608
    statement = sa.text(f"{update}id IN ({batch}) RETURNING id").bindparams(sa.bindparam("after", type_=sa.Uuid))
    after: uuid.UUID | None = _BEFORE_ALL
    with _committing_each():
        _tell(f"filling {table}.{column}, {BATCH_ROWS} rows at a time")
        while after is not None:
            done = op.get_bind().execute(statement, {"after": after, "rows": BATCH_ROWS}).scalars()
            after = max(map(_as_uuid, done), default=None)


def create_index(name: str, table: str, columns: Sequence[str], *, where: str) -> None:
    """Build an index of the rows for which `where` holds, while others write to the table."""
    condition = sa.text(where)
    if not _on_postgresql():
        op.create_index(name, table, columns, sqlite_where=condition)
        return
    with _committing_each():
        connection = op.get_bind()
        found = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        whole = connection.execute(found, {"name": name}).scalar()
        if whole:
            return
        # It waits for every transaction that is open, as long as that takes; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        if whole is not None:  # an earlier try was ended half-way
            _tell(f"dropping the index {name}, which is half built")
            op.drop_index(name, table_name=table, postgresql_concurrently=True)
        _tell(f"building the index {name}; it waits for open transactions: {oldest_transactions(connection)}")
        op.create_index(name, table, columns, postgresql_where=condition, postgresql_concurrently=True)
        op.execute("RESET lock_timeout")


def oldest_transactions(connection: sa.Connection) -> str:
    """Whom a statement may be waiting for."""
    return connection.execute(sa.text(_OLDEST_TRANSACTIONS)).scalar() or "none"


@contextmanager
def _committing_each() -> Iterator[None]:
    """Alembic's block, which hides the loss of the connection behind its own failure to commit after it."""
    fault: sa.exc.DBAPIError | None = None
    try:
        with op.get_context().autocommit_block():
            try:
                yield
            except sa.exc.DBAPIError as seen:
                fault = seen
                raise
    except sa.exc.PendingRollbackError:
        if fault is not None:
            raise fault from None
        raise


def _on_postgresql() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _tell(sentence: str) -> None:
    config = op.get_context().config
    assert config is not None  # `upgrade` made it
    tell: Callable[[str], None] = config.attributes["tell"]
    tell(sentence)


def _as_uuid(key: Any) -> uuid.UUID:
    """A driver has a class of its own for it."""
    return uuid.UUID(str(key))
