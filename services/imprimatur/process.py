"""One service process: what surrounds the service, and how it starts and ends."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TypeVar

import structlog
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from imprimatur import metrics, tracing
from imprimatur.broker import Broker
from imprimatur.broker.rabbitmq import RabbitMQBroker
from imprimatur.errors import ConfigurationError, Unavailable
from imprimatur.outbox import Outbox
from imprimatur.runtime import Check, HttpPort, StopSignal, configure_logging, run_until_signalled
from imprimatur.settings import SharedSettings, TracingSettings, explain
from imprimatur.storage import migrations
from imprimatur.storage.database import Database

log = structlog.get_logger(__name__)

_Settings = TypeVar("_Settings", bound=BaseSettings)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a service works with."""

    database: Database
    broker: Broker

    def checks(self) -> dict[str, Check]:
        """Readiness of what can do nothing without both."""
        return {"database": self.database_answers, "broker": self.broker_answers}

    async def observe(self) -> None:
        """Set the gauges that are read when they are scraped."""
        metrics.broker_connected.set(self.broker.connected)
        metrics.database_connections.set(self.database.pool_in_use)
        metrics.database_pool_size.set(self.database.pool_size)

    async def database_answers(self) -> str | None:
        """Readiness: the database answers."""
        try:
            await self.database.ping()
        except Unavailable as fault:
            return fault.message
        return None

    async def broker_answers(self) -> str | None:
        """Readiness: there is a connection to the broker."""
        return None if self.broker.connected else "there is no connection to the broker"


@asynccontextmanager
async def surroundings(settings: SharedSettings, http: HttpPort, *, name: str) -> AsyncIterator[Surroundings]:
    """Database, broker, outbox and traces for one service process, closed in the right order at the end.

    A database that is down is waited for, and named by `http`; one with another schema is an error.

    Raises:
        ConfigurationError: the schema is not the one this version needs.
    """
    configure_logging(level=settings.log_level, json=settings.log_json)
    structlog.contextvars.bind_contextvars(service=name)
    metrics.build_info.labels(name, version("imprimatur")).set(1)
    database = Database(settings.database_url, pool_size=settings.database_pool_size)
    broker = RabbitMQBroker(settings.broker_url, name=f"imprimatur-{name}@{process_name()}")
    outbox = Outbox(database, broker)
    around = Surroundings(database=database, broker=broker)
    async with traced(settings, name=name):
        try:
            with http.telling({"database": around.database_answers}, around.observe):
                await _wait_for_schema(database)
                await broker.start()
                outbox.start()
                yield around
        finally:
            await outbox.stop()
            await broker.close()
            await database.close()


def traced(settings: TracingSettings, *, name: str) -> AbstractAsyncContextManager[None]:
    """Inside the block, this process's spans go where the settings say."""
    return tracing.exporting(
        settings.otlp_endpoint,
        service=f"imprimatur-{name}",
        instance=process_name(),
        sample_ratio=settings.trace_sample_ratio,
    )


def process_name() -> str:
    """This process among its peers: host and pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_service(
    settings_class: type[_Settings], run: Callable[[_Settings, StopSignal], Coroutine[None, None, None]]
) -> None:
    """Read the settings from the environment and run; a wrong one is one clear line and exit code 1, and so is what
    ends the service otherwise, as its last line in the log."""
    try:
        run_until_signalled(partial(run, read_settings(settings_class)))
    except ConfigurationError as fault:
        sys.stderr.write(f"error: {fault}\n")
        raise SystemExit(1) from None
    except Exception:
        log.exception("the service was ended by an error")
        raise SystemExit(1) from None


def read_settings(settings_class: type[_Settings]) -> _Settings:
    """Settings from the environment.

    Raises:
        ConfigurationError: naming each wrong variable.
    """
    try:
        return settings_class()
    except ValidationError as fault:
        raise explain(fault) from None


async def _wait_for_schema(database: Database) -> None:
    while True:
        try:
            return await migrations.require_current(database)
        except Unavailable as fault:
            log.warning("waiting for the database", error=fault.message)
            await asyncio.sleep(1.0)
