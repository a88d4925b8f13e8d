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


def create_table(name: str, *columns: sa.Column[Any]) -> None:
    """Create a table, if it is not there yet."""
    if not sa.inspect(op.get_bind()).has_table(name):
        op.create_table(name, *columns)


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


def create_index(
    name: str, table: str, columns: Sequence[str], *, where: str | None = None, unique: bool = False
) -> None:
    """Build an index, of the rows for which `where` holds, while others write to the table."""
    condition = None if where is None else sa.text(where)
    if not _on_postgresql():
        op.create_index(name, table, columns, unique=unique, sqlite_where=condition, if_not_exists=True)
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
        op.create_index(name, table, columns, unique=unique, postgresql_where=condition, postgresql_concurrently=True)
        op.execute("RESET lock_timeout")


def drop_index(name: str, table: str) -> None:
    """Remove an index, if it is still there, while others use the table."""
    if not _on_postgresql():
        op.drop_index(name, table, if_exists=True)
        return
    with _committing_each():
        op.execute("SET lock_timeout = 0")  # as above
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
        op.execute("RESET lock_timeout")


def drop_foreign_key(table: str, column: str) -> None:
    """Let rows of the table outlive what their column refers to."""
    for found in sa.inspect(op.get_bind()).get_foreign_keys(table):
        if found["constrained_columns"] == [column]:
            with op.batch_alter_table(table) as altered:
                altered.drop_constraint(str(found["name"]), type_="foreignkey")


def replace_primary_key(table: str, columns: Sequence[str]) -> None:
    """Make these the table's primary key: on PostgreSQL of an index that was built before, so in no time."""
    name, built = f"pk_{table}", f"pk_{table}_new"
    if sa.inspect(op.get_bind()).get_pk_constraint(table)["constrained_columns"] == list(columns):
        return
    if not _on_postgresql():
        with op.batch_alter_table(table) as altered:
            altered.drop_constraint(name, type_="primary")
            altered.create_primary_key(name, list(columns))
        return
    create_index(built, table, columns, unique=True)
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {built}")


def refuse_changes(table: str) -> None:
    """Let rows be added and nothing else, by triggers: they hold for the table's owner too, where revoked rights would
    not."""
    refused = "are never changed nor removed"
    if not _on_postgresql():
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER IF NOT EXISTS {table}_no_{change.lower()} BEFORE {change} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, 'rows of {table} {refused}'); END"
            )
        return
    with _committing_each():  # who reads one table does not wait for who writes to the next
        op.execute(
            "CREATE OR REPLACE FUNCTION refuse_change_of_record() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'rows of % {refused}', TG_TABLE_NAME; END $$"
        )
        for name, changes, each in (("rows", "UPDATE OR DELETE", "ROW"), ("table", "TRUNCATE", "STATEMENT")):
            op.execute(f"DROP TRIGGER IF EXISTS {table}_keep_{name} ON {table}")
            op.execute(
                f"CREATE TRIGGER {table}_keep_{name} BEFORE {changes} ON {table}"
                f" FOR EACH {each} EXECUTE FUNCTION refuse_change_of_record()"
            )


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
