"""A cancelled job's engine call is really ended: a provider's socket closes, a child process is killed.

Two ways lead there, each enough alone: the broadcast of the cancellation, and the renewal of leases.
"""

import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur.broker import Broker, Message, Subscription
from imprimatur.broker.memory import MemoryBroker
from imprimatur.broker.rabbitmq import RabbitMQBroker
from imprimatur.storage.database import Database
from imprimatur.v1.job_pb2 import (
    ATTEMPT_OUTCOME_CANCELLED,
    JOB_STATE_CANCELLED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from imprimatur.v1.job_service_pb2 import CancelJobRequest
from reviewer.engines.registry import open_engine
from reviewer.settings import EngineName, EngineSettings
from tests.contract.polling import eventually
from tests.patience import happens
from tests.service.provider import Provider, hangs, providing
from tests.service.systems import Caller, System, running_system

#: So long a lease that no renewal comes within a test.
NO_RENEWAL_SECONDS = 600.0
MEASURED = 50


class Deaf(MemoryBroker):
    """A broker that tells nobody what happens to jobs."""

    async def listen(
        self, keys: tuple[str, ...], on_message: Callable[[Message], None], on_gap: Callable[[], None]
    ) -> Subscription:
        """To nothing."""
        return await super().listen(("nothing",), on_message, on_gap)


@asynccontextmanager
async def reviewing_by_llm(
    database: Database, broker: Broker, *, lease_seconds: float
) -> AsyncIterator[tuple[Caller, Provider]]:
    """A system whose reviewer asks a provider that never answers."""
    async with providing(hangs) as provider, running_system(database, broker, lease_seconds=lease_seconds) as system:
        settings = EngineSettings(
            engine=EngineName.LLM,
            llm_model="house-model",
            llm_base_url=provider.base_url,
        )
        async with system.reviewer(open_engine(settings)):
            if isinstance(broker, RabbitMQBroker):
                await eventually(lambda: broker.connected and all(one.active for one in broker._subscriptions))
            yield await system.caller(), provider


async def asked_about(me: Caller, provider: Provider) -> Job:
    """A new job that the provider is being asked about."""
    provider.asked.clear()
    provider.left.clear()
    job = await me.submit("New running shoes")
    await happens(provider.asked)
    return job


async def cancel(me: Caller, job: Job) -> None:
    answer = await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    assert answer.job.state == JOB_STATE_CANCELLED


async def is_left(provider: Provider) -> None:
    """The socket of the call is closed."""
    await happens(provider.left)


async def is_booked(me: Caller, job: Job) -> None:
    """The job stays cancelled, and its one attempt too."""
    ended = await me.get(job)
    assert ended.state == JOB_STATE_CANCELLED
    assert [attempt.outcome for attempt in ended.attempt_history] == [ATTEMPT_OUTCOME_CANCELLED]


@pytest.fixture
def listening(rabbitmq: PrivateRabbitMQ) -> RabbitMQBroker:
    """A real broker, not yet connected."""
    return RabbitMQBroker(rabbitmq.url, name="cancelling", reconnect_max_seconds=0.5)


async def test_a_broadcast_closes_the_providers_socket_without_any_renewal(
    postgresql_database: Database, listening: RabbitMQBroker
) -> None:
    async with reviewing_by_llm(postgresql_database, listening, lease_seconds=NO_RENEWAL_SECONDS) as (me, provider):
        job = await asked_about(me, provider)
        await cancel(me, job)
        await is_left(provider)
        await is_booked(me, job)


async def test_a_renewal_closes_the_providers_socket_without_any_broadcast(postgresql_database: Database) -> None:
    async with reviewing_by_llm(postgresql_database, Deaf(), lease_seconds=0.9) as (me, provider):
        job = await asked_about(me, provider)
        await cancel(me, job)
        await is_left(provider)
        await is_booked(me, job)


async def test_without_either_way_the_call_goes_on(postgresql_database: Database) -> None:
    async with reviewing_by_llm(postgresql_database, Deaf(), lease_seconds=NO_RENEWAL_SECONDS) as (me, provider):
        await cancel(me, await asked_about(me, provider))
        await me.submit("Another pair")
        await eventually(lambda: len(provider.calls) == 2)
        assert not provider.left.is_set()


async def test_the_builtin_engines_child_is_killed_and_another_takes_its_place(system_on_postgresql: System) -> None:
    system = system_on_postgresql
    me = await system.caller()
    settings = EngineSettings(engine=EngineName.BUILTIN, engine_processes=1)
    async with system.reviewer(open_engine(settings)):
        await me.until(await me.submit("New running shoes"), JOB_STATE_SUCCEEDED)
        [child] = children()
        os.kill(child, signal.SIGSTOP)  # what it is given now, it works on for ever
        job = await me.submit("Another pair")
        await me.until(job, JOB_STATE_RUNNING)
        await cancel(me, job)
        await eventually(lambda: child not in children(), "the child is gone")
        await me.until(await me.submit("A third pair"), JOB_STATE_SUCCEEDED)


def children() -> list[int]:
    """The engine's processes under this one."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in found if "reviewer" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.soak
async def test_how_long_a_provider_is_kept_after_its_job_was_cancelled(
    postgresql_database: Database, listening: RabbitMQBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints figures and judges none: from CancelJob's answer to the closing of the provider's socket."""
    for name, broker in (("by broadcast", listening), ("by renewal alone", Deaf())):
        async with reviewing_by_llm(postgresql_database, broker, lease_seconds=3.0) as (me, provider):
            took = sorted([await seconds_kept(me, provider) for _ in range(MEASURED)])
        p50, p99 = statistics.median(took), statistics.quantiles(took, n=100, method="inclusive")[98]
        with capsys.disabled():
            sys.stdout.write(f"\n{name}, {MEASURED} times: p50 {p50:.3f} s, p99 {p99:.3f} s, max {took[-1]:.3f} s\n")


async def seconds_kept(me: Caller, provider: Provider) -> float:
    """Negative when the socket is closed before the answer is here."""
    job = await asked_about(me, provider)
    await asyncio.sleep(random.random())  # at any moment between two renewals
    closed = asyncio.create_task(noticed(provider))
    await cancel(me, job)
    answered = time.perf_counter()
    return await closed - answered


async def noticed(provider: Provider) -> float:
    await provider.left.wait()
    return time.perf_counter()
