"""Ids: UUIDv7 (RFC 9562), so that they sort by the time they were made."""

import uuid
from datetime import datetime

from uuid_utils.compat import uuid7

_LAST_MILLISECOND = 2**48 - 1


def new_id() -> uuid.UUID:
    """A fresh UUIDv7."""
    return uuid7()


def first_id_at(instant: datetime, *, moved_seconds: float = 0.0) -> uuid.UUID:
    """What no id made at `instant`, or so many seconds after it, or later comes before."""
    milliseconds = int((instant.timestamp() + moved_seconds) * 1000)
    return uuid.UUID(int=min(max(milliseconds, 0), _LAST_MILLISECOND) << 80)
