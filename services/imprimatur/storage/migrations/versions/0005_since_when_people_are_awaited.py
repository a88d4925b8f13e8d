"""Keep with each job since when it waits for a person"""

import sqlalchemy as sa
from alembic import op

from imprimatur.storage.clock import Instant

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("awaiting_since", Instant))
    op.execute(
        "UPDATE jobs SET awaiting_since = (SELECT max(at) FROM job_events"
        " WHERE job_id = jobs.id AND kind = 'awaiting_review') WHERE state = 'awaiting_review'"
    )
    waits = sa.text("state = 'awaiting_review'")
    op.create_index(
        "ix_jobs_awaiting_since",
        "jobs",
        ["awaiting_since", "type", "priority"],
        postgresql_where=waits,
        sqlite_where=waits,
    )
