"""Keep with each job since when it waits for a person"""

import sqlalchemy as sa

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply."""
    waits = "state = 'awaiting_review'"
    referred = "SELECT max(at) FROM job_events WHERE job_id = jobs.id AND kind = 'awaiting_review'"
    online.add_column("jobs", sa.Column("awaiting_since", Instant))
    online.back_fill("jobs", "awaiting_since", f"({referred})", where=waits)
    online.create_index("ix_jobs_awaiting_since", "jobs", ["awaiting_since", "type", "priority"], where=waits)
