"""${message}"""

import sqlalchemy as sa
from alembic import op

import imprimatur.storage.clock
from imprimatur.storage.migrations import online
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply."""
    ${upgrades if upgrades else "pass"}
