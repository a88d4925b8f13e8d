"""With which key a policy was changed, and records that the database keeps from being changed or removed"""

import sqlalchemy as sa

from imprimatur.storage.migrations import online

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Apply."""
    for table in ("policies", "policy_activations"):
        online.add_column(table, sa.Column("key_id", sa.Uuid))
        online.add_column(table, sa.Column("key_name", sa.Text))
    for table in ("policies", "policy_activations", "human_decisions"):
        online.refuse_changes(table)
