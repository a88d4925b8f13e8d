"""The broker port: what the services ask of a message broker, and the names of its rooms.

Two adapters serve it, `broker.rabbitmq` and `broker.memory`, and one contract suite holds them to the same
behaviour. A message here is only a hint that there is something to do: the truth is in the database, so an
adapter may deliver a message twice, late or (with its broker wiped) never.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Queue(StrEnum):
    """The durable queues. All are quorum queues on RabbitMQ, declared by every process at start."""

    REVIEW_HIGH = "review.high"
    REVIEW_NORMAL = "review.normal"
    REVIEW_LOW = "review.low"
    NOTIFIER_EVENTS = "notifier.events"  #: bound to EVENTS, see BINDINGS
    PARKED = "parked"  #: messages nobody could read, set aside for a person


#: The topic exchange of what happens to jobs. Keys: "outcome.<kind>" for what a webhook tells, else "state.<kind>".
EVENTS = "job.events"

#: The durable queues that receive from EVENTS, and the key by which they do.
BINDINGS = {Queue.NOTIFIER_EVENTS: "outcome.#"}


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is sent: to a queue by its name (`exchange` empty) or to EVENTS with a routing key.

    With `mandatory`, publishing fails with Unroutable when no queue would receive it.
    """

    routing_key: str
    body: bytes
    message_id: str
    exchange: str = ""
    mandatory: bool = True
    headers: dict[str, str] = field(default_factory=dict)


class Delivery(Protocol):
    """One message in hand. Exactly one of `ack`, `give_back`, `set_aside` is called, once.

    None of the three raises when the connection has gone meanwhile: the broker then delivers again.
    """

    @property
    def message(self) -> Message:
        """The message as published."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether the broker may have delivered it before."""
        ...

    async def ack(self) -> None:
        """Done with it (this tag alone)."""
        ...

    async def give_back(self) -> None:
        """Put it back for another consumer, at once."""
        ...

    async def set_aside(self) -> None:
        """Nobody can read it: move it to PARKED."""
        ...


class Subscription(Protocol):
    """A consumer that comes back by itself after every loss of the connection."""

    @property
    def active(self) -> bool:
        """Whether the broker has confirmed this consumer and it has not been cancelled since."""
        ...

    async def close(self) -> None:
        """Stop consuming. Unsettled deliveries go back to the queue."""
        ...


class Broker(Protocol):
    """Publish with confirmation, consume with explicit settlement."""

    @property
    def connected(self) -> bool:
        """Whether messages can be published now, as far as is known."""
        ...

    async def start(self) -> None:
        """Begin connecting in the background and declare the topology on every connect. Does not wait for a
        broker that is down, and raises nothing when it is."""
        ...

    async def publish(self, message: Message) -> None:
        """Publish and wait for the broker's confirmation, a few seconds at most.

        Raises:
            Unroutable: mandatory, and no queue takes it (the topology is then declared again).
            BrokerError: not confirmed; whether the broker has it is unknown.
        """
        ...

    async def consume(self, queue: Queue, on_delivery: Callable[[Delivery], None], *, prefetch: int) -> Subscription:
        """Receive from a durable queue, at most `prefetch` unsettled deliveries at a time.

        `on_delivery` is called on the event loop and must return at once.
        """
        ...

    async def listen(
        self, keys: tuple[str, ...], on_message: Callable[[Message], None], on_gap: Callable[[], None]
    ) -> Subscription:
        """Receive every message of EVENTS whose routing key matches one of `keys`, while listening.

        For this process alone (an exclusive queue, no settlement). `on_gap` is called after each
        (re)connection, the first included: messages before it may have been missed.
        """
        ...

    async def depth(self, queue: Queue) -> int:
        """Messages ready in the queue. Raises BrokerError when the broker cannot be asked."""
        ...

    async def close(self) -> None:
        """Close every subscription and connection."""
        ...
