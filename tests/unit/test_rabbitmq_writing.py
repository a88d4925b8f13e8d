"""Frames of one turn of the event loop, and how they reach the connection's writer."""

import asyncio
from dataclasses import dataclass, field

import pytest
from aiormq.abc import ChannelFrame

from imprimatur.broker.rabbitmq.writing import write_together
from tests.patience import PATIENCE_SECONDS


@dataclass
class Channel:
    """What is needed of one: the queue to its writer, which takes two frames at a time."""

    write_queue: "asyncio.Queue[ChannelFrame]" = field(default_factory=lambda: asyncio.Queue(maxsize=2))
    is_closed: bool = False


def frame(payload: bytes, *, waited_for: bool = False, last: bool = False) -> ChannelFrame:
    drained = asyncio.get_running_loop().create_future() if waited_for else None
    return ChannelFrame(payload=payload, should_close=last, drain_future=drained)


async def written(queue: "asyncio.Queue[ChannelFrame]") -> bytes:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await queue.get()).payload


@pytest.fixture
def channel() -> Channel:
    return Channel()


async def test_what_is_sent_in_one_turn_leaves_in_one_write_and_in_order(channel: Channel) -> None:
    queue = channel.write_queue
    write_together(channel)
    for payload in (b"a", b"b", b"c"):
        await channel.write_queue.put(frame(payload))
    assert queue.empty()
    assert await written(queue) == b"abc"
    channel.write_queue.put_nowait(frame(b"d"))
    assert await written(queue) == b"d"
    assert queue.empty()


async def test_a_frame_that_somebody_waits_for_and_the_last_one_go_alone_in_their_places(channel: Channel) -> None:
    queue = channel.write_queue
    write_together(channel)
    waited_for, last = frame(b"c", waited_for=True), frame(b"f", last=True)
    for one in (frame(b"a"), frame(b"b"), waited_for, frame(b"d"), frame(b"e"), last):
        channel.write_queue.put_nowait(one)
    async with asyncio.timeout(PATIENCE_SECONDS):
        found = [await queue.get() for _ in range(4)]
    assert [one.payload for one in found] == [b"ab", b"c", b"de", b"f"]
    assert found[1] is waited_for
    assert found[3] is last


async def test_what_a_writer_that_stands_still_does_not_take_waits_for_it_in_order(channel: Channel) -> None:
    queue = channel.write_queue
    write_together(channel)
    for payload in (b"a", b"b", b"c", b"d"):
        channel.write_queue.put_nowait(frame(payload, waited_for=True))
    await asyncio.sleep(0)
    assert queue.full()
    channel.write_queue.put_nowait(frame(b"e"))
    assert [await written(queue) for _ in range(5)] == [b"a", b"b", b"c", b"d", b"e"]


async def test_what_a_closed_channel_still_holds_keeps_nothing_alive(channel: Channel) -> None:
    queue = channel.write_queue
    write_together(channel)
    for payload in (b"a", b"b", b"c"):
        channel.write_queue.put_nowait(frame(payload, waited_for=True))
    channel.is_closed = True
    await asyncio.sleep(0)
    assert [await written(queue) for _ in range(2)] == [b"a", b"b"]
    await asyncio.sleep(0.05)  # nothing to wait for: that nothing comes any more is the point
    assert queue.empty()
