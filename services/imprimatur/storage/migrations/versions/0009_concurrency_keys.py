"""Of the jobs with one concurrency key at most one is unfinished; revisions order them"""

import sqlalchemy as sa

from imprimatur.storage.migrations import online

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply."""
    live = "concurrency_key IS NOT NULL AND state IN ('queued', 'running', 'awaiting_review')"
    online.add_column("jobs", sa.Column("supersedes", sa.Uuid))
    online.add_column("jobs", sa.Column("concurrency_key", sa.Text))
    online.add_column("jobs", sa.Column("revision", sa.BigInteger))
    online.create_table(
        "request_aliases",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Uuid, sa.ForeignKey("jobs.id"), nullable=False),
    )
    online.create_index("ix_request_aliases_job_id", "request_aliases", ["job_id"])
    online.create_index("uq_jobs_live_key", "jobs", ["tenant_id", "concurrency_key"], where=live, unique=True)
    online.create_index(
        "ix_jobs_revision", "jobs", ["tenant_id", "concurrency_key", "revision"], where="revision IS NOT NULL"
    )
