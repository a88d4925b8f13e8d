"""Jobs that were asked for and wait for a free slot: HIGH before NORMAL before LOW, save for the share of each.

One that has found no slot for a while is given up again, for an idle peer.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable

from imprimatur.job import Priority
from imprimatur.turns import next_of
from reviewer.asked import Asked


class Inbox:
    """Jobs in hand.

    Args:
        tired: called with each that has waited too long; it is not here any more.
    """

    def __init__(self, tired: Callable[[Asked], None], *, patience_seconds: float = 1.0) -> None:
        self._tired = tired
        self._patience_seconds = patience_seconds
        self._waiting: dict[Priority, deque[tuple[float, Asked]]] = {one: deque() for one in Priority}
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, priority: Priority, asked: Asked) -> None:
        """Keep it until its turn."""
        now = asyncio.get_running_loop().time()
        self._waiting[priority].append((now, asked))
        self._arrived.set()
        self._set_timer()

    async def next(self) -> Asked:
        """Wait for one and take it; of several, the one whose turn it is."""
        while not (waiting := [one for one, those in self._waiting.items() if those]):
            self._arrived.clear()
            await self._arrived.wait()
        turn = next_of(waiting, random.random())  # noqa: S311  # shares slots, guards nothing
        return self._waiting[turn].popleft()[1]

    def clear(self) -> None:
        """Forget everything."""
        for those in self._waiting.values():
            those.clear()

    def _set_timer(self) -> None:
        oldest = min((those[0][0] for those in self._waiting.values() if those), default=None)
        if oldest is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(oldest + self._patience_seconds, self._give_up_old)

    def _give_up_old(self) -> None:
        self._timer = None
        longest_ago = asyncio.get_running_loop().time() - self._patience_seconds
        for those in self._waiting.values():
            while those and those[0][0] <= longest_ago:
                self._tired(those.popleft()[1])
        self._set_timer()
