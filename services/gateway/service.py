"""The gateway, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.access import Doorkeeper
from gateway.administration import Administration
from gateway.assets import Assets
from gateway.cleaning import Cleaner
from gateway.dispatcher import Dispatcher
from gateway.health import Health
from gateway.holds import Holds, show_queue
from gateway.interception import Edge
from gateway.jobs import Jobs
from gateway.load import Load
from gateway.policies import Policies
from gateway.quotas import Allowance, Quotas
from gateway.recovery import Recovery
from gateway.reviews import Reviews
from gateway.server import SERVICES, Listener, Servicers, grpc_port
from gateway.statistics import show_unfinished
from gateway.watching import Watchtower
from gateway.webhooks import Webhooks
from imprimatur.assets import MAX_BYTES
from imprimatur.broker import Broker
from imprimatur.gauges import Gauges
from imprimatur.guard import Guard
from imprimatur.human import DueHours
from imprimatur.retention import Retention
from imprimatur.storage.database import Database
from imprimatur.vault import Vault

DEFAULT_ALLOWANCE = Allowance()


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A gateway that is running."""

    port: int


@asynccontextmanager
async def gateway(
    database: Database,
    broker: Broker,
    vault: Vault,
    guard: Guard,
    listener: Listener,
    *,
    allowance: Allowance = DEFAULT_ALLOWANCE,
    lease_seconds: float = 3.0,
    retention: Retention = Retention(),  # noqa: B008  # frozen
    due: DueHours = DueHours(),  # noqa: B008  # frozen
    most_asset_bytes: int = MAX_BYTES,
    drain_seconds: float = 20.0,
) -> AsyncIterator[Gateway]:
    """Run a gateway inside the block, and drain it at the end.

    The outbox is started by the caller: one per process, whatever services run in it.
    """
    dispatcher = Dispatcher(database, most_of_a_tenant=allowance.running_jobs)
    recovery = Recovery(database, broker, dispatcher, lease_seconds=lease_seconds)
    watchtower = Watchtower(database, broker, heard=dispatcher.hear)
    quotas = Quotas(database, allowance)
    doorkeeper = Doorkeeper(database)
    gauges = Gauges("gauges", database, show_unfinished)
    queue_gauges = Gauges("review-gauges", database, lambda reader: show_queue(reader, due))
    cleaner = Cleaner(database, retention)
    holds = Holds(database)
    servicers = Servicers(
        jobs=Jobs(database, broker, dispatcher, watchtower, quotas=quotas, guard=guard, retention=retention),
        assets=Assets(database, quotas, retention, most_bytes=most_asset_bytes),
        reviews=Reviews(database, watchtower.followers, retention, due),
        webhooks=Webhooks(database, vault, guard),
        administration=Administration(database, retention, allowance),
        policies=Policies(database),
    )
    await watchtower.start()
    dispatcher.start()
    recovery.start()
    gauges.start()
    queue_gauges.start()
    cleaner.start()
    holds.start()
    try:
        edge = Edge(doorkeeper, Load(allowance))
        health = Health(database, SERVICES)
        async with grpc_port(listener, servicers, edge, watchtower, health, drain_seconds=drain_seconds) as port:
            yield Gateway(port=port)
    finally:
        await watchtower.stop()
        await holds.stop()
        await cleaner.stop()
        await quotas.stop()
        await doorkeeper.stop()
        await queue_gauges.stop()
        await gauges.stop()
        await recovery.stop()
        await dispatcher.stop()
