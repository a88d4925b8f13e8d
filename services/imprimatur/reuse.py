"""When evidence may be used again: for the same content, asked about in the same way, of the same engine. Pure.

The content counts byte by byte, images by their own bytes wherever they come from: what is merely similar inherits
nothing. Of the policy only what is asked of the engine counts (its model, the criteria): mode, thresholds and lists
decide anew from the evidence.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from imprimatur.evidence import Creative, EngineIdentity, Evidence, Image, Part
from imprimatur.job import JobType

#: Raise it when evidence comes to mean something else, or is written in another form: nothing older is reused then.
SCHEMA = 2
#: Evidence is reused for so many hours where the engine is paid for each look, unless a setting says otherwise.
HOURS = 168.0

#: No engine of this version looks at these, whatever its settings. What else was not examined may be the next time.
_NEVER_EXAMINED = frozenset({Part.VIDEO, Part.AUDIO, Part.LANGUAGE})


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where reused evidence is from. Unless `shown`, the user of the job that takes it may not know: it is another
    user's."""

    job_id: uuid.UUID
    made_at: datetime
    shown: bool


def digest_of(image: Image) -> bytes | None:
    """SHA-256 of an image's bytes; None of one at a URL, which nobody knows before it is fetched."""
    if image.data:
        return hashlib.sha256(image.data).digest()
    return bytes.fromhex(image.asset_id) if image.asset_id else None


def key_of(
    creative: Creative,
    *,
    tenant_id: uuid.UUID,
    job_type: JobType,
    engine: EngineIdentity,
    provider: str,
    criteria: Sequence[tuple[str, str]] = (),
    sight: Sequence[str] = (),
) -> bytes:
    """The key of the evidence that an engine will find in this creative.

    Everything counts that an engine is shown, and so not the creative's id, by which only its seller knows it. An
    engine's version names its prompt and the schema of its answers.

    Args:
        provider: who is asked; empty where nobody is.
        criteria: (name, text) of what the policy asks for besides the categories.
        sight: what decides how much of images is seen, besides themselves. Without images it counts for nothing.

    Raises:
        ValueError: the bytes of an image are not known yet.
    """
    images: list[Value] = []
    for image in creative.images:
        digest = digest_of(image)
        if digest is None:
            raise ValueError("an image at a URL must be fetched first")
        images.append((image.name, digest))
    parts: Value = (
        ("imprimatur evidence", str(SCHEMA)),
        (tenant_id.bytes, str(job_type)),
        (engine.name, engine.version, engine.model, provider),
        tuple(criteria),
        (creative.name, creative.format, creative.headline, creative.body, creative.call_to_action),
        (creative.advertiser, creative.landing_page_url, creative.language),
        tuple(str(category) for category in creative.declared_categories),
        (tuple(sight), *images) if images else (),
        tuple(creative.video_urls),
        tuple(creative.audio_urls),
    )
    return hashlib.sha256(encode(parts)).digest()


#: What is encoded: texts, bytes, and sequences of these.
Value: TypeAlias = "str | bytes | Sequence[Value]"


def encode(value: Value) -> bytes:
    """One byte for the kind, eight for the length (of a sequence: how many), then the content: no two values have the
    same encoding, and none is the beginning of another's."""
    if isinstance(value, str):
        return _framed(b"t", value.encode())
    if isinstance(value, bytes):
        return _framed(b"b", value)
    return b"s" + len(value).to_bytes(8, "big") + b"".join(encode(item) for item in value)


def _framed(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(8, "big") + content


def may_be_kept(evidence: Evidence) -> bool:
    """Whether the next look would find no more than this one did."""
    return evidence.unexamined <= _NEVER_EXAMINED and not evidence.truncated
