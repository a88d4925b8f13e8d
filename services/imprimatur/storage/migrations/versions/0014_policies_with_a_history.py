"""Who made a version of a policy and why, and which version was live when"""

import sqlalchemy as sa
from alembic import op

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Apply."""
    online.add_column("policies", sa.Column("created_by", sa.Text))
    online.add_column("policies", sa.Column("note", sa.Text))
    online.create_table(
        "policy_activations",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("activated_by", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    # Until now a version was live from when it was made until the next one was.
    op.execute(
        "INSERT INTO policy_activations (tenant_id, number, from_version, to_version, at, activated_by, note) "
        "SELECT tenant_id, version, NULLIF(version - 1, 0), version, created_at, '', '' FROM policies "
        "WHERE NOT EXISTS (SELECT 1 FROM policy_activations AS noted WHERE noted.tenant_id = policies.tenant_id)"
    )
