"""Consuming: subscriptions that come back by themselves, and the deliveries they hand out.

Here aio-pika's protocol layer (aiormq) is used directly: it alone says when the broker cancels a consumer.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from aio_pika.abc import AbstractChannel
from aiormq.abc import AbstractChannel as ProtocolChannel
from aiormq.abc import DeliveredMessage

from imprimatur.broker import EVENTS, Message, Queue
from imprimatur.broker.rabbitmq.session import Limits, Link, Session
from imprimatur.broker.rabbitmq.topology import Topology, listener_arguments
from imprimatur.broker.rabbitmq.waiting import Backoff, Faults, bounded, stop
from imprimatur.broker.rabbitmq.writing import write_together
from imprimatur.errors import BrokerError

log = structlog.get_logger(__name__)

#: How long a subscription may take to close before its channel is left to die with the connection.
CLOSE_SECONDS = 1.0

#: What RabbitMQ adds to the headers of a message that it delivers again or moves.
BROKER_HEADERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")

Receive = Callable[[DeliveredMessage], Coroutine[Any, Any, None]]

#: Begins to consume on a fresh channel.
Attach = Callable[[AbstractChannel, Receive], Awaitable[None]]


class RabbitMQDelivery:
    """A `Delivery`. Its channel may be gone at any time: then settling it does nothing.

    Settling returns when the frame is queued; closing the subscription sends what is queued first.
    """

    __slots__ = ("_channel", "_in_hand", "_queue", "_raw", "_seconds", "message")

    def __init__(self, raw: DeliveredMessage, queue: Queue, seconds: float, in_hand: "set[RabbitMQDelivery]") -> None:
        self._raw = raw
        self._queue = queue
        self._channel: ProtocolChannel = raw.channel
        self._seconds = seconds
        self._in_hand = in_hand
        self.message = incoming(raw)
        in_hand.add(self)

    @property
    def redelivered(self) -> bool:
        """Whether the broker may have delivered it before."""
        return bool(self._raw.redelivered)

    async def ack(self) -> None:
        """Done with it (this tag alone)."""
        await self._settle(self._channel.basic_ack(self._tag, wait=False))

    async def give_back(self) -> None:
        """Put it back for another consumer, at once."""
        await self._settle(self._channel.basic_reject(self._tag, requeue=True, wait=False))

    async def set_aside(self) -> None:
        """Move it to PARKED, by way of the dead-letter exchange. What is in PARKED stays there."""
        await self._settle(self._channel.basic_reject(self._tag, requeue=self._queue is Queue.PARKED, wait=False))

    @property
    def _tag(self) -> int:
        return self._raw.delivery_tag or 0

    async def _settle(self, call: Awaitable[None]) -> None:
        self._in_hand.discard(self)
        try:
            with Faults("settling"):
                async with asyncio.timeout(self._seconds):
                    await call
        except BrokerError as fault:
            log.info(
                "A message could not be settled and will be delivered again",
                message_id=self.message.message_id,
                reason=str(fault),
            )


def incoming(raw: DeliveredMessage) -> Message:
    """The message as published: without what the broker wrote into its headers."""
    properties = raw.header.properties
    headers = properties.headers or {}
    return Message(
        routing_key=raw.routing_key or "",
        body=raw.body,
        message_id=properties.message_id or "",
        exchange=raw.exchange or "",
        headers={name: str(value) for name, value in headers.items() if not name.startswith(BROKER_HEADERS)},
    )


def from_queue(queue: Queue, prefetch: int) -> Attach:
    """Consume from a durable queue, with settlement."""

    async def attach(channel: AbstractChannel, receive: Receive) -> None:
        protocol = await channel.get_underlay_channel()
        await protocol.basic_qos(prefetch_count=prefetch)
        await protocol.basic_consume(queue.value, receive)

    return attach


def from_events(keys: tuple[str, ...], owner: str) -> Attach:
    """Consume from an exclusive queue with a fresh name: the last one may still be locked."""

    async def attach(channel: AbstractChannel, receive: Receive) -> None:
        queue = await channel.declare_queue(
            f"{owner}.{uuid.uuid4().hex}", exclusive=True, auto_delete=True, arguments=listener_arguments()
        )
        for key in keys:
            await queue.bind(EVENTS, key)
        protocol = await channel.get_underlay_channel()
        await protocol.basic_consume(queue.name, receive, no_ack=True)

    return attach


class RabbitMQSubscription:
    """A `Subscription`: attaches on a channel of its own, and again after every loss or cancellation."""

    def __init__(
        self,
        attach: Attach,
        hand_over: Callable[[DeliveredMessage], None],
        *,
        label: str,
        queue: Queue | None,
        in_hand: set[RabbitMQDelivery],
        session: Session,
        topology: Topology,
        limits: Limits,
        on_active: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.active = False
        self.closed = False
        self.received = 0
        self._in_hand = in_hand
        self._attach = attach
        self._hand_over = hand_over
        self._label = label
        self._session = session
        self._topology = topology
        self._limits = limits
        self._on_active = on_active
        self._task = asyncio.create_task(self._run(), name=f"subscription {label}")

    @property
    def free(self) -> bool:
        """Whether the broker has no reason to keep the next message from it: it holds none unsettled."""
        return self.active and not self._in_hand

    async def close(self) -> None:
        """Stop consuming, within CLOSE_SECONDS and a little. Unsettled deliveries go back to the queue."""
        self.closed = True
        await stop(self._task, 2 * CLOSE_SECONDS)

    async def _run(self) -> None:
        backoff = Backoff(self._limits.reconnect_max)
        declared: Link | None = None
        while True:
            link = await self._session.link()
            try:
                if link is declared:  # it failed on this same connection: something was deleted
                    await link.declare(self._topology)
                declared = link
                await self._attend(link, backoff)
                log.warning("A consumer was lost", subscription=self._label)
            except BrokerError as fault:
                log.warning("A consumer could not start", subscription=self._label, reason=str(fault))
            except Exception:
                log.exception("A consumer failed", subscription=self._label)
            await backoff.pause()

    async def _attend(self, link: Link, backoff: Backoff) -> None:
        """Consume until the channel or the consumer is gone."""
        ended = asyncio.Event()
        channel = link.connection.channel(publisher_confirms=False)
        self._in_hand.clear()
        try:
            await bounded(self._begin(channel, ended), self._limits.call, "starting a consumer")
            self.active = not ended.is_set()
            backoff.succeeded()
            self._on_active()
            await ended.wait()
        finally:
            self.active = False
            if channel.is_initialized:
                with contextlib.suppress(BrokerError):
                    await bounded(_closing(channel), CLOSE_SECONDS, "closing a channel")

    async def _begin(self, channel: AbstractChannel, ended: asyncio.Event) -> None:
        def gone(*_: object) -> None:
            self.active = False
            ended.set()

        channel.close_callbacks.add(gone)
        await channel.initialize()
        protocol = await channel.get_underlay_channel()
        protocol.on_consumer_cancel_callbacks.add(gone)
        write_together(protocol)
        await self._attach(channel, self._receive)

    async def _receive(self, raw: DeliveredMessage) -> None:
        if self.closed:
            return  # it goes back when the channel closes
        self.received += 1
        try:
            self._hand_over(raw)
        except Exception:
            log.exception("The receiver of a message failed", subscription=self._label)


async def _closing(channel: AbstractChannel) -> None:
    await channel.close()
