"""Limits that differ from the settings for some tenants, and a way to count what a tenant has open"""

import sqlalchemy as sa

from imprimatur.storage.migrations import online

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply."""
    online.add_column("tenants", sa.Column("submits_per_second", sa.Float))
    online.add_column("tenants", sa.Column("open_jobs", sa.Integer))
    online.add_column("tenants", sa.Column("streams", sa.Integer))
    online.create_index("ix_jobs_open", "jobs", ["tenant_id"], where="state IN ('queued', 'running')")
