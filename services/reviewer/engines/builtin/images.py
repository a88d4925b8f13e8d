"""Technical checks of images with Pillow: they decode, in an allowed format and size; measures worth a look.

What an image shows is not examined here; the engine says so in its evidence.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image as Pillow
from PIL import ImageStat, UnidentifiedImageError

from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import Finding, Image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000  #: of one frame; larger ones are refused before they are decoded
MAX_FRAME_PIXELS = 200_000_000  #: decoded in all frames of one animation
SMALLEST_SIDE = 32  #: px; below it there is nothing to see
SAMPLED_FRAMES = 8
STAGE = "images"

# The limit is ours and exact; Pillow's own would warn at half of its.
Pillow.MAX_IMAGE_PIXELS = None

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error, OverflowError)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    format: str
    width: int
    height: int
    frames: int
    sampled: int
    plain: bool  #: one colour all over


def examine(image: Image, field: str) -> list[Finding]:
    """Findings about one image, `field` being its place, such as "images[0]".

    Raises:
        UnreviewableInput: it is too large, of another format, or does not decode.
    """
    if len(image.data) > MAX_BYTES:
        raise _refusal(field, f"has {len(image.data):,} bytes; at most {MAX_BYTES:,} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = _measured(image.data, field)
    except _BROKEN as error:
        raise _refusal(field, "cannot be decoded; a complete PNG, JPEG, GIF or WebP image is needed") from error
    return list(_findings(measured, field))


def _measured(data: bytes, field: str) -> _Measured:
    try:
        opened = Pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _refusal(field, "is not an image this engine can open; PNG, JPEG, GIF or WebP is needed") from error
    with opened as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise _refusal(field, f"has {width} x {height} px; at most {MAX_PIXELS:,} pixels are allowed")
        frames = getattr(picture, "n_frames", 1)
        picture.draft("RGB", (1024, 1024))
        picture.load()
        plain = all(low == high for low, high in ImageStat.Stat(picture.convert("RGB")).extrema)
        wanted = _sample(frames, width * height)
        for frame in wanted:
            picture.seek(frame)
            picture.load()
        return _Measured(
            format=picture.format or "",
            width=width,
            height=height,
            frames=frames,
            sampled=len(wanted) or 1,
            plain=plain and frames == 1,
        )


def _sample(frames: int, pixels: int) -> list[int]:
    """Up to SAMPLED_FRAMES frames, evenly spread over those that may be decoded. A GIF's frame needs all before it."""
    reachable = min(frames, max(1, MAX_FRAME_PIXELS // pixels))
    count = min(SAMPLED_FRAMES, reachable)
    return sorted({index * (reachable - 1) // max(1, count - 1) for index in range(count)}) if frames > 1 else []


def _findings(measured: _Measured, field: str) -> Iterator[Finding]:
    size = f"{measured.width} x {measured.height} px"
    if measured.frames > 1:
        quote = f"{measured.format}, {measured.frames} frames"
        yield _fact(field, quote, f"Animated: {measured.sampled} of its frames were decoded. Watch it as a whole.")
    if min(measured.width, measured.height) < SMALLEST_SIDE:
        yield _fact(field, size, "Too small for a reader to see anything: a tracking pixel, or a wrong upload?")
    if measured.plain:
        yield _fact(field, f"{size}, one colour", "The image is one colour all over: a placeholder?")


def _fact(field: str, quote: str, explanation: str) -> Finding:
    return Finding(category=None, score=1.0, field=field, quote=quote, explanation=explanation)


def _refusal(field: str, message: str) -> UnreviewableInput:
    return UnreviewableInput(f"{field}: {message}", stage=STAGE)
