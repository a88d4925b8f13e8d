"""The notifier, put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from imprimatur import metrics
from imprimatur.broker import Broker
from imprimatur.errors import Unavailable
from imprimatur.guard import Guard
from imprimatur.storage.database import Database
from imprimatur.storage.deliveries import counts
from imprimatur.vault import Vault
from notifier.announcer import Announcer, Sweep
from notifier.deliverer import Deliverer, Pace
from notifier.post import Poster
from notifier.room import Limits

#: The longest that one look at the database may hold up /metrics.
_OBSERVE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Notifier:
    """A notifier that is running."""

    database: Database
    announcer: Announcer

    async def consuming(self) -> str | None:
        """Readiness: the broker knows our consumer."""
        return None if self.announcer.consuming else "the queue of outcomes has no consumer of this process"

    async def observe(self) -> None:
        """Set the gauges that are read when they are scraped."""
        try:
            async with asyncio.timeout(_OBSERVE_SECONDS), self.database.read() as reader:
                open_ones = await counts(reader)
        except (Unavailable, TimeoutError):
            return  # the other metrics must not wait for the database
        metrics.webhook_deliveries_pending.show(open_ones.deliveries)
        metrics.webhooks_pending.show(open_ones.events)
        metrics.webhook_oldest_untried_seconds.show(open_ones.oldest_untried_seconds)


@asynccontextmanager
async def notifier(
    database: Database,
    broker: Broker,
    vault: Vault,
    guard: Guard,
    *,
    limits: Limits | None = None,
    pace: Pace | None = None,
    sweep: Sweep | None = None,
    timeout_seconds: float = 15.0,
    drain_seconds: float = 20.0,
) -> AsyncIterator[Notifier]:
    """Run a notifier inside the block, and drain it at the end: posts under way are finished for at most
    `drain_seconds`, the rest is given back.

    Args:
        timeout_seconds: the longest that one post may take.
    """
    poster = Poster(guard, timeout_seconds=timeout_seconds)
    deliverer = Deliverer(database, vault, poster, limits=limits or Limits(), pace=pace or Pace())
    announcer = Announcer(database, broker, vault, deliverer, sweep=sweep or Sweep())
    metrics.broker_consuming.labels("notifier").set_function(lambda: announcer.consuming)
    deliverer.start()
    try:
        await announcer.start()
        yield Notifier(database=database, announcer=announcer)
    finally:
        await announcer.stop()
        await deliverer.stop(drain_seconds=drain_seconds)
        await poster.close()
