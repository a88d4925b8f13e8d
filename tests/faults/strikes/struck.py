"""What every strike is: a function that strikes once, returns when it is over, and says what it hit."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import aio_pika

from imprimatur.broker import Queue
from tests.faults.load import Load
from tests.faults.world import Seat, World

REVIEW_QUEUES = (Queue.REVIEW_HIGH, Queue.REVIEW_NORMAL, Queue.REVIEW_LOW)
REACHED_SECONDS = 90.0
READY_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class Struck:
    """When it struck, and which worker, as the attempt log names it; empty for none."""

    at: datetime
    worker: str = ""


#: None when there was nothing that it could hit.
Strike = Callable[[World, Load], Awaitable[Struck | None]]


def now(seat: Seat | None = None) -> Struck:
    """It strikes now, and a reviewer if `seat` is one."""
    return Struck(at=datetime.now(UTC), worker=seat.worker if seat and seat.service == "reviewer" else "")


@asynccontextmanager
async def channel(world: World) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel to the broker, past any proxy."""
    async with await aio_pika.connect(world.rabbitmq.url) as connection, connection.channel() as opened:
        yield opened
