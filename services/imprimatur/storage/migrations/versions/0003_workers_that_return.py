"""Note that a worker which had been given up as lost came back"""

import sqlalchemy as sa
from alembic import op

from imprimatur.storage.clock import Instant

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply."""
    op.add_column("attempts", sa.Column("returned_at", Instant))
