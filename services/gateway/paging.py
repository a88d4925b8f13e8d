"""Page tokens: opaque, and good only for the list and the filter that they came from."""

import base64
import hashlib
import json

from google.protobuf.message import Message

from imprimatur.errors import InvalidRequest


def token_of(position: list[str], filtered_by: Message | None = None) -> str:
    """The token that continues after `position`."""
    body = json.dumps([_mark(filtered_by), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def position_of(token: str, length: int, filtered_by: Message | None = None) -> list[str] | None:
    """The position inside a token; None for the first page.

    Raises:
        InvalidRequest: not a token of this list, or one of another filter.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        position: list[str]
        mark, *position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise _refused("is not a page token of this server") from None
    if len(position) != length or not all(isinstance(item, str) for item in position):
        raise _refused("is not a page token of this list")
    if mark != _mark(filtered_by):
        raise _refused("belongs to a list with another filter")
    return position


def foreign_token() -> InvalidRequest:
    """The refusal of a token whose parts cannot be a position in the list asked for."""
    return _refused("is not a page token of this list")


def _mark(filtered_by: Message | None) -> str:
    content = filtered_by.SerializeToString(deterministic=True) if filtered_by is not None else b""
    return hashlib.sha256(content).hexdigest()[:12]


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest("page_token", f"{why}; leave it empty to begin again", reason="INVALID_PAGE_TOKEN")
