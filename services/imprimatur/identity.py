"""Ids: UUIDv7 (RFC 9562), so that they sort by the time they were made."""

import uuid
from datetime import datetime

from uuid_utils.compat import uuid7


def new_id() -> uuid.UUID:
    """A fresh UUIDv7."""
    return uuid7()


def first_id_at(instant: datetime) -> uuid.UUID:
    """What no id made at `instant` or later comes before."""
    return uuid.UUID(int=int(instant.timestamp() * 1000) << 80)
