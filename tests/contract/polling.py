"""Waiting for something to become true, in place of sleeping for a while and hoping."""

import asyncio
import time
from collections.abc import Callable

from sqlalchemy import text

from imprimatur.storage.database import Database
from tests import makers
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


async def lock_waiters(database: Database, number: int) -> None:
    """Wait until so many transactions wait for what another has locked. On SQLite they wait to begin, which nobody
    sees."""
    if database.on_postgresql:
        await makers.until(lambda: _wait_for_locks(database, number))


async def _wait_for_locks(database: Database, number: int) -> bool:
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND datname = current_database()"
    )
    async with database.read() as reader:
        return bool((await reader.connection.execute(text(waiting))).scalar_one() >= number)
