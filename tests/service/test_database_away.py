"""What still works, and how, while the database is away: a PostgreSQL of our own that is killed and frozen."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from deploy.local.postgres import PrivatePostgres
from gateway import access
from imprimatur import metrics
from imprimatur.identity import new_id
from imprimatur.storage import migrations
from imprimatur.storage.database import Database
from imprimatur.tenancy import Role
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED
from imprimatur.v1.job_service_pb2 import GetStatsRequest, GetSystemStatusRequest, GetSystemStatusResponse
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, running_system
from tests.service.test_health import NOT_SERVING, SERVING, check, dialled, health
from tests.service.test_metrics import get, observed, scraped
from tests.service.test_reviewing import kinds, outcomes

#: So soon the fault of a killed server is an answer.
SOON_SECONDS = 5.0
SERVICES = ("gateway", "reviewer", "notifier")
JOB_SERVICE = "imprimatur.v1.JobService"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    with PrivatePostgres.start(tmp_path_factory.mktemp("killed"), fsync=False, max_connections=50) as started:
        yield started


@pytest.fixture
async def database(server: PrivatePostgres) -> AsyncIterator[Database]:
    """A database whose server the test may kill."""
    if not server.alive():
        server.restart()
    opened = Database(server.create_database(f"test_{new_id().hex}"))
    await migrations.upgrade(opened)
    yield opened
    await opened.close()


async def status(caller: Caller) -> GetSystemStatusResponse:
    answer: GetSystemStatusResponse = await caller.jobs.GetSystemStatus(GetSystemStatusRequest())
    return answer


async def test_the_status_tells_those_who_were_known_before(
    database: Database, server: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "KEY_MEMORY_SECONDS", 0.0)  # each call asks for its key again
    async with running_system(database) as system:
        known, stranger = await system.caller(), await system.caller(Role.REVIEWER)
        up = await status(known)
        assert (up.database.up, up.broker.up) == (True, True)
        server.kill()
        for _ in range(2):
            down = await status(known)
            assert (down.database.up, down.broker.up, down.HasField("database")) == (False, True, True)
            assert not down.database.HasField("latency")
            assert down.server_version
        seen = await refusal(known.jobs.GetStats(GetStatsRequest()))
        assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        seen = await refusal(stranger.jobs.GetSystemStatus(GetSystemStatusRequest()))
        assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert seen.retry_after_seconds

        server.restart()
        await makers.until(lambda: _is_up(known), seconds=SOON_SECONDS)
        assert (await status(stranger)).database.up


async def _is_up(caller: Caller) -> bool:
    return (await status(caller)).database.up


async def test_a_key_is_not_trusted_for_ever_without_the_database(
    database: Database, server: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "KEY_MEMORY_SECONDS", 0.0)
    monkeypatch.setattr(access, "KEY_MEMORY_WITHOUT_DATABASE_SECONDS", 0.0)
    async with running_system(database) as system:
        known = await system.caller()
        assert (await status(known)).database.up
        server.kill()
        seen = await refusal(known.jobs.GetSystemStatus(GetSystemStatusRequest()))
        assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")


async def test_a_reviewer_stops_in_order_and_closes_its_engine(database: Database, server: PrivatePostgres) -> None:
    engine = ScriptedEngine()
    async with running_system(database) as system:
        me = await system.caller()
        with capture_logs() as logged:
            async with system.reviewer(engine):
                await me.until(await me.submit(engines.APPROVE), JOB_STATE_SUCCEEDED)
                server.kill()
        assert engine.closed
        assert "the dispatcher could not be told" in str([entry["event"] for entry in logged])


async def test_jobs_go_on_when_the_database_is_back(database: Database, server: PrivatePostgres) -> None:
    engine = ScriptedEngine()
    names = [f"cr-{number}" for number in range(12)]
    async with running_system(database) as system, system.reviewer(engine, slots=12):
        me = await system.caller()
        submitted = [await me.submit(engines.GATE, name) for name in names]
        await makers.until(lambda: _all_begun(engine, 12))
        server.kill()
        for name in names:
            engine.open(name)  # their ends cannot be written now
        await makers.until(lambda: _is_away(system, me), seconds=SOON_SECONDS)
        server.restart()
        ended = [await me.until(job, JOB_STATE_SUCCEEDED, seconds=20.0) for job in submitted]
        for job in ended:
            assert (job.attempts, outcomes(job)) == (1, ["SUCCEEDED"])
            assert await kinds(me, job) == ["submitted", "started", "succeeded"]
    assert sorted(engine.seen) == sorted(names)


async def test_what_nobody_can_look_at_any_more_is_not_told(
    database: Database, server: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauges = [gauge for gauge in vars(metrics).values() if isinstance(gauge, metrics.DatabaseGauge)]
    names = {family.name for gauge in gauges for family in gauge.describe()}

    async def told(port: int, *, there: bool) -> bool:
        families = await scraped(port)
        assert families["imprimatur_jobs_submitted"].samples  # as ever
        return {bool(families[name].samples) for name in names} == {there}

    async with running_system(database) as system, observed(system, "notifier") as (port, _engine):
        await makers.until(lambda: told(port, there=True))
        server.kill()
        assert await told(port, there=True)  # a moment is no gap
        monkeypatch.setattr(metrics, "KNOWN_SECONDS", 0.1)
        await makers.until(lambda: told(port, there=False))


async def test_a_pause_of_the_database_takes_no_job_from_its_worker(
    database: Database, server: PrivatePostgres
) -> None:
    engine = ScriptedEngine()
    async with running_system(database, lease_seconds=1.0) as system, system.reviewer(engine, slots=4):
        me = await system.caller()
        waiting = [await me.submit(engines.GATE, f"cr-{number}") for number in range(4)]
        await makers.until(lambda: _all_begun(engine, 4))
        await asyncio.to_thread(server.suspend)
        await asyncio.sleep(3.0)  # three leases
        await asyncio.to_thread(server.resume)
        for number in range(4):
            engine.open(f"cr-{number}")
        ended = [await me.until(job, JOB_STATE_SUCCEEDED, seconds=20.0) for job in waiting]
    assert [outcomes(job) for job in ended] == [["SUCCEEDED"]] * 4


async def _all_begun(engine: ScriptedEngine, number: int) -> bool:
    return engine.running == number


async def test_every_service_says_that_it_is_not_ready_lives_on_and_is_ready_again(
    database: Database, server: PrivatePostgres
) -> None:
    async with running_system(database) as system, AsyncExitStack() as stack:
        ports = [(await stack.enter_async_context(observed(system, name)))[0] for name in SERVICES]
        await makers.until(lambda: _all_say(ports, 200, {}))
        server.suspend()
        try:
            await makers.until(lambda: _all_say(ports, 503, {"database"}), seconds=SOON_SECONDS)
            assert [(await get(port, "/livez"))[0] for port in ports] == [200, 200, 200]
            assert [(await get(port, "/metrics"))[0] for port in ports] == [200, 200, 200]
        finally:
            server.resume()
        await makers.until(lambda: _all_say(ports, 200, {}), seconds=SOON_SECONDS)


async def _all_say(ports: list[int], status: int, failing: Collection[str]) -> bool:
    answers = await asyncio.gather(*(get(port, "/readyz") for port in ports))
    return all((code, json.loads(body)["failing"].keys()) == (status, set(failing)) for code, body in answers)


async def test_grpc_health_tells_of_a_gateway_without_its_database_and_of_its_return(
    database: Database, server: PrivatePostgres
) -> None:
    async with running_system(database) as system, dialled(system.port) as channel:
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(service=JOB_SERVICE))
        told = [(await watch.read()).status]
        server.kill()
        async with asyncio.timeout(10.0):
            told.append((await watch.read()).status)
        assert (await check(channel, "")).status == NOT_SERVING
        server.restart()
        async with asyncio.timeout(10.0):
            told.append((await watch.read()).status)
        assert (await check(channel, "")).status == SERVING
        assert told == [SERVING, NOT_SERVING, SERVING]


async def _is_away(system: System, me: Caller) -> bool:
    return not (await status(me)).database.up
