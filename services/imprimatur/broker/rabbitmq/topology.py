"""What must exist on the broker, and how it is declared. No connection is opened or kept here.

Every process declares all of it on each connect: the broker may have been wiped meanwhile.
Arguments are those that RabbitMQ 3.10 and 4.x both take.
"""

from collections.abc import Awaitable, Callable, Iterator

import structlog
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelClosed
from pamqp.common import FieldTable

from imprimatur.broker import BINDINGS, EVENTS, Queue

log = structlog.get_logger(__name__)

#: Before RabbitMQ 4.3 a message given back counts as a failed delivery; the default of 4.x is 20.
DELIVERY_LIMIT = 100_000

#: What one process may fall behind in EVENTS before its oldest messages are dropped.
LISTENER_MAX_MESSAGES = 100_000

#: A listener's queue that never got its consumer goes away by itself after this time.
LISTENER_EXPIRES_MS = 60_000

Step = Callable[[AbstractChannel], Awaitable[object]]


def durable_arguments(queue: Queue) -> FieldTable:
    """A quorum queue whose rejected messages move to PARKED; PARKED itself has nowhere to send them."""
    arguments: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    if queue is not Queue.PARKED:
        arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": Queue.PARKED.value}
    return arguments


def listener_arguments() -> FieldTable:
    """A bounded classic queue: said outright, for a virtual host whose default type is quorum."""
    return {
        "x-queue-type": "classic",
        "x-max-length": LISTENER_MAX_MESSAGES,
        "x-expires": LISTENER_EXPIRES_MS,
    }


class Topology:
    """Declares, and remembers what the broker refused."""

    def __init__(self) -> None:
        self.refused: frozenset[str] = frozenset()

    async def declare(self, connection: AbstractConnection) -> None:
        """Declare everything, each thing on a channel of its own: a refusal closes the channel.

        A thing refused is logged and skipped. Raises what aio-pika raises when the connection fails.
        """
        refused = set()
        for name, step in _steps():
            try:
                async with connection.channel(publisher_confirms=False) as channel:
                    await step(channel)
            except ChannelClosed as fault:
                refused.add(name)
                log.error(  # noqa: TRY400 - an operator needs the name and the reason, not our stack
                    "The broker refused a declaration, most likely because the name exists with other "
                    "arguments: delete it there, and it is declared again",
                    queue=name,
                    reason=str(fault),
                )
        self.refused = frozenset(refused)


def _steps() -> Iterator[tuple[str, Step]]:
    yield EVENTS, lambda channel: channel.declare_exchange(EVENTS, ExchangeType.TOPIC, durable=True)
    for queue in (Queue.PARKED, *(queue for queue in Queue if queue is not Queue.PARKED)):
        yield queue.value, _declare(queue)
    for queue, key in BINDINGS.items():
        yield queue.value, _bind(queue, key)


def _declare(queue: Queue) -> Step:
    return lambda channel: channel.declare_queue(queue.value, durable=True, arguments=durable_arguments(queue))


def _bind(queue: Queue, key: str) -> Step:
    async def bind(channel: AbstractChannel) -> None:
        existing = await channel.get_queue(queue.value, ensure=False)
        await existing.bind(EVENTS, key)

    return bind
