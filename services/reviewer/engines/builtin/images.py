"""Measures of images that are worth a person's look: too small, blank, animated.

What an image shows is not examined here; the engine says so in its evidence.
"""

from collections.abc import Iterator

from imprimatur.evidence import Finding, Image, Look
from reviewer.images import decoding

SMALLEST_SIDE = 32  #: px; below it there is nothing to see


def examine(image: Image, field: str) -> list[Finding]:
    """Findings about one image, `field` being its place, such as "images[0]". One that nobody has looked at yet is
    decoded: this runs in a child process.

    Raises:
        UnreviewableInput: it is too large, of another format, or does not decode.
    """
    return list(_findings(image.look or decoding.look_at(image.data, field), field))


def _findings(look: Look, field: str) -> Iterator[Finding]:
    size = f"{look.width} x {look.height} px"
    if look.frames > 1:
        quote = f"{look.format}, {look.frames} frames"
        yield _fact(field, quote, f"Animated: {look.sampled} of its frames were decoded. Watch it as a whole.")
    if min(look.width, look.height) < SMALLEST_SIDE:
        yield _fact(field, size, "Too small for a reader to see anything: a tracking pixel, or a wrong upload?")
    if look.plain:
        yield _fact(field, f"{size}, one colour", "The image is one colour all over: a placeholder?")


def _fact(field: str, quote: str, explanation: str) -> Finding:
    return Finding(category=None, score=1.0, field=field, quote=quote, explanation=explanation)
