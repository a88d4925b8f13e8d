"""What must be known of an image before it is sent: its media type, and whether it is a still.

Only headers are looked at. Nothing is decoded here: a hostile image is the provider's to open.
"""

from imprimatur.assets import HEAD_BYTES
from imprimatur.assets import media_type_of as media_type_of_head
from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import Image

_VP8X_ANIMATION = 0x02  #: in the flags of a WebP's extended header


def media_type_of(image: Image, field: str) -> str:
    """The media type by the first bytes; `field` is the image's place, such as "images[0]".

    Raises:
        UnreviewableInput: it is no PNG, JPEG, GIF or WebP.
    """
    found = media_type_of_head(image.data[:HEAD_BYTES])
    if found is None:
        raise UnreviewableInput(f"{field}: is not a PNG, JPEG, GIF or WebP image", stage="images")
    return found


def is_shown_whole(image: Image) -> bool:
    """Whether a model that is sent the image, or the stills of an animation, has seen all of it."""
    return image.look.shown_whole if image.look is not None else is_still(image)


def is_still(image: Image) -> bool:
    """Whether the image has one frame only, for certain. Models see the first frame of an animation and no more.

    A GIF's frames cannot be counted without reading it to its end, so none counts as a still.
    """
    data = image.data
    if data.startswith(b"GIF8"):
        return False
    if data.startswith(b"RIFF"):
        return not (data[12:16] == b"VP8X" and len(data) > 20 and data[20] & _VP8X_ANIMATION)
    return not (data.startswith(b"\x89PNG") and b"acTL" in data)
