"""The notifier, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from imprimatur import metrics
from imprimatur.broker import Broker
from imprimatur.gauges import Gauges
from imprimatur.guard import Guard
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.deliveries import counts
from imprimatur.vault import Vault
from notifier.announcer import Announcer, Sweep
from notifier.deliverer import Deliverer, Pace
from notifier.post import Poster
from notifier.room import Limits


@dataclass(frozen=True, kw_only=True)
class Notifier:
    """A notifier that is running."""

    announcer: Announcer

    async def consuming(self) -> str | None:
        """Readiness: the broker knows our consumer."""
        return None if self.announcer.consuming else "the queue of outcomes has no consumer of this process"


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
    look_seconds: float = metrics.PAUSE_SECONDS,
) -> AsyncIterator[Notifier]:
    """Run a notifier inside the block, and drain it at the end: posts under way are finished for at most
    `drain_seconds`, the rest is given back.

    Args:
        timeout_seconds: the longest that one post may take.
        look_seconds: between two looks at what is not done yet.
    """
    poster = Poster(guard, timeout_seconds=timeout_seconds)
    deliverer = Deliverer(database, vault, poster, limits=limits or Limits(), pace=pace or Pace())
    announcer = Announcer(database, broker, vault, deliverer, sweep=sweep or Sweep())
    metrics.broker_consuming.labels("notifier").set_function(lambda: announcer.consuming)
    gauges = Gauges("webhook-gauges", database, _show_open, every_seconds=look_seconds)
    deliverer.start()
    gauges.start()
    try:
        await announcer.start()
        yield Notifier(announcer=announcer)
    finally:
        await gauges.stop()
        await announcer.stop()
        await deliverer.stop(drain_seconds=drain_seconds)
        await poster.close()


async def _show_open(reader: Reader) -> None:
    """Set the gauges of what is not done yet."""
    open_ones = await counts(reader)
    metrics.webhook_deliveries_pending.show(open_ones.deliveries)
    metrics.webhooks_pending.show(open_ones.events)
    metrics.webhook_oldest_untried_seconds.show(open_ones.oldest_untried_seconds)
