"""Gauges of what is in the database: looked at in the background, so that a scrape never waits for it."""

import asyncio
from collections.abc import Awaitable, Callable

from imprimatur.metrics import LOOK_SECONDS, PAUSE_SECONDS
from imprimatur.runtime import Loop
from imprimatur.storage.database import Database, Reader


class Gauges(Loop):
    """Looks again and again; a look that fails is a failure of the loop `name`.

    Args:
        look: shows what it sees in `metrics.DatabaseGauge`s.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        look: Callable[[Reader], Awaitable[None]],
        *,
        every_seconds: float = PAUSE_SECONDS,
    ) -> None:
        async def step() -> None:
            async with asyncio.timeout(LOOK_SECONDS), database.read() as reader:
                await look(reader)

        super().__init__(name, step, interval_seconds=every_seconds)
