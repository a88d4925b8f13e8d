"""Find what a job was retried by, and what may be retried, without reading the history"""

from imprimatur.storage.migrations import online

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply."""
    online.create_index("ix_jobs_retry_of", "jobs", ["retry_of"], where="retry_of IS NOT NULL")
    online.create_index("ix_jobs_retryable", "jobs", ["tenant_id", "id"], where="state IN ('failed', 'cancelled')")
