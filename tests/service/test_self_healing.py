"""A broker that is away, wiped, purged and robbed of its queues under all three services: everything still ends.

On a real RabbitMQ and a real PostgreSQL, with a real receiver of webhooks.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aio_pika
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur import webhooks
from imprimatur.broker import Queue
from imprimatur.broker.rabbitmq import RabbitMQBroker
from imprimatur.guard import Guard
from imprimatur.process import Surroundings
from imprimatur.runtime import Check, http_port
from imprimatur.storage import acceptance, dispatch, workers
from imprimatur.storage.database import Database
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED, PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Job
from imprimatur.v1.job_service_pb2 import BatchSubmitJobsRequest
from notifier.announcer import Sweep
from notifier.deliverer import Pace
from notifier.service import notifier
from tests import makers
from tests.contract.polling import eventually
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.receiver import Receiver, receiving
from tests.service.systems import Caller, System, running_system, submission
from tests.service.test_health import SERVING, check, dialled
from tests.service.test_metrics import get

#: Of what a broker loses, the first is asked for again after so long.
REISSUE_SECONDS = 0.5
#: Asked for again each time after the same pause, jobs would stand out after so long.
LONG_ENOUGH_MS = 6000
SLOTS = 4
REVIEW_QUEUES = (Queue.REVIEW_HIGH, Queue.REVIEW_NORMAL, Queue.REVIEW_LOW)
SERVICES = ("gateway", "reviewer", "notifier")


@dataclass(kw_only=True)
class World:
    """A system on a broker that a test may hurt."""

    node: PrivateRabbitMQ
    database: Database
    broker: RabbitMQBroker
    system: System
    me: Caller
    receiver: Receiver
    engine: ScriptedEngine = field(default_factory=ScriptedEngine)

    @asynccontextmanager
    async def reviewer_and_notifier(self) -> AsyncIterator[dict[str, int]]:
        """Both, at work; gives the HTTP port of each service, wired as its __main__ wires it."""
        around = Surroundings(database=self.database, broker=self.broker)
        guard = Guard(allow_private=True, allow_http=True)
        pace = Pace(pauses_seconds=(0.1,) * 50, poll_seconds=0.1)
        sweep = Sweep(every_seconds=0.5, older_than_seconds=2.0)
        async with AsyncExitStack() as stack:
            reviewing = await stack.enter_async_context(self.system.reviewer(self.engine, slots=SLOTS))
            notifying = await stack.enter_async_context(
                notifier(
                    self.database, self.broker, self.system.vault, guard, pace=pace, sweep=sweep, drain_seconds=1.0
                )
            )
            checks: tuple[dict[str, Check], ...] = (
                {"database": around.database_answers},
                {**around.checks(), "consumers": reviewing.consuming},
                {**around.checks(), "consumer": notifying.consuming},
            )
            ports = [await stack.enter_async_context(http_port("127.0.0.1", 0)) for _ in SERVICES]
            for http, every in zip(ports, checks, strict=True):
                await stack.enter_async_context(http.ready(every))
            running = {name: http.number for name, http in zip(SERVICES, ports, strict=True)}
            await makers.until(lambda: all_fail(running, {name: [] for name in SERVICES}))
            yield running

    async def submit(self, number: int, headline: str, name: str) -> list[Job]:
        """So many jobs, accepted, spread over the three queues."""
        priorities = (PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_LOW)
        items = [submission(headline, f"{name}-{n}", priority=priorities[n % 3]) for n in range(number)]
        answer = await self.me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))
        return [one.accepted.job for one in answer.results]

    async def all_end(self, submitted: list[Job]) -> None:
        """Every one is done, its watchers are told, and so is whoever the webhooks go to."""
        await asyncio.gather(*(self.me.until(job, JOB_STATE_SUCCEEDED) for job in submitted))
        await self.all_told(submitted)

    async def all_told(self, submitted: list[Job]) -> None:
        """A webhook about each has come."""
        ids = {job.id for job in submitted}
        await eventually(lambda: ids <= self.told(), "a webhook of each outcome")

    def told(self) -> set[str]:
        """The jobs that webhooks told of."""
        return {json.loads(post.body)["data"]["job_id"] for post in self.receiver.posts}

    async def waiting(self) -> int:
        """Messages in the review queues, in nobody's hands."""
        return sum([await self.broker.depth(queue) for queue in REVIEW_QUEUES])

    async def numbers(self, query: str) -> list[int]:
        """One row of the database."""
        async with self.database.read() as reader:
            return list((await reader.connection.execute(text(query))).one())


@pytest.fixture
async def world(
    rabbitmq: PrivateRabbitMQ, postgresql_database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """With a gateway alone, empty queues, and an endpoint for webhooks."""
    monkeypatch.setattr(dispatch, "FIRST_REISSUE_AFTER_SECONDS", REISSUE_SECONDS)
    monkeypatch.setattr(acceptance, "FIRST_REISSUE_AFTER_SECONDS", REISSUE_SECONDS)
    broker = RabbitMQBroker(rabbitmq.url, name="healing", reconnect_max_seconds=0.5, check_seconds=1.0)
    async with receiving() as receiver, running_system(postgresql_database, broker) as system:
        await eventually(lambda: broker.connected)
        await at_the_broker(rabbitmq, "queue_purge", *Queue)
        made = World(
            node=rabbitmq,
            database=postgresql_database,
            broker=broker,
            system=system,
            me=await system.caller(),
            receiver=receiver,
        )
        async with postgresql_database.begin() as tx:
            await webhooks.create_endpoint(tx, system.vault, system.tenant_id, url=receiver.url())
        yield made


async def at_the_broker(node: PrivateRabbitMQ, what: str, *queues: Queue) -> None:
    """Purge or delete queues."""
    async with await aio_pika.connect(node.url) as connection, connection.channel() as channel:
        protocol = await channel.get_underlay_channel()
        for queue in queues:
            await getattr(protocol, what)(queue.value)


async def failing(port: int) -> list[str]:
    """What /readyz names, after /livez has answered."""
    assert (await get(port, "/livez"))[0] == 200
    status, body = await get(port, "/readyz")
    named = sorted(json.loads(body)["failing"])
    assert status == (503 if named else 200)
    return named


async def all_fail(ports: dict[str, int], expected: dict[str, list[str]]) -> bool:
    """Whether each service names these checks as failing."""
    return {name: await failing(port) for name, port in ports.items()} == expected


def counted(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


def reissues() -> float:
    return counted("imprimatur_jobs_released_total", way="again")


async def until_running(engine: ScriptedEngine, number: int) -> None:
    await eventually(lambda: engine.running == number)


async def test_jobs_are_accepted_without_a_broker_and_all_end_when_it_comes_back_with_nothing_in_it(
    world: World,
) -> None:
    async with world.reviewer_and_notifier() as ports:
        early = await world.submit(3 * SLOTS, engines.GATE, "early")
        watches = [asyncio.create_task(world.me.until(job, JOB_STATE_SUCCEEDED)) for job in early]
        await until_running(world.engine, SLOTS)

        await asyncio.to_thread(world.node.ctl, "stop_app")
        away = {"gateway": [], "reviewer": ["broker", "consumers"], "notifier": ["broker", "consumer"]}
        await makers.until(lambda: all_fail(ports, away))
        async with dialled(world.system.port) as channel:  # it can still do its work
            assert (await check(channel, "imprimatur.v1.JobService")).status == SERVING
        late = await world.submit(30, engines.APPROVE, "late")
        assert all(job.id for job in late)
        for number in range(len(early)):
            world.engine.open(f"early-{number}")  # some outcomes come to be without a broker
        await eventually(lambda: counted("imprimatur_outbox_messages") >= SLOTS)
        before = reissues()

        await asyncio.to_thread(world.node.ctl, "reset")
        assert reissues() == before  # all of it waits in the outbox
        await asyncio.to_thread(world.node.ctl, "start_app")
        await world.all_end(early + late)
        await asyncio.gather(*watches)
        await eventually(lambda: counted("imprimatur_outbox_messages") == 0)
        await makers.until(lambda: all_fail(ports, {name: [] for name in SERVICES}))


async def test_what_is_purged_from_the_review_queues_is_asked_for_again(world: World) -> None:
    hearing = asyncio.create_task(hear_of(world, makers.worker("heard of, and never seen to claim", slots=12)))
    submitted = await world.submit(12, engines.APPROVE, "purged")
    await makers.until(lambda: has_waiting(world, len(submitted)))
    hearing.cancel()
    await at_the_broker(world.node, "queue_purge", *REVIEW_QUEUES)
    await makers.until(lambda: has_waiting(world, 0))  # a quorum queue counts a moment later
    before = reissues()
    async with world.reviewer_and_notifier():
        await world.all_end(submitted)
    assert reissues() - before >= len(submitted)
    assert [await world.me.get(job) for job in submitted if (await world.me.get(job)).attempts != 1] == []


async def has_waiting(world: World, number: int) -> bool:
    return await world.waiting() == number


async def test_queues_that_are_deleted_under_their_consumers_come_back_and_nothing_is_lost(world: World) -> None:
    async with world.reviewer_and_notifier() as ports:
        submitted = await world.submit(3 * SLOTS, engines.GATE, "bereft")
        watches = [asyncio.create_task(world.me.until(job, JOB_STATE_SUCCEEDED)) for job in submitted]
        await until_running(world.engine, SLOTS)
        await at_the_broker(world.node, "queue_delete", *REVIEW_QUEUES, Queue.NOTIFIER_EVENTS)
        await delete_listeners(world.node)
        for number in range(len(submitted)):
            world.engine.open(f"bereft-{number}")
        await asyncio.gather(*watches)
        await world.all_told(submitted)
        await makers.until(lambda: all_fail(ports, {name: [] for name in SERVICES}))
        await world.all_end(await world.submit(3, engines.APPROVE, "after"))


async def delete_listeners(node: PrivateRabbitMQ) -> None:
    """The exclusive queues of gateway and reviewer, which only their own connection may delete by AMQP."""
    await asyncio.to_thread(
        node.ctl,
        "eval",
        '[rabbit_amqqueue:delete(Q, false, false, <<"test">>) || Q <- rabbit_amqqueue:list(),'
        " rabbit_amqqueue:is_exclusive(Q)].",
    )


async def test_thousands_of_queued_jobs_put_few_messages_into_the_broker_even_when_all_are_lost(world: World) -> None:
    idle, most = makers.worker("heard of, and never seen to claim", slots=8), 8 + 1 + 64
    before = reissues()
    hearing = asyncio.create_task(hear_of(world, idle))
    for part in range(20):
        await world.submit(250, engines.APPROVE, f"part-{part}")
    elapsed_ms = most_issued = 0
    while elapsed_ms < LONG_ENOUGH_MS or most_issued < 2:
        assert not hearing.done()
        messages, again = await world.waiting(), reissues() - before
        released, issued, most_issued, elapsed_ms = await world.numbers(
            "SELECT count(*), sum(release_no), max(release_no),"
            " (extract(epoch FROM clock_timestamp() - min(created_at)) * 1000)::int"
            " FROM jobs WHERE released_at IS NOT NULL AND state = 'queued'"
        )
        assert released <= most
        assert again <= issued
        assert messages <= 2 * issued  # the poller may publish what a slow writer publishes, too
        assert most_issued - 1 <= math.log2(elapsed_ms / 1000 / REISSUE_SECONDS + 1)  # each pause twice the last
    assert reissues() > before
    hearing.cancel()
    [queued] = await world.numbers("SELECT count(*) FROM jobs WHERE state = 'queued'")
    assert queued == 5000


async def hear_of(world: World, worker: workers.Worker) -> None:
    """Again and again, as of any worker."""
    while True:
        async with world.database.begin() as tx:
            await workers.seen(tx, worker, running=0)
        await asyncio.sleep(0.5)
