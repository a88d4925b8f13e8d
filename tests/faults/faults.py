"""What strikes: each fault as a function that strikes once and returns when it is over, and the table of them all."""

import asyncio
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial

import aio_pika
import asyncpg  # type: ignore[import-untyped]  # ships no types
from deploy.local.rabbitmq import PrivateRabbitMQ
from tests import makers
from tests.contract.polling import eventually
from tests.faults import failpoints
from tests.faults.failpoints import Point
from tests.faults.load import Load
from tests.faults.scripts import Kind, Script
from tests.faults.world import LEASE_SECONDS, REVIEWER_SLOTS, Seat, Surface, World

from imprimatur.broker import EVENTS, Queue
from imprimatur.job import State
from imprimatur.wire.messages import JobChanged, ReviewRequested

_REVIEW_QUEUES = (Queue.REVIEW_HIGH, Queue.REVIEW_NORMAL, Queue.REVIEW_LOW)
_REACHED_SECONDS = 30.0
_READY_SECONDS = 60.0


class Recovery(StrEnum):
    """What is timed after a strike."""

    PROBE = "probe"  #: from the end of the strike until a job submitted then has ended and its watcher knows
    RESTART = "restart"  #: from the strike until each job that its worker lost was started again


@dataclass(frozen=True, kw_only=True)
class Struck:
    """When it struck, and which worker, as the attempt log names it; empty for none."""

    at: datetime
    worker: str = ""


PLAIN = Surface()
PROXIED = Surface(proxied=True)
CLUSTERED = Surface(cluster=True)

Strike = Callable[[World, Load], Awaitable[Struck | None]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table."""

    name: str
    strike: Strike
    recovery: Recovery = Recovery.PROBE
    surface: Surface = PLAIN
    fast: bool = False  #: among the selection that `make test` runs


# --- processes -------------------------------------------------------------------------------------------


def _now(seat: Seat | None = None) -> Struck:
    worker = f"{socket.gethostname()}:{seat.process.pid}" if seat and seat.service == "reviewer" else ""
    return Struck(at=datetime.now(UTC), worker=worker)


async def _until_busy(world: World, seat: Seat) -> None:
    """Wait until this reviewer has something to lose."""

    async def busy() -> bool:
        connection = await asyncpg.connect(world.dsn)
        try:
            query = "SELECT running FROM workers WHERE name = $1"
            return bool(await connection.fetchval(query, _now(seat).worker))
        finally:
            await connection.close()

    await makers.until(busy, seconds=_READY_SECONDS)


def killed(service: str) -> Strike:
    """SIGKILL to one process of a service; the supervisor starts another."""

    async def strike(world: World, _load: Load) -> Struck:
        seat = world.any_of(service)
        if service == "reviewer":
            await _until_busy(world, seat)
        struck = _now(seat)
        seat.deaths_meant += 1
        await asyncio.to_thread(seat.process.kill)
        return struck

    return strike


def at(point: Point, service: str, *, dies: bool = True) -> Strike:
    """Strike one process of a service at a named place; proves that it was reached."""

    async def strike(world: World, _load: Load) -> Struck:
        seat = world.any_of(service)
        before = failpoints.reached(world.folder, point)
        if dies:
            seat.deaths_meant += 1
        failpoints.arm(world.folder, seat.process.pid, point)
        await eventually(
            lambda: failpoints.reached(world.folder, point) > before, f"{point} reached", seconds=_REACHED_SECONDS
        )
        return _now()

    return strike


async def stopped_beyond_lease(world: World, _load: Load) -> Struck:
    """SIGSTOP a reviewer for longer than its lease; SIGCONT then, when others have its jobs."""
    seat = world.any_of("reviewer")
    await _until_busy(world, seat)
    struck = _now(seat)
    seat.process.send(signal.SIGSTOP)
    await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(1.0, 3.0))
    seat.process.send(signal.SIGCONT)
    return struck


def replaced_in_turn() -> Strike:
    """SIGTERM to the next process in turn; returns when its successor is ready."""
    turns = itertools.count()

    async def strike(world: World, _load: Load) -> None:
        seat = world.seats[next(turns) % len(world.seats)]
        starts = seat.starts
        seat.deaths_meant += 1
        seat.process.send(signal.SIGTERM)
        await eventually(lambda: seat.starts > starts, "a successor", seconds=_READY_SECONDS)
        await world.until_ready()

    return strike


async def poisoned(world: World, load: Load) -> None:
    """A creative that kills whatever process looks at it, beside fifteen innocent ones in each reviewer."""
    for seat in world.of("reviewer"):
        seat.deaths_meant += seat.starts  # what it kills is not counted
    innocent = [Script(kind=Kind.APPROVE, seconds=1.0)] * (REVIEWER_SLOTS - 1) * len(world.of("reviewer"))
    await asyncio.gather(*(load.submit(script) for script in innocent))
    told = await load.submit(Script(kind=Kind.POISON, seconds=0.0))
    assert told is not None, "the poison was not accepted"

    # Until all that ran apart for its sake are through as well: each strike is one poison among innocents.
    await makers.until(partial(_over, world, told.job_id), seconds=_READY_SECONDS)
    for seat in world.of("reviewer"):
        seat.deaths_meant = seat.starts - 1


async def _over(world: World, poison_id: str) -> bool:
    connection = await asyncpg.connect(world.dsn)
    try:
        state = await connection.fetchval("SELECT state FROM jobs WHERE id = $1", poison_id)
        query = "SELECT count(*) FROM jobs WHERE losses > 0 AND state IN ('queued', 'running')"
        return bool(state == State.AWAITING_REVIEW and await connection.fetchval(query) == 0)
    finally:
        await connection.close()


# --- RabbitMQ --------------------------------------------------------------------------------------------


async def broker_restarted(world: World, _load: Load) -> None:
    """Stopped in good order, and started."""
    await asyncio.to_thread(world.rabbitmq.restart)


async def broker_killed(world: World, _load: Load) -> None:
    """SIGKILL, and started."""
    await asyncio.to_thread(world.rabbitmq.kill)
    await asyncio.to_thread(world.rabbitmq.restart)


async def broker_wiped(world: World, _load: Load) -> None:
    """Killed, all its data removed, and started empty."""
    await asyncio.to_thread(world.rabbitmq.discard)
    await asyncio.to_thread(world.rabbitmq.restart)


async def broker_frozen(world: World, _load: Load) -> None:
    """SIGSTOP for some seconds: connections stand and nothing answers."""
    await asyncio.to_thread(world.rabbitmq.suspend)
    try:
        await asyncio.sleep(world.rng.uniform(3.0, 6.0))
    finally:
        await asyncio.to_thread(world.rabbitmq.resume)


async def broker_alarmed(world: World, _load: Load) -> None:
    """A memory alarm: it takes no message, and still delivers."""
    ctl = world.rabbitmq.ctl
    await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        await asyncio.sleep(world.rng.uniform(1.0, 4.0))
    finally:
        await asyncio.to_thread(ctl, "set_vm_memory_high_watermark", "0.4")


@asynccontextmanager
async def _channel(world: World) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(world.rabbitmq.url) as connection, connection.channel() as channel:
        yield channel


async def queues_purged(world: World, load: Load) -> None:
    """What waits in the review queues and for the notifier is gone; a burst makes sure that something waits."""
    burst = [Script(kind=Kind.APPROVE, seconds=0.3)] * (3 * REVIEWER_SLOTS)
    await asyncio.gather(*(load.submit(script) for script in burst))
    async with _channel(world) as channel:
        for name in (*_REVIEW_QUEUES, Queue.NOTIFIER_EVENTS):
            await (await channel.get_queue(name)).purge()


async def outcomes_queue_deleted(world: World, _load: Load) -> None:
    """The notifier's queue is deleted, with what waits in it and its binding."""
    async with _channel(world) as channel:
        await channel.queue_delete(Queue.NOTIFIER_EVENTS)


async def gateway_queues_deleted(world: World, _load: Load) -> None:
    """Every queue but the five durable ones: those by which gateways and reviewers hear of changes."""
    lines = await asyncio.to_thread(world.rabbitmq.ctl, "list_queues", "name", "--no-table-headers")
    for name in set(lines.split()) - set(Queue):
        await asyncio.to_thread(world.rabbitmq.ctl, "delete_queue", name)


async def leader_killed(world: World, _load: Load) -> None:
    """SIGKILL to the node that leads a review queue; it joins its cluster again after an election."""
    leader = await asyncio.to_thread(_leader_of, world, world.rng.choice(_REVIEW_QUEUES))
    await asyncio.to_thread(leader.kill)
    await asyncio.sleep(world.rng.uniform(1.0, 3.0))
    await asyncio.to_thread(leader.restart)


def _leader_of(world: World, queue: Queue) -> PrivateRabbitMQ:
    for line in world.rabbitmq.ctl("list_queues", "name", "leader", "--no-table-headers").splitlines():
        name, _, leader = line.partition("\t")
        if name == queue:
            return next(node for node in world.rabbits if node.name == leader.strip())
    raise AssertionError(f"no leader of {queue}")


# --- messages --------------------------------------------------------------------------------------------


async def messages_garbled(world: World, _load: Load) -> None:
    """Bytes that no version wrote, on every queue and the exchange."""
    async with _channel(world) as channel:
        exchange = await channel.get_exchange(EVENTS)
        for length in (0, 1, 16, 300):
            message = aio_pika.Message(world.rng.randbytes(length))
            for queue in (*_REVIEW_QUEUES, Queue.NOTIFIER_EVENTS):
                await channel.default_exchange.publish(message, queue)
            for key in ("outcome.succeeded", "outcome.cancelled", "state.progress", "nonsense"):
                await exchange.publish(message, key, mandatory=False)


async def messages_repeated(world: World, _load: Load) -> None:
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
            body = ReviewRequested(job_id=job["id"], release_no=max(0, number)).encode()
            sends += [("", world.rng.choice(_REVIEW_QUEUES), body)] * 3
        for kind in ("outcome.succeeded", "outcome.cancelled", "state.started"):
            for version in (1, job["version"], job["version"] + 1):
                change = JobChanged(
                    job_id=job["id"], tenant_id=job["tenant_id"], version=version, state=State(job["state"])
                )
                sends += [(EVENTS, kind, change.encode())] * 3
    world.rng.shuffle(sends)
    async with _channel(world) as channel:
        exchange = await channel.get_exchange(EVENTS)
        for name, key, body in sends:
            target = exchange if name else channel.default_exchange
            await target.publish(aio_pika.Message(body), key, mandatory=False)


# --- PostgreSQL ------------------------------------------------------------------------------------------


async def database_killed(world: World, _load: Load) -> None:
    """SIGKILL to the server, and started: it recovers from its log."""
    await asyncio.to_thread(world.postgres.kill)
    await asyncio.to_thread(world.postgres.restart)


async def database_frozen(world: World, _load: Load) -> None:
    """SIGSTOP for longer than a lease."""
    await asyncio.to_thread(world.postgres.suspend)
    try:
        await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(0.5, 3.0))
    finally:
        await asyncio.to_thread(world.postgres.resume)


async def connections_exhausted(world: World, _load: Load) -> None:
    """Somebody takes every connection, while the services' own are cut."""
    held = []
    try:
        for _ in range(2):
            with_room = True
            while with_room:
                try:
                    held.append(await asyncpg.connect(world.dsn))
                except asyncpg.TooManyConnectionsError:
                    with_room = False
            await held[0].execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'imprimatur'"
            )
        await asyncio.sleep(world.rng.uniform(1.0, 4.0))
    finally:
        for connection in held:
            await connection.close()


async def table_locked(world: World, _load: Load) -> None:
    """Somebody locks the jobs against everybody for longer than a lease."""
    connection = await asyncpg.connect(world.dsn)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(0.5, 3.0))
    finally:
        await connection.close()


# --- the network -----------------------------------------------------------------------------------------


async def network_slow(world: World, _load: Load) -> None:
    """A tenth of a second each way to database and broker, and jitter as much again."""
    for name in ("postgresql", "rabbitmq"):
        world.proxies[name].delay(0.1, 0.1)
    try:
        await asyncio.sleep(world.rng.uniform(2.0, 4.0))
    finally:
        for name in ("postgresql", "rabbitmq"):
            world.proxies[name].pass_on()


def cut(*names: str) -> Strike:
    """Every connection that passes these proxies is reset."""

    async def strike(world: World, _load: Load) -> None:
        for name in names:
            world.proxies[name].cut()

    return strike


def half_open(name: str) -> Strike:
    """Connections stand, and bytes vanish in them both ways."""

    async def strike(world: World, _load: Load) -> None:
        world.proxies[name].swallow()
        try:
            await asyncio.sleep(world.rng.uniform(3.0, 6.0))
        finally:
            world.proxies[name].pass_on()

    return strike


async def commit_reply_lost(world: World, _load: Load) -> None:
    """The database commits, and the reply to it never arrives; whichever service it was for."""
    proxy = world.proxies["postgresql"]
    before = proxy.struck
    proxy.cut_after(b"COMMIT", 1)
    await eventually(lambda: proxy.struck > before, "a commit cut off", seconds=_REACHED_SECONDS)


FAULTS = (
    Fault(name="gateway: kill -9", strike=killed("gateway"), fast=True),
    Fault(
        name="gateway: kill -9 between commit and publish",
        strike=at(Point.SUBMIT_COMMITTED, "gateway"),
        fast=True,
    ),
    Fault(name="reviewer: kill -9", strike=killed("reviewer"), recovery=Recovery.RESTART, fast=True),
    Fault(
        name="reviewer: stopped beyond its lease, then continued",
        strike=stopped_beyond_lease,
        recovery=Recovery.RESTART,
        fast=True,
    ),
    Fault(
        name="reviewer: the reply to a claim is lost",
        strike=at(Point.CLAIM_COMMITTED, "reviewer", dies=False),
        fast=True,
    ),
    Fault(
        name="reviewer: the reply to a conclusion is lost",
        strike=at(Point.CONCLUSION_COMMITTED, "reviewer", dies=False),
        fast=True,
    ),
    Fault(name="reviewer: an engine kills its process beside 15 innocent jobs", strike=poisoned, fast=True),
    Fault(name="notifier: kill -9", strike=killed("notifier")),
    Fault(name="notifier: kill -9 before the post", strike=at(Point.WEBHOOK_UNSENT, "notifier"), fast=True),
    Fault(name="notifier: kill -9 after the post", strike=at(Point.WEBHOOK_SENT, "notifier"), fast=True),
    Fault(name="notifier: kill -9 before its commit", strike=at(Point.WEBHOOK_RECORDED, "notifier"), fast=True),
    Fault(name="everything replaced in turn (SIGTERM)", strike=replaced_in_turn()),
    Fault(name="RabbitMQ: restart", strike=broker_restarted),
    Fault(name="RabbitMQ: kill -9", strike=broker_killed, fast=True),
    Fault(name="RabbitMQ: wiped", strike=broker_wiped),
    Fault(name="RabbitMQ: frozen", strike=broker_frozen),
    Fault(name="RabbitMQ: memory alarm", strike=broker_alarmed),
    Fault(name="RabbitMQ: queues purged", strike=queues_purged, fast=True),
    Fault(name="RabbitMQ: the notifier's queue deleted", strike=outcomes_queue_deleted, fast=True),
    Fault(name="RabbitMQ: the listeners' queues deleted", strike=gateway_queues_deleted),
    Fault(name="RabbitMQ: a queue's leader killed, of three nodes", strike=leader_killed, surface=CLUSTERED),
    Fault(name="messages: garbage", strike=messages_garbled, fast=True),
    Fault(name="messages: repeated, stale, from the future, reordered", strike=messages_repeated, fast=True),
    Fault(name="PostgreSQL: kill -9", strike=database_killed, fast=True),
    Fault(name="PostgreSQL: frozen beyond the lease", strike=database_frozen, fast=True),
    Fault(name="PostgreSQL: connections exhausted", strike=connections_exhausted, fast=True),
    Fault(name="PostgreSQL: jobs locked beyond the lease", strike=table_locked, fast=True),
    Fault(name="PostgreSQL: the reply to a commit is lost", strike=commit_reply_lost, surface=PROXIED),
    Fault(name="network: slow to database and broker", strike=network_slow, surface=PROXIED),
    Fault(name="network: database and broker cut", strike=cut("postgresql", "rabbitmq"), surface=PROXIED),
    Fault(name="network: half-open to the database", strike=half_open("postgresql"), surface=PROXIED),
    Fault(name="network: half-open to the broker", strike=half_open("rabbitmq"), surface=PROXIED),
    Fault(
        name="network: clients cut, resuming at another gateway", strike=cut("gateway-1", "gateway-2"), surface=PROXIED
    ),
)
