"""Workers that are kept from renewing leases, since others have their jobs locked"""

import sqlalchemy as sa

from imprimatur.storage.clock import Instant
from imprimatur.storage.migrations import online

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Apply."""
    online.add_column("workers", sa.Column("locked_out_until", Instant))
