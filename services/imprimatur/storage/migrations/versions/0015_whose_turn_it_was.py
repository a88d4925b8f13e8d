"""When each tenant had its turn, and which gateways live"""

import sqlalchemy as sa

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Apply."""
    online.create_table(
        "turns",
        sa.Column("tenant_id", sa.Uuid, primary_key=True),
        sa.Column("served_at", Instant, nullable=False),
    )
    online.create_table(
        "gateways",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("seen_at", Instant, nullable=False),
    )
