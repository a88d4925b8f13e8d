"""Let tenants take turns, and limit how many jobs one of them has under way"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_WAITING = sa.text("state = 'queued' AND released_at IS NULL")


def upgrade() -> None:
    """Apply."""
    op.add_column("tenants", sa.Column("concurrency_limit", sa.Integer))
    op.drop_index("ix_jobs_due", table_name="jobs")
    for name, columns in (
        ("ix_jobs_due", ["run_at"]),
        ("ix_jobs_turns", ["priority", "tenant_id", "run_at", "id"]),
    ):
        op.create_index(name, "jobs", columns, postgresql_where=_WAITING, sqlite_where=_WAITING)
