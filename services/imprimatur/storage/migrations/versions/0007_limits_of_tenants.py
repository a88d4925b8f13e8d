"""Limits that differ from the settings for some tenants, and a way to count what a tenant has open"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0004"

_OPEN = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    """Apply."""
    op.add_column("tenants", sa.Column("submits_per_second", sa.Float))
    op.add_column("tenants", sa.Column("open_jobs", sa.Integer))
    op.add_column("tenants", sa.Column("streams", sa.Integer))
    op.create_index("ix_jobs_open", "jobs", ["tenant_id"], postgresql_where=_OPEN, sqlite_where=_OPEN)
