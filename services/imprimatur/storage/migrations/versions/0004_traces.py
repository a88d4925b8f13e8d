"""Keep with each job the trace in which it was accepted"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("traceparent", sa.Text))
