"""Images that are kept apart from the creatives that show them: how they are named, what they may be, how large.

Their bytes stand in the database, `storage.assets` says why. Nothing is decoded here: see `reviewer.images`.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

#: Of one image, wherever it comes from.
MAX_BYTES = 20 * 1024 * 1024
#: Of all images of one creative.
MAX_CREATIVE_BYTES = 2 * MAX_BYTES
#: So many first bytes tell an image's format.
HEAD_BYTES = 12

_ID = re.compile("[0-9a-f]{64}")
_MEDIA_TYPES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


@dataclass(frozen=True, kw_only=True)
class Asset:
    """An image that is kept for a tenant, without its bytes."""

    id: str
    media_type: str
    size_bytes: int
    created_at: datetime
    used_at: datetime  #: it was uploaded, or named by a submit, for the last time, give or take an hour


def asset_id_of(content: bytes) -> str:
    """The id of an image: the SHA-256 of its bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def is_asset_id(text: str) -> bool:
    """Whether it could be one."""
    return _ID.fullmatch(text) is not None


def media_type_of(head: bytes) -> str | None:
    """PNG, JPEG, GIF or WebP, by the first HEAD_BYTES; None: nothing that is taken."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _MEDIA_TYPES.items() if head.startswith(start)), None)
