"""A connection that is brought back for ever. What runs over it is the business of publishing and consuming.

Plain connections, not aio-pika's robust ones: those restore channels behind our back, one by one, and tell
nobody what was missed meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from aio_pika import Connection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from imprimatur.broker.rabbitmq.topology import Topology
from imprimatur.broker.rabbitmq.waiting import Backoff, bounded, stop
from imprimatur.errors import BrokerError

log = structlog.get_logger(__name__)

#: A farewell that takes longer is cut short: the broker is frozen, or does not read.
CLOSE_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to wait for what, in seconds."""

    heartbeat: int
    confirm: float  #: a publish and its confirmation
    call: float  #: any other question to the broker
    check: float  #: between two looks at whether all is as we believe
    reconnect_max: float


class Link:
    """One connection while it lasts."""

    def __init__(self, connection: Connection, wire: "Wire", limits: Limits) -> None:
        self.connection = connection
        self.lost = asyncio.Event()
        self._wire = wire
        self._limits = limits
        connection.close_callbacks.add(lambda *_: self.lost.set())

    @property
    def usable(self) -> bool:
        """Neither lost nor blocked by an alarm of the broker."""
        transport = self.connection.transport
        if transport is None or self.lost.is_set():
            return False
        return _is_ready_now(transport.ready())

    async def declare(self, topology: Topology) -> None:
        """Declare the topology. Raises BrokerError."""
        await bounded(topology.declare(self.connection), 2 * self._limits.call, "declaring the topology")

    async def lost_within(self, seconds: float) -> bool:
        """Wait for the end of the connection, for so long."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: on Python 3.11 it swallows a cancellation that arrives with the event.
            async with asyncio.timeout(seconds):
                await self.lost.wait()
        return self.lost.is_set()

    async def close(self) -> None:
        """Take leave, in at most CLOSE_SECONDS."""
        try:
            await bounded(self.connection.close(), CLOSE_SECONDS, "closing")
        except BrokerError:
            log.info("The broker did not take leave; the connection is cut")
        finally:
            self._wire.cut()
            self.lost.set()


def _is_ready_now(ready: Any) -> bool:
    """Whether aio-pika's `ready()` would return without waiting. It has no property that says so."""
    waiting = ready.__await__()
    try:
        next(waiting)
    except StopIteration:
        return True
    finally:
        waiting.close()
    return False


class Wire(TransportFactory):
    """Opens the socket for aio-pika and keeps hold of it, for it cannot close one that is not read from."""

    def __init__(self, url: URL) -> None:
        self._factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Called by aio-pika."""
        reader, self._writer = await self._factory.create(url, **kwargs)
        return reader, self._writer

    def cut(self) -> None:
        """Close the socket without a farewell. Harmless when it is closed."""
        if self._writer is not None:
            self._writer.transport.abort()


@asynccontextmanager
async def opened(url: URL, name: str, limits: Limits) -> AsyncIterator[Link]:
    """A connection under this name, closed at the end. Raises BrokerError."""
    wire = Wire(url)
    connection = Connection(url.update_query(heartbeat=limits.heartbeat), client_properties={"connection_name": name})
    connection.kwargs["transport_factory"] = wire
    link = Link(connection, wire, limits)
    try:
        await bounded(connection.connect(), limits.call, "connecting")
        yield link
    finally:
        await link.close()


class Session:
    """Connects, prepares, checks now and then, and starts over when the connection or a check fails."""

    def __init__(
        self,
        url: URL,
        name: str,
        limits: Limits,
        *,
        prepare: Callable[[Link], Awaitable[None]],
        check: Callable[[Link], Awaitable[None]],
    ) -> None:
        self._url = url
        self._name = name
        self._limits = limits
        self._prepare = prepare
        self._check = check
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"session {self._name}")

    @property
    def current(self) -> Link | None:
        """The connection, if there is one that is prepared and not known to be lost."""
        return None if self._link is None or self._link.lost.is_set() else self._link

    async def link(self) -> Link:
        """The connection, as soon as there is one."""
        while (link := self.current) is None:
            self._up.clear()  # it may be lost without `_run` having noticed
            await self._up.wait()
        return link

    async def close(self) -> None:
        """End it, within CLOSE_SECONDS and a little."""
        if self._task is not None:
            await stop(self._task, 2 * CLOSE_SECONDS)

    async def _run(self) -> None:
        backoff = Backoff(self._limits.reconnect_max)
        while True:
            try:
                await self._one_connection(backoff)
                log.warning("The connection to the broker was lost", connection=self._name)
            except BrokerError as fault:
                log.warning("No connection to the broker", connection=self._name, reason=str(fault))
            except Exception:
                log.exception("A connection to the broker failed", connection=self._name)
            await backoff.pause()

    async def _one_connection(self, backoff: Backoff) -> None:
        async with opened(self._url, self._name, self._limits) as link:
            await self._prepare(link)
            backoff.succeeded()
            log.info("Connected to the broker", connection=self._name)
            self._link = link
            self._up.set()
            try:
                while not await link.lost_within(self._limits.check):
                    await self._check(link)
            finally:
                self._link = None
                self._up.clear()
