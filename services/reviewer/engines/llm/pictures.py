"""What must be known of an image before it is sent: its media type, by its first bytes."""

from imprimatur.assets import HEAD_BYTES
from imprimatur.assets import media_type_of as media_type_of_head
from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import Image


def media_type_of(image: Image, field: str) -> str:
    """The media type by the first bytes; `field` is the image's place, such as "images[0]".

    Raises:
        UnreviewableInput: it is no PNG, JPEG, GIF or WebP.
    """
    found = media_type_of_head(image.data[:HEAD_BYTES])
    if found is None:
        raise UnreviewableInput(f"{field}: is not a PNG, JPEG, GIF or WebP image", stage="images")
    return found
