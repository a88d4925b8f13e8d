"""Waiting for something to become true, in place of sleeping for a while and hoping."""

import asyncio
import time
from collections.abc import Callable

from tests.patience import PATIENCE_SECONDS

POLL_SECONDS = 0.01


async def eventually(condition: Callable[[], object], what: str = "", *, seconds: float = PATIENCE_SECONDS) -> float:
    """Wait until `condition` holds; return the seconds that took. Fails the test after `seconds`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began
