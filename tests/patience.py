"""How long a test waits for what must come before it gives up.

Nothing is slower for it while all is well, and no test is lost to a machine that is busy with something else. So no
bound stands here or in a test for "soon": what must not wait for some interval is tested with that interval made long.
"""

import asyncio

#: For one answer, one change, one start of a process.
PATIENCE_SECONDS = 90.0


async def happens(event: asyncio.Event) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await event.wait()
