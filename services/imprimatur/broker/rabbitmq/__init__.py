"""The broker port on RabbitMQ, by aio-pika. How the parts are joined lives here, no protocol.

Two connections: one to publish, one to consume, so that a broker that blocks publishers (memory or disk
alarm) still delivers. `session` keeps a connection up, `topology` says what must exist on it, `publishing`
and `consuming` are the two halves, `waiting` puts a bound on every wait.
"""

import asyncio
from collections.abc import Callable

from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage
from yarl import URL

from imprimatur.broker import Delivery, Message, Queue, Subscription
from imprimatur.broker.rabbitmq.consuming import (
    Attach,
    RabbitMQDelivery,
    RabbitMQSubscription,
    from_events,
    from_queue,
    incoming,
)
from imprimatur.broker.rabbitmq.publishing import Publishing
from imprimatur.broker.rabbitmq.session import Limits, Link, Session
from imprimatur.broker.rabbitmq.topology import Topology
from imprimatur.broker.rabbitmq.waiting import bounded
from imprimatur.errors import BrokerError

#: A queue whose leader is moving shows no consumers for a moment: ask twice before believing it.
SECOND_LOOK_SECONDS = 1.0


class RabbitMQBroker:
    """A `Broker`. Safe for many tasks of one event loop."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        heartbeat_seconds: int = 10,
        confirm_timeout_seconds: float = 5.0,
        call_timeout_seconds: float = 5.0,
        check_seconds: float = 10.0,
        reconnect_max_seconds: float = 2.0,
    ) -> None:
        """Nothing is opened before `start`.

        Args:
            url: amqp:// or amqps://, with user, password and virtual host.
            name: of this process, as it appears in the broker's lists of connections and queues.
            heartbeat_seconds: a peer silent for about three times this long is dead.
            confirm_timeout_seconds: how long one publish may take.
            call_timeout_seconds: how long a connect, a declaration or another question may take.
            check_seconds: between two looks at whether the broker still has our consumers and the topology.
            reconnect_max_seconds: the longest pause between two attempts to connect.
        """
        self._limits = Limits(
            heartbeat=heartbeat_seconds,
            confirm=confirm_timeout_seconds,
            call=call_timeout_seconds,
            check=check_seconds,
            reconnect_max=reconnect_max_seconds,
        )
        self._name = name
        self._topology = Topology()
        self._publishing = Publishing(URL(url), name, self._limits, self._topology)
        self._session = Session(
            URL(url), f"{name} (consume)", self._limits, prepare=self._prepare, check=self._check_consumers
        )
        self._subscriptions: list[RabbitMQSubscription] = []

    @property
    def connected(self) -> bool:
        """Whether messages can be published now; false too while the broker refuses part of the topology."""
        return self._publishing.ready and not self._topology.refused

    async def start(self) -> None:
        """As `Broker.start`."""
        self._publishing.session.start()
        self._session.start()

    async def publish(self, message: Message) -> None:
        """As `Broker.publish`. Raises BrokerError at once when not connected: the outbox tries again."""
        await self._publishing.publish(message)

    async def consume(self, queue: Queue, on_delivery: Callable[[Delivery], None], *, prefetch: int) -> Subscription:
        """As `Broker.consume`. Returns at once; `active` says when the broker has confirmed it."""

        in_hand: set[RabbitMQDelivery] = set()

        def hand_over(raw: DeliveredMessage) -> None:
            on_delivery(RabbitMQDelivery(raw, queue, self._limits.call, in_hand))

        attach = from_queue(queue, prefetch)
        return self._subscribe(attach, hand_over, label=queue.value, queue=queue, in_hand=in_hand)

    async def listen(
        self, keys: tuple[str, ...], on_message: Callable[[Message], None], on_gap: Callable[[], None]
    ) -> Subscription:
        """As `Broker.listen`. Returns at once; the first `on_gap` says that it listens."""

        def hand_over(raw: DeliveredMessage) -> None:
            on_message(incoming(raw))

        attach = from_events(keys, self._name)
        return self._subscribe(attach, hand_over, label=" ".join(keys), on_active=on_gap)

    async def depth(self, queue: Queue) -> int:
        """As `Broker.depth`."""
        link = self._session.current
        if link is None:
            raise BrokerError("Not connected to the broker")
        ready, _ = await self._look_at(link, queue)
        return ready

    async def close(self) -> None:
        """Close every subscription and connection, within about 3 s even when the broker is frozen."""
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await asyncio.gather(self._publishing.session.close(), self._session.close())

    def _subscribe(
        self,
        attach: Attach,
        hand_over: Callable[[DeliveredMessage], None],
        *,
        label: str,
        queue: Queue | None = None,
        in_hand: set[RabbitMQDelivery] | None = None,
        on_active: Callable[[], None] = lambda: None,
    ) -> Subscription:
        subscription = RabbitMQSubscription(
            attach,
            hand_over,
            label=label,
            queue=queue,
            in_hand=set() if in_hand is None else in_hand,
            session=self._session,
            topology=self._topology,
            limits=self._limits,
            on_active=on_active,
        )
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def _prepare(self, link: Link) -> None:
        await link.declare(self._topology)

    async def _check_consumers(self, link: Link) -> None:
        """Reconnect when the broker does not know a consumer that we believe to have: a cancellation got lost.

        It shows too few of them; or, where those of other processes hide that, messages lie ready and a free
        consumer of ours gets none.
        """
        for queue in Queue:
            before = await self._forgotten(link, queue)
            if before:
                await asyncio.sleep(SECOND_LOOK_SECONDS)
                after = await self._forgotten(link, queue)
                if any(after.get(consumer) == received for consumer, received in before.items()):
                    raise BrokerError(f"The broker has forgotten a consumer of ours on {queue.value!r}")

    async def _forgotten(self, link: Link, queue: Queue) -> dict[RabbitMQSubscription, int]:
        """Consumers that the broker may not know any more, and how many messages each has received so far."""
        active = [s for s in self._subscriptions if s.queue is queue and s.active]
        if not active:
            return {}
        ready, consumers = await self._look_at(link, queue)
        return {s: s.received for s in active if s.active and (consumers < len(active) or (ready and s.free))}

    async def _look_at(self, link: Link, queue: Queue) -> tuple[int, int]:
        return await bounded(_counts(link.connection, queue), self._limits.call, f"asking for {queue}")


async def _counts(connection: AbstractConnection, queue: Queue) -> tuple[int, int]:
    """Messages ready, and consumers."""
    async with connection.channel(publisher_confirms=False) as channel:
        declared = (await channel.declare_queue(queue.value, passive=True)).declaration_result
        return declared.message_count or 0, declared.consumer_count or 0
