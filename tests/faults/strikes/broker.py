"""What strikes RabbitMQ, whole or queue by queue."""

import asyncio

from aio_pika.abc import AbstractQueue

from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur.broker import Queue
from tests.faults.load import Load, Told
from tests.faults.scripts import Kind, Script
from tests.faults.strikes.struck import REVIEW_QUEUES, Struck, channel, now
from tests.faults.world import REVIEWER_SLOTS, World

#: Messages wait for moments only: not each burst leaves one lying.
_MOST_BURSTS = 10


async def broker_restarted(world: World, _load: Load) -> Struck:
    """Stopped in good order, and started."""
    await asyncio.to_thread(world.rabbitmq.restart)
    return now()


async def broker_killed(world: World, _load: Load) -> Struck:
    """SIGKILL, and started."""
    await asyncio.to_thread(world.rabbitmq.kill)
    await asyncio.to_thread(world.rabbitmq.restart)
    return now()


async def broker_wiped(world: World, _load: Load) -> Struck:
    """Killed, all its data removed, and started empty."""
    await asyncio.to_thread(world.rabbitmq.discard)
    await asyncio.to_thread(world.rabbitmq.restart)
    return now()


async def broker_frozen(world: World, _load: Load) -> Struck:
    """SIGSTOP for some seconds: connections stand and nothing answers."""
    await asyncio.to_thread(world.rabbitmq.suspend)
    try:
        await asyncio.sleep(world.rng.uniform(3.0, 6.0))
    finally:
        await asyncio.to_thread(world.rabbitmq.resume)
    return now()


async def broker_alarmed(world: World, _load: Load) -> Struck:
    """A memory alarm: it takes no message, and still delivers."""
    ctl = world.rabbitmq.ctl
    await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        await asyncio.sleep(world.rng.uniform(1.0, 4.0))
    finally:
        await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.4")
    return now()


async def queues_purged(world: World, load: Load) -> Struck | None:
    """What waits in the review queues and for the notifier is gone; bursts make sure that something waits."""
    burst = [Script(kind=Kind.APPROVE, seconds=0.3)] * (3 * REVIEWER_SLOTS)
    async with channel(world) as broker:
        queues = [await broker.get_queue(name) for name in (*REVIEW_QUEUES, Queue.NOTIFIER_EVENTS)]
        for _ in range(_MOST_BURSTS):
            submitting = asyncio.gather(*(load.submit(script) for script in burst))
            try:
                if await _purged(queues, submitting):
                    return now()
            finally:
                await submitting
    return None


async def _purged(queues: list[AbstractQueue], submitting: asyncio.Future[list[Told | None]]) -> bool:
    """Purge until it hits something, at most as long as jobs are being submitted."""
    while not submitting.done():
        if any([(await queue.purge()).message_count for queue in queues]):
            return True
    return False


async def outcomes_queue_deleted(world: World, _load: Load) -> Struck:
    """The notifier's queue is deleted, with what waits in it and its binding."""
    async with channel(world) as broker:
        await broker.queue_delete(Queue.NOTIFIER_EVENTS)
    return now()


async def gateway_queues_deleted(world: World, _load: Load) -> Struck | None:
    """Every queue but the five durable ones: those by which gateways and reviewers hear of changes."""
    lines = await asyncio.to_thread(world.rabbitmq.ctl, "list_queues", "name", "--no-table-headers")
    names = set(lines.split()) - set(Queue)
    for name in names:
        await asyncio.to_thread(world.rabbitmq.ctl, "delete_queue", name)
    return now() if names else None


async def leader_killed(world: World, _load: Load) -> Struck:
    """SIGKILL to the node that leads a review queue; it joins its cluster again after an election."""
    leader = await asyncio.to_thread(_leader_of, world, world.rng.choice(REVIEW_QUEUES))
    await asyncio.to_thread(leader.kill)
    await asyncio.sleep(world.rng.uniform(1.0, 3.0))
    await asyncio.to_thread(leader.restart)
    return now()


def _leader_of(world: World, queue: Queue) -> PrivateRabbitMQ:
    for line in world.rabbitmq.ctl("list_queues", "name", "leader", "--no-table-headers").splitlines():
        name, _, leader = line.partition("\t")
        if name == queue:
            return next(node for node in world.rabbits if node.name == leader.strip())
    raise AssertionError(f"no leader of {queue}")
