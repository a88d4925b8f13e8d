"""An index that serves who looks for turns, and for whose condition no other can be taken"""

from imprimatur.storage.migrations import online

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Apply."""
    waits = "coalesce(state, '') = 'queued' AND released_at IS NULL"
    online.create_index("ix_jobs_in_line", "jobs", ["priority", "tenant_id", "run_at", "id"], where=waits)
    online.drop_index("ix_jobs_turns", "jobs")
