"""With which key a person's hold was made, without whose token nobody else takes it over by the name alone"""

import sqlalchemy as sa

from imprimatur.storage.migrations import online

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Apply."""
    # Empty for the holds of a process of the version before: only a key of the holder's own takes those over.
    online.add_column("jobs", sa.Column("hold_key_id", sa.Uuid))
