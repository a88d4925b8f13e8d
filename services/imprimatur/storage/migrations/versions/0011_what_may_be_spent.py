"""Daily budgets of tenants at AI providers, what was spent, and turns where calls must lie apart"""

import sqlalchemy as sa

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply."""
    online.add_column("tenants", sa.Column("daily_tokens", sa.BigInteger))
    online.add_column("tenants", sa.Column("daily_cost_micros", sa.BigInteger))
    online.create_table(
        "spending",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
    )
    online.create_table(
        "provider_turns",
        sa.Column("provider", sa.Text, primary_key=True),
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("job_type", sa.Text, primary_key=True),
        sa.Column("free_at", Instant, nullable=False),
        sa.Column("ends_at", Instant, nullable=False),
    )
    online.create_index("ix_attempts_paid", "attempts", ["finished_at"], where="input_tokens > 0")
