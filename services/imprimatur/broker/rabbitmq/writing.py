"""What a channel sends in one turn of the event loop leaves in one write.

Each write of its own would be a system call, and wake the broker: for a message that costs more than all else.
"""

import asyncio
from itertools import groupby
from typing import Any

from aiormq.abc import ChannelFrame

#: Until a connection that writes nothing is asked again to take something.
_AGAIN_SECONDS = 0.005


def write_together(channel: Any) -> None:
    """Let the frames of a channel (aiormq's) leave together from now on."""
    channel.write_queue = _Together(channel)


class _Together:
    """Takes the place of the queue between a channel and its connection's writer (aiormq's `Channel.write_queue`)."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._queue: asyncio.Queue[ChannelFrame] = channel.write_queue
        self._frames: list[ChannelFrame] = []

    async def put(self, frame: ChannelFrame) -> None:
        """As of a queue; it never waits, since those who send wait for their answers."""
        self.put_nowait(frame)

    def put_nowait(self, frame: ChannelFrame) -> None:
        """As of a queue."""
        self._frames.append(frame)
        if len(self._frames) == 1:
            asyncio.get_running_loop().call_soon(self._pass_on)

    def _pass_on(self) -> None:
        frames, self._frames = self._frames, []
        merged = [one for alone, group in groupby(frames, _goes_alone) for one in (group if alone else _merged(group))]
        for place, frame in enumerate(merged):
            try:
                self._queue.put_nowait(frame)
            except asyncio.QueueFull:
                self._frames = merged[place:] + self._frames
                if not self._channel.is_closed:
                    asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._pass_on)
                return


def _goes_alone(frame: ChannelFrame) -> bool:
    """Whether somebody waits until it is written."""
    return frame.drain_future is not None or frame.should_close


def _merged(frames: Any) -> list[ChannelFrame]:
    return [ChannelFrame(payload=b"".join(one.payload for one in frames), should_close=False)]
