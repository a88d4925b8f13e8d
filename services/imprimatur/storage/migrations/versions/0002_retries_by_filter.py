"""Find what a job was retried by, and what may be retried, without reading the history"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply."""
    retried = sa.text("retry_of IS NOT NULL")
    op.create_index("ix_jobs_retry_of", "jobs", ["retry_of"], postgresql_where=retried, sqlite_where=retried)
    retryable = sa.text("state IN ('failed', 'cancelled')")
    op.create_index(
        "ix_jobs_retryable", "jobs", ["tenant_id", "id"], postgresql_where=retryable, sqlite_where=retryable
    )
