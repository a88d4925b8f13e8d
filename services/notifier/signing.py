"""Signatures after Standard Webhooks (https://www.standardwebhooks.com), symmetric scheme v1. Pure.

Where secrets are kept and sealed is `imprimatur.webhooks`.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence

from imprimatur.webhooks import key_of

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"


def headers(secrets: Sequence[str], *, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a signed message.

    Args:
        secrets: "whsec_…"; each signs, so that a receiver may know either of two during a rotation.
        message_id: the same at every attempt.
        timestamp: Unix seconds of this attempt.
    """
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: " ".join(
            signature(secret, message_id=message_id, timestamp=timestamp, body=body) for secret in secrets
        ),
    }


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and base64 of HMAC-SHA256 over "id.timestamp.body"."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key_of(secret), signed, hashlib.sha256)).decode()
