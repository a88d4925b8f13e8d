"""Images are decoded for real: what is found of each, of which frames, and how much room they take meanwhile."""

import asyncio
import io

import pytest
from PIL import Image as Pillow

from imprimatur.errors import UnreviewableInput
from reviewer.images import decoding
from reviewer.images.images import Room
from tests.unit.test_builtin_images import bomb, encoded, picture


def still(data: bytes) -> Pillow.Image:
    opened = Pillow.open(io.BytesIO(data))
    opened.load()
    return opened


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_of_a_still_its_format_and_size_are_told(form: str) -> None:
    look = decoding.look_at(encoded([picture()], form), "images[0]")
    assert (look.format, look.width, look.height, look.frames, look.sampled) == (form, 300, 250, 1, 1)
    assert (look.plain, look.stills, look.shown_whole(most_side_px=300)) == (False, (), True)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize(("frames", "whole"), [(2, True), (8, True), (9, False), (30, False)])
def test_of_an_animation_frames_are_sampled_and_shown_as_stills(form: str, frames: int, whole: bool) -> None:
    colours = [Pillow.new("RGB", (64, 48), (0, 0, 8 * number)) for number in range(frames)]
    look = decoding.look_at(encoded(colours, form), "images[0]")
    assert (look.frames, look.shown_whole(most_side_px=64)) == (frames, whole)
    shades = [still(one).convert("RGB").getpixel((32, 24)) for one in look.stills]
    blues = [shade[2] for shade in shades if isinstance(shade, tuple)]
    assert blues == sorted(blues)
    assert abs(blues[0] - 0) < 8
    assert abs(blues[-1] - 8 * (frames - 1)) < 12
    assert len(look.stills) == look.sampled == min(8, frames)


def test_stills_are_small_and_what_is_transparent_is_white() -> None:
    frames = [Pillow.new("RGBA", (3000, 1500), (0, 0, 0, 0)), Pillow.new("RGBA", (3000, 1500), (255, 0, 0, 255))]
    look = decoding.look_at(encoded(frames, "PNG"), "images[0]")
    first, second = (still(one) for one in look.stills)
    assert (first.format, first.size) == ("JPEG", (1024, 512))
    assert first.getpixel((500, 250)) == (255, 255, 255)
    red = second.getpixel((500, 250))
    assert isinstance(red, tuple)
    assert red[0] > 240 > 20 > red[1]


@pytest.mark.parametrize(("width", "whole"), [(2048, True), (2049, False)])
def test_stills_less_than_half_as_wide_as_their_frames_do_not_show_an_animation_whole(width: int, whole: bool) -> None:
    look = decoding.look_at(encoded([Pillow.new("1", (width, 8), shade) for shade in (0, 1)], "PNG"), "images[0]")
    assert (look.frames, len(look.stills), look.shown_whole(most_side_px=9999)) == (2, 2, whole)


@pytest.mark.parametrize(
    "name", ["SAMPLED_FRAMES", "MAX_FRAMES", "MAX_FRAME_PIXELS", "STILL_SIDE", "STILL_QUALITY", "MOST_SHRUNK"]
)
def test_whatever_decides_what_is_seen_of_an_animation_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = decoding.preparation()
    monkeypatch.setattr(decoding, name, getattr(decoding, name) + 1)
    assert decoding.preparation() != before


@pytest.mark.parametrize(
    ("frames", "pixels", "expected"),
    [
        (2, 100, [0, 1]),
        (9, 100, [0, 1, 2, 3, 4, 5, 6, 8]),
        (1_000_000, 1, [0, 714, 1428, 2142, 2856, 3570, 4284, 4999]),
        (100, 40_000_000, [0, 1, 2, 3, 4]),
        (100, 300_000_000, [0]),
    ],
)
def test_frames_are_spread_over_what_may_be_decoded(frames: int, pixels: int, expected: list[int]) -> None:
    assert decoding.sample(frames, pixels) == expected


def test_more_pixels_than_are_allowed_are_not_decoded() -> None:
    with pytest.raises(UnreviewableInput, match=r"^images\[3\]: has 8000 x 5001 px; at most 40,000,000 pixels"):
        decoding.look_at(bomb(8000, 5001), "images[3]")


# --- room --------------------------------------------------------------------------------------------------


async def test_who_finds_no_room_waits_in_turn_until_there_is() -> None:
    room = Room(10)
    first = await room.take(8)
    order: list[int] = []

    async def take(size: int) -> None:
        place = await room.take(size)
        order.append(size)
        place.shrink(0)

    waiting = [asyncio.create_task(take(size)) for size in (5, 2)]
    await asyncio.sleep(0)
    assert order == [], "the smaller one does not overtake"
    await take(0)
    first.shrink(4)
    await asyncio.sleep(0)
    first.shrink(6)  # it never grows
    await asyncio.gather(*waiting)
    assert order == [0, 5, 2]


async def test_who_stops_waiting_takes_nothing() -> None:
    room = Room(10)
    first = await room.take(10)
    waiting = asyncio.create_task(room.take(10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.shrink(0)
    async with asyncio.timeout(5):
        await room.take(10)
