"""Images are opened for real; broken, oversized and foreign ones are refused with words that help."""

import io
import struct
import zlib
from collections.abc import Sequence

import pytest
from PIL import Image as Pillow

from imprimatur.assets import MAX_BYTES
from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import Finding, Image
from reviewer.engines.builtin import images


def picture(width: int = 300, height: int = 250) -> Pillow.Image:
    return Pillow.linear_gradient("L").resize((width, height)).convert("RGB")


def encoded(frames: Sequence[Pillow.Image], form: str) -> bytes:
    file = io.BytesIO()
    frames[0].save(file, form, save_all=len(frames) > 1, append_images=frames[1:])
    return file.getvalue()


def examined(data: bytes) -> list[Finding]:
    return images.examine(Image(name="banner", data=data), "images[0]")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_sound_image_of_an_allowed_format_passes_without_findings(form: str) -> None:
    assert examined(encoded([picture()], form)) == []


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_cut_off_image_is_refused(form: str) -> None:
    data = encoded([picture()], form)
    with pytest.raises(UnreviewableInput, match=r"^images\[0\]: .*PNG, JPEG, GIF or WebP") as caught:
        examined(data[: len(data) // 2])
    assert caught.value.stage == "images"


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"not an image", b"\x00" * 1000, b"\x89PNG\r\n\x1a\n"])
def test_something_that_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnreviewableInput, match="PNG, JPEG, GIF or WebP"):
        examined(data)


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM", "ICO"])
def test_an_image_of_another_format_is_refused(form: str) -> None:
    with pytest.raises(UnreviewableInput, match="PNG, JPEG, GIF or WebP"):
        examined(encoded([picture(64, 64)], form))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UnreviewableInput, match=r"100000 x 100000 px; at most 40,000,000 pixels"):
        examined(bomb(100_000, 100_000))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(UnreviewableInput, match=r"at most 20,971,520 are allowed"):
        examined(b"\x00" * (MAX_BYTES + 1))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_sampled_and_said_to_be_one(form: str) -> None:
    frames = [picture().rotate(angle) for angle in range(0, 120, 10)]
    (finding,) = examined(encoded(frames, form))
    assert finding.quote == f"{form}, 12 frames"
    assert "8 of its frames" in finding.explanation


def test_an_animation_with_a_broken_frame_is_refused() -> None:
    data = encoded([picture().rotate(angle) for angle in range(0, 120, 10)], "WEBP")
    with pytest.raises(UnreviewableInput):
        examined(data[: len(data) * 3 // 4])


def test_a_tracking_pixel_is_pointed_out() -> None:
    quotes = [finding.quote for finding in examined(encoded([picture(1, 1)], "PNG"))]
    assert quotes == ["1 x 1 px", "1 x 1 px, one colour"]


def test_a_blank_image_is_pointed_out() -> None:
    (finding,) = examined(encoded([Pillow.new("RGB", (300, 250), "white")], "JPEG"))
    assert (finding.category, finding.field) == (None, "images[0]")
    assert "placeholder" in finding.explanation
