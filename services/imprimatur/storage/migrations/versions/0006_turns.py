"""Let tenants take turns, and limit how many jobs one of them has under way"""

import sqlalchemy as sa

from imprimatur.storage.migrations import online

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply."""
    waits = "state = 'queued' AND released_at IS NULL"
    online.add_column("tenants", sa.Column("running_jobs", sa.Integer))
    online.create_index("ix_jobs_turns", "jobs", ["priority", "tenant_id", "run_at", "id"], where=waits)
    online.create_index("ix_jobs_run_at", "jobs", ["run_at"], where=f"{waits} AND run_at IS NOT NULL")
    online.drop_index("ix_jobs_due", "jobs")
