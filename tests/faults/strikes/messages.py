"""Messages that nobody should have sent."""

import aio_pika
import asyncpg  # type: ignore[import-untyped]  # ships no types

from imprimatur.broker import EVENTS, Queue
from imprimatur.job import State
from imprimatur.wire.messages import JobChange, JobsChanged, Released, ReviewRequested
from tests.faults.load import Load
from tests.faults.strikes.struck import REVIEW_QUEUES, Struck, channel, now
from tests.faults.world import World


async def messages_garbled(world: World, _load: Load) -> Struck:
    """Bytes that no version wrote, on every queue and the exchange."""
    async with channel(world) as broker:
        exchange = await broker.get_exchange(EVENTS)
        for length in (0, 1, 16, 300):
            message = aio_pika.Message(world.rng.randbytes(length))
            for queue in (*REVIEW_QUEUES, Queue.NOTIFIER_EVENTS):
                await broker.default_exchange.publish(message, queue)
            for key in ("outcome.succeeded", "outcome.cancelled", "state.progress", "nonsense"):
                await exchange.publish(message, key, mandatory=False)
    return now()


async def messages_repeated(world: World, _load: Load) -> Struck:
    """What was sent for the newest jobs, three times over, in random order, with earlier and later numbers too."""
    connection = await asyncpg.connect(world.dsn)
    try:
        jobs = await connection.fetch(
            "SELECT id, tenant_id, state, version, release_no FROM jobs ORDER BY id DESC LIMIT 60"
        )
    finally:
        await connection.close()
    sends: list[tuple[str, str, bytes]] = []
    for job in jobs:
        for number in (job["release_no"] - 1, job["release_no"], job["release_no"] + 1):
            body = ReviewRequested(jobs=[Released(job_id=job["id"], release_no=max(0, number))]).encode()
            sends += [("", world.rng.choice(REVIEW_QUEUES), body)] * 3
        for kind in ("outcome.succeeded", "outcome.cancelled", "state.started"):
            for version in (1, job["version"], job["version"] + 1):
                change = JobChange(
                    job_id=job["id"], tenant_id=job["tenant_id"], version=version, state=State(job["state"])
                )
                sends += [(EVENTS, kind, JobsChanged(changes=[change]).encode())] * 3
    world.rng.shuffle(sends)
    async with channel(world) as broker:
        exchange = await broker.get_exchange(EVENTS)
        for name, key, body in sends:
            target = exchange if name else broker.default_exchange
            await target.publish(aio_pika.Message(body), key, mandatory=False)
    return now()
