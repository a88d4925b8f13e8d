"""Publishing: one connection, one channel in confirm mode, many publishes in flight on it.

By aio-pika's protocol layer (aiormq): its `wait=False` keeps a publish from holding the channel until the socket
has been written, which saves a third of the time.
"""

import asyncio
from typing import cast

import structlog
from aio_pika import DeliveryMode
from aio_pika.exceptions import PublishError
from aiormq import Channel as ProtocolChannel
from pamqp.commands import Basic
from yarl import URL

from imprimatur.broker import EVENTS, Message
from imprimatur.broker.rabbitmq.session import Limits, Link, Session
from imprimatur.broker.rabbitmq.topology import Topology
from imprimatur.broker.rabbitmq.waiting import Faults, bounded
from imprimatur.broker.rabbitmq.writing import write_together
from imprimatur.errors import BrokerError, Unroutable

log = structlog.get_logger(__name__)

EXCHANGES = frozenset({"", EVENTS})
CONTENT_TYPE = "application/x-protobuf"


class Publishing:
    """The publishing half of the broker."""

    def __init__(self, url: URL, name: str, limits: Limits, topology: Topology) -> None:
        self._limits = limits
        self._topology = topology
        self._channel: ProtocolChannel
        self._in_flight: dict[str, asyncio.Future[None]] = {}
        self._declaring: asyncio.Task[None] | None = None
        self.session = Session(url, f"{name} (publish)", limits, prepare=self._prepare, check=self._check)

    @property
    def ready(self) -> bool:
        """Whether a publish would be tried now."""
        link = self.session.current
        return link is not None and link.usable and not self._channel.is_closed

    async def publish(self, message: Message) -> None:
        """As `Broker.publish`."""
        while (earlier := self._in_flight.get(message.message_id)) is not None:
            await asyncio.wait({earlier})  # aio-pika matches a returned message by its id alone
        ended = asyncio.get_running_loop().create_future()
        if message.message_id:
            self._in_flight[message.message_id] = ended
        try:
            await self._send(message)
        except Unroutable:
            await self._declare_again()
            raise
        finally:
            self._in_flight.pop(message.message_id, None)
            ended.set_result(None)

    async def _send(self, message: Message) -> None:
        if not self.ready:
            raise BrokerError("Not connected to the broker, or blocked by it")
        if message.exchange not in EXCHANGES:
            raise Unroutable(f"There is no exchange {message.exchange!r}")
        with Faults("publishing"):
            try:
                await self._channel.basic_publish(
                    message.body,
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    properties=_properties(message),
                    mandatory=message.mandatory,
                    timeout=self._limits.confirm,
                    wait=False,
                )
            except PublishError as returned:
                raise Unroutable(f"No queue takes {message.routing_key!r}") from returned

    async def _declare_again(self) -> None:
        """Once for all publishes that came back together."""
        if self._declaring is None or self._declaring.done():
            self._declaring = asyncio.create_task(self._declare())
        await asyncio.wait({self._declaring})

    async def _declare(self) -> None:
        link = self.session.current
        if link is None:
            return
        try:
            await link.declare(self._topology)
        except BrokerError as fault:
            log.warning("The topology could not be declared again", reason=str(fault))

    async def _prepare(self, link: Link) -> None:
        await link.declare(self._topology)
        await bounded(self._open_channel(link), self._limits.call, "opening a channel to publish")

    async def _open_channel(self, link: Link) -> None:
        channel = link.connection.channel(on_return_raises=True)
        await channel.initialize()
        channel.close_callbacks.add(lambda *_: link.lost.set())
        self._channel = cast(ProtocolChannel, await channel.get_underlay_channel())
        write_together(self._channel)

    async def _check(self, link: Link) -> None:
        """Bring back what was deleted, and find a frozen broker sooner than the heartbeat does.

        A broker that blocks us answers nothing: then there is nothing to do but wait.
        """
        if link.usable:
            await link.declare(self._topology)


def _properties(message: Message) -> Basic.Properties:
    return Basic.Properties(
        headers=dict(message.headers),
        message_id=message.message_id,
        content_type=CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
    )
