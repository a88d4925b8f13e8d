"""Images that are kept apart from the creatives that show them, and how much of them a tenant may keep"""

import sqlalchemy as sa
from alembic import op

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply."""
    online.add_column("tenants", sa.Column("asset_bytes", sa.BigInteger))
    online.create_table(
        "assets",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id", name="fk_assets_tenant_id"), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("used_at", Instant, nullable=False),
    )
    online.create_index("uq_assets_tenant_id_digest", "assets", ["tenant_id", "digest"], unique=True)
    online.create_index("ix_assets_tenant_id_size_bytes", "assets", ["tenant_id", "size_bytes"])
    _make_contents()
    online.create_table(
        "job_assets",
        sa.Column("job_id", sa.Uuid, primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("tenant_id", sa.Uuid, nullable=False),
    )
    online.create_index("ix_job_assets_tenant_id_digest", "job_assets", ["tenant_id", "digest"])


def _make_contents() -> None:
    owner = sa.ForeignKey("assets.id", name="fk_asset_contents_asset_id", ondelete="CASCADE")
    online.create_table(
        "asset_contents",
        sa.Column("asset_id", sa.Uuid, owner, primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        # Images do not shrink; and a part of what is not compressed is read without the rest.
        op.execute("ALTER TABLE asset_contents ALTER COLUMN content SET STORAGE EXTERNAL")
