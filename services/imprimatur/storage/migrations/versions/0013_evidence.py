"""Evidence that is kept for equal creatives, and jobs that wait for it"""

import sqlalchemy as sa

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Apply."""
    online.create_table(
        "evidence",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("job_type", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("engine_version", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("job_id", sa.Uuid),
        sa.Column("claim_no", sa.Integer, nullable=False),
        sa.Column("awaited", sa.Boolean, nullable=False),
        sa.Column("alone", sa.Boolean, nullable=False),
        sa.Column("begun_at", Instant, nullable=False),
        sa.Column("content", sa.LargeBinary),
        sa.Column("made_at", Instant),
        sa.Column("expires_at", Instant, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
        sa.Column("hits", sa.BigInteger, nullable=False),
    )
    online.create_index("uq_evidence_key", "evidence", ["key"], unique=True)
    online.create_index("ix_evidence_tenant_id_id", "evidence", ["tenant_id", "id"])
    online.create_index("ix_evidence_job_id", "evidence", ["job_id"], where="job_id IS NOT NULL")
    online.add_column("attempts", sa.Column("reused_from", sa.Uuid))
    online.add_column("jobs", sa.Column("evidence_since", Instant))
    online.add_column("jobs", sa.Column("waits_for", sa.LargeBinary))
    online.create_index(
        "ix_jobs_waits_for", "jobs", ["waits_for", "id"], where="state = 'queued' AND waits_for IS NOT NULL"
    )
