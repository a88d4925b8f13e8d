"""Decodes one image with Pillow: is it what it should be, how large, how many frames. Synchronous; for a child process.

What an image shows is not looked at here. A hostile image may end the process that runs this, or bind it until it is
killed: so nothing else runs there, and its memory is bounded.
"""

import io
import struct
import sys
import warnings
from dataclasses import dataclass

from PIL import Image as Pillow
from PIL import ImageStat, UnidentifiedImageError

from imprimatur.assets import MAX_BYTES
from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import MOST_SHRUNK, Look
from reviewer.child import bound_memory

FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
MAX_PIXELS = 40_000_000  #: of one frame; larger ones are refused before they are decoded
MAX_FRAME_PIXELS = 200_000_000  #: decoded in all frames of one animation
MAX_FRAMES = 5_000  #: of one animation, that are gone through
SAMPLED_FRAMES = 8
STILL_SIDE = 1024  #: px, of a sampled frame at most
STILL_QUALITY = 85  #: of its JPEG
STAGE = "images"
#: What a decoding process may take (Linux): an animation of the largest frames needs some 700 MB.
MOST_BYTES = 1024**3

# The limit is ours and exact; Pillow's own would warn at half of its.
Pillow.MAX_IMAGE_PIXELS = None

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error, OverflowError)


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Of an animation: which frames are decoded, and what they came to."""

    stills: tuple[bytes, ...] = ()
    sampled: int = 1


def prepare() -> None:
    """The initializer of a child process: what it may take is bounded from here on."""
    if sys.platform == "linux":
        bound_memory(MOST_BYTES)
    Pillow.preinit()


def preparation() -> tuple[str, ...]:
    """How images are made ready for engines: evidence about the same image made ready otherwise is other evidence."""
    return tuple(map(str, (SAMPLED_FRAMES, MAX_FRAMES, MAX_FRAME_PIXELS, STILL_SIDE, STILL_QUALITY, MOST_SHRUNK)))


def look_at(data: bytes, field: str) -> Look:
    """What an image is, `field` being its place, such as "images[0]".

    Raises:
        UnreviewableInput: it is too large, of another format, or does not decode.
    """
    if len(data) > MAX_BYTES:
        raise _refusal(field, f"has {len(data):,} bytes; at most {MAX_BYTES:,} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _look_at(data, field)
    except MemoryError:
        raise _refusal(field, "takes more memory to decode than is allowed") from None
    except _BROKEN as error:
        raise _refusal(field, "cannot be decoded; a complete PNG, JPEG, GIF or WebP image is needed") from error


def _look_at(data: bytes, field: str) -> Look:
    try:
        opened = Pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _refusal(field, "is not an image this engine can open; PNG, JPEG, GIF or WebP is needed") from error
    with opened as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise _refusal(field, f"has {width} x {height} px; at most {MAX_PIXELS:,} pixels are allowed")
        frames = getattr(picture, "n_frames", 1)
        picture.draft("RGB", (STILL_SIDE, STILL_SIDE))
        picture.load()
        plain = frames == 1 and all(low == high for low, high in ImageStat.Stat(picture.convert("RGB")).extrema)
        seen = _animation(picture, frames) if frames > 1 else _Frames()
        return Look(
            format=picture.format or "",
            width=width,
            height=height,
            frames=frames,
            sampled=seen.sampled,
            plain=plain,
            stills=seen.stills,
            shrunk=max(1.0, max(width, height) / STILL_SIDE) if seen.stills else 1.0,
        )


def _animation(picture: Pillow.Image, frames: int) -> _Frames:
    stills = []
    for frame in sample(frames, picture.width * picture.height):
        picture.seek(frame)
        picture.load()
        stills.append(_still(picture))
    return _Frames(stills=tuple(stills), sampled=len(stills))


def _still(picture: Pillow.Image) -> bytes:
    """The present frame as a small JPEG; what is transparent, on white, as most pages are."""
    frame = picture.convert("RGBA")
    frame.thumbnail((STILL_SIDE, STILL_SIDE))
    page = Pillow.new("RGBA", frame.size, "white")
    page.alpha_composite(frame)
    encoded = io.BytesIO()
    page.convert("RGB").save(encoded, "JPEG", quality=STILL_QUALITY)
    return encoded.getvalue()


def sample(frames: int, pixels: int) -> list[int]:
    """Up to SAMPLED_FRAMES frames, evenly spread over those that may be decoded. A GIF's frame needs all before it."""
    reachable = min(frames, MAX_FRAMES, max(1, MAX_FRAME_PIXELS // pixels))
    count = min(SAMPLED_FRAMES, reachable)
    return sorted({index * (reachable - 1) // max(1, count - 1) for index in range(count)})


def _refusal(field: str, message: str) -> UnreviewableInput:
    return UnreviewableInput(f"{field}: {message}", stage=STAGE)
