"""The broker port inside one process and event loop: the embedded mode runs on it.

Queues are FIFO, consumers take turns. Nothing is stored: what a restart loses here, the database brings back.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from imprimatur.broker import BINDINGS, EVENTS, Delivery, Message, Queue, Subscription
from imprimatur.errors import BrokerError, Unroutable

log = structlog.get_logger(__name__)

#: Messages that one queue holds: some 100 MB.
MOST_READY = 100_000


def key_matches(pattern: str, key: str) -> bool:
    """AMQP topic matching: words between dots, `*` is one word, `#` any number of them, also none."""
    return _words_match(pattern.split("."), key.split(".") if key else [])


def _words_match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_words_match(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _words_match(rest, words[1:])


@dataclass(frozen=True, slots=True)
class _Held:
    """A message in a queue."""

    message: Message
    redelivered: bool = False


class _Queue:
    """Messages ready and the consumers that want them."""

    def __init__(self, name: Queue) -> None:
        self.name = name
        self.ready: deque[_Held] = deque()
        self.consumers: deque[MemoryConsumer] = deque()
        self._pumping = False

    def put(self, message: Message) -> None:
        """At the end."""
        self.ready.append(_Held(message))
        self.wake()

    def put_back(self, *given_back: _Held) -> None:
        """At the front and in this order, as quorum queues do."""
        self.ready.extendleft(replace(held, redelivered=True) for held in reversed(given_back))
        self.wake()

    def last_in_turn(self, consumer: "MemoryConsumer") -> None:
        """The others come first now."""
        self.consumers.remove(consumer)
        self.consumers.append(consumer)

    def wake(self) -> None:
        """Deliver what can be delivered, in the next turn of the event loop."""
        if not self._pumping and self.ready and self.consumers:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        while self.ready and (consumer := self._next_consumer()) is not None:
            consumer.take(self.ready.popleft())

    def _next_consumer(self) -> "MemoryConsumer | None":
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.has_room:
                return consumer
        return None


class MemoryDelivery:
    """A `Delivery`. Settling it after its consumer was closed does nothing."""

    __slots__ = ("_consumer", "_held")

    def __init__(self, consumer: "MemoryConsumer", held: _Held) -> None:
        self._consumer = consumer
        self._held = held

    @property
    def message(self) -> Message:
        """The message as published."""
        return self._held.message

    @property
    def redelivered(self) -> bool:
        """Whether it has been delivered before."""
        return self._held.redelivered

    async def ack(self) -> None:
        """Done with it."""
        self._consumer.settle(self)

    async def give_back(self) -> None:
        """Put it back for another consumer, at once."""
        if self._consumer.settle(self):
            self._consumer.queue.last_in_turn(self._consumer)
            self._consumer.queue.put_back(self._held)

    async def set_aside(self) -> None:
        """Move it to PARKED. What is in PARKED stays there."""
        if self._consumer.settle(self):
            self._consumer.park(self._held)


class MemoryConsumer:
    """A `Subscription` to a durable queue."""

    def __init__(self, queue: _Queue, parked: _Queue, on_delivery: Callable[[Delivery], None], prefetch: int) -> None:
        self.queue = queue
        self.active = True
        self._parked = parked
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._unsettled: dict[MemoryDelivery, _Held] = {}
        queue.consumers.append(self)
        queue.wake()

    @property
    def has_room(self) -> bool:
        """Whether it may be given another message. A prefetch of 0 is no limit, as on RabbitMQ."""
        return self._prefetch == 0 or len(self._unsettled) < self._prefetch

    def take(self, held: _Held) -> None:
        """Hand over a message."""
        delivery = MemoryDelivery(self, held)
        self._unsettled[delivery] = held
        try:
            self._on_delivery(delivery)
        except Exception:
            log.exception("The receiver of a message failed", subscription=self.queue.name.value)

    def settle(self, delivery: MemoryDelivery) -> bool:
        """Whether the delivery was still ours to settle."""
        settled = self._unsettled.pop(delivery, None) is not None
        self.queue.wake()
        return settled

    def park(self, held: _Held) -> None:
        """Move to PARKED, under its name, as dead-lettering does. Of very many there the first are forgotten."""
        if self.queue is self._parked:
            self.queue.put_back(held)
        else:
            if len(self._parked.ready) >= MOST_READY:
                self._parked.ready.popleft()
            self._parked.put(replace(held.message, exchange="", routing_key=Queue.PARKED.value))

    async def close(self) -> None:
        """Stop consuming. Unsettled deliveries go back to the queue."""
        if not self.active:
            return
        self.active = False
        self.queue.consumers.remove(self)
        given_back = list(self._unsettled.values())
        self._unsettled.clear()
        self.queue.put_back(*given_back)


class MemoryListener:
    """A `Subscription` to EVENTS."""

    def __init__(
        self, keys: tuple[str, ...], on_message: Callable[[Message], None], on_gap: Callable[[], None]
    ) -> None:
        self.active = True
        self._keys = keys
        self._on_message = on_message
        self._on_gap = on_gap
        asyncio.get_running_loop().call_soon(self._call, on_gap)

    def wants(self, key: str) -> bool:
        """Whether it listens and one of its keys matches."""
        return self.active and any(key_matches(pattern, key) for pattern in self._keys)

    def offer(self, message: Message) -> None:
        """Hand over a message, in the next turn of the event loop."""
        asyncio.get_running_loop().call_soon(self._call, self._on_message, message)

    def _call(self, receive: Callable[..., None], *arguments: Message) -> None:
        if not self.active:
            return
        try:
            receive(*arguments)
        except Exception:
            log.exception("The receiver of an event failed", keys=self._keys)

    async def close(self) -> None:
        """Stop listening."""
        self.active = False


class MemoryBroker:
    """A `Broker` for one event loop."""

    def __init__(self) -> None:
        self._queues = {name: _Queue(name) for name in Queue}
        self._listeners: list[MemoryListener] = []
        self._open = False

    @property
    def connected(self) -> bool:
        """Between `start` and `close`."""
        return self._open

    async def start(self) -> None:
        """As `Broker.start`."""
        self._open = True

    async def publish(self, message: Message) -> None:
        """As `Broker.publish`."""
        self._require_open()
        self._require_room(message)
        receivers = self._receivers(message)
        if not receivers and message.mandatory:
            raise Unroutable(f"No queue takes {message.routing_key!r}")
        delivered = message if message.mandatory else replace(message, mandatory=True)  # not kept by AMQP
        for receive in receivers:
            receive(delivered)
        await asyncio.sleep(0)  # let the consumers run: a publisher in a loop must not starve them

    async def consume(self, queue: Queue, on_delivery: Callable[[Delivery], None], *, prefetch: int) -> Subscription:
        """As `Broker.consume`."""
        return MemoryConsumer(self._queues[queue], self._queues[Queue.PARKED], on_delivery, prefetch)

    async def listen(
        self, keys: tuple[str, ...], on_message: Callable[[Message], None], on_gap: Callable[[], None]
    ) -> Subscription:
        """As `Broker.listen`."""
        listener = MemoryListener(keys, on_message, on_gap)
        self._listeners = [other for other in self._listeners if other.active] + [listener]
        return listener

    async def depth(self, queue: Queue) -> int:
        """As `Broker.depth`."""
        self._require_open()
        return len(self._queues[queue].ready)

    async def close(self) -> None:
        """As `Broker.close`."""
        self._open = False
        for queue in self._queues.values():
            for consumer in list(queue.consumers):
                await consumer.close()
        for listener in self._listeners:
            await listener.close()

    def _require_open(self) -> None:
        if not self._open:
            raise BrokerError("Not connected to the broker")

    def _require_room(self, message: Message) -> None:
        """A queue that is full takes nothing more: the message waits in the outbox, and not in memory."""
        for name, queue in self._queues.items():
            if len(queue.ready) >= MOST_READY and name is not Queue.PARKED and _takes(name, message):
                raise BrokerError(f"The queue {name.value!r} is full")

    def _receivers(self, message: Message) -> list[Callable[[Message], None]]:
        key = message.routing_key
        if message.exchange == "":
            return [queue.put for name, queue in self._queues.items() if name.value == key]
        if message.exchange != EVENTS:
            raise Unroutable(f"There is no exchange {message.exchange!r}")
        bound = [queue.put for name, queue in self._queues.items() if _is_bound(name, key)]
        return [*bound, *(listener.offer for listener in self._listeners if listener.wants(key))]


def _takes(queue: Queue, message: Message) -> bool:
    if message.exchange == "":
        return queue.value == message.routing_key
    return message.exchange == EVENTS and _is_bound(queue, message.routing_key)


def _is_bound(queue: Queue, key: str) -> bool:
    return queue in BINDINGS and key_matches(BINDINGS[queue], key)
