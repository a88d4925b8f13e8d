"""What callers are told while the database is in trouble, and that nothing is lost, doubled or leaked by it.

A small PostgreSQL of our own that is frozen, locked, filled, slowed and restarted under a gateway and a reviewer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # ships no types
import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_status import rpc_status
from sqlalchemy import text

from deploy.local.postgres import PrivatePostgres
from imprimatur.identity import new_id
from imprimatur.runtime import http_port
from imprimatur.storage import migrations
from imprimatur.storage.database import Database
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_SUCCEEDED, Job
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    CancelJobRequest,
    GetJobRequest,
    SubmitJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from tests import makers
from tests.contract.polling import eventually
from tests.patience import PATIENCE_SECONDS
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.statuses import Refusal, refusal_of
from tests.service.systems import Caller, System, running_system, submission
from tests.service.test_metrics import get

#: A client's patience. What we answer must come before it ends.
DEADLINE_SECONDS = 2.0
#: A busy machine may need a later try, of which each has more time.
DEADLINES_SECONDS = (DEADLINE_SECONDS, 4.0, 8.0, 16.0)
POOL_SIZE = 4
REASONS = {"DATABASE_UNAVAILABLE", "TIMED_OUT"}
EVERY_CALL = {"submit", "batch", "get", "cancel", "watch", "watch many"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """One with so few connections that a test can take them all."""
    with PrivatePostgres.start(tmp_path_factory.mktemp("troubled"), fsync=False, max_connections=20) as started:
        yield started
        started.resume()


@dataclass(frozen=True, kw_only=True)
class World:
    """A system on a database that a test may trouble."""

    server: PrivatePostgres
    url: str
    database: Database
    lease_database: Database
    system: System
    me: Caller

    async def ask(self, query: str, *arguments: object) -> Any:
        """One value, by a connection of the test's own."""
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()


@pytest.fixture
async def world(server: PrivatePostgres) -> AsyncIterator[World]:
    """With a reviewer at work."""
    url = server.create_database(f"test_{new_id().hex}")
    database, lease_database = Database(url, pool_size=POOL_SIZE), Database(url, pool_size=1)
    await migrations.upgrade(database)
    async with (
        running_system(database, lease_seconds=1.5) as system,
        system.reviewer(ScriptedEngine(), lease_database=lease_database),
    ):
        yield World(
            server=server,
            url=url,
            database=database,
            lease_database=lease_database,
            system=system,
            me=await system.caller(),
        )
    await database.close()
    await lease_database.close()


# --- calls -----------------------------------------------------------------------------------------------


async def outcome(call: Any) -> Message | Refusal | None:
    """What a call is answered, good or bad. A stream is answered by its first message. None: its deadline came first,
    which on a busy machine is nobody's fault."""
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            first = await call.read()
            call.cancel()
            assert isinstance(first, Message)
            return first
        answer: Message = await call
    except grpc.aio.AioRpcError as fault:
        status = rpc_status.from_call(fault)  # type: ignore[arg-type]  # it has what a call has
        if status is None and fault.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return None
        if status is None:
            raise AssertionError(f"not our answer: {fault.code()} {fault.details()}") from None
        return refusal_of(status)
    return answer


def calls(me: Caller, known: Job, requests: list[SubmitJobRequest], seconds: float) -> dict[str, Any]:
    """One of each kind, begun."""
    alone, *together = requests
    return {
        "submit": me.jobs.SubmitJob(alone, timeout=seconds),
        "batch": me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=together), timeout=seconds),
        "get": me.jobs.GetJob(GetJobRequest(job_id=known.id), timeout=seconds),
        "cancel": me.jobs.CancelJob(CancelJobRequest(job_id=known.id), timeout=seconds),
        "watch": me.jobs.WatchJob(WatchJobRequest(job_id=known.id), timeout=seconds),
        "watch many": me.jobs.WatchJobs(WatchJobsRequest(), timeout=seconds),
    }


async def outcomes(made: dict[str, Any]) -> dict[str, Message | Refusal | None]:
    """Of all calls, while the process is asked whether it lives."""
    answers = asyncio.gather(*(outcome(call) for call in made.values()))
    lives = 0
    async with http_port("127.0.0.1", 0) as http:
        while not answers.done():
            assert (await get(http.number, "/livez"))[0] == 200
            lives += 1
            await asyncio.wait([answers], timeout=0.05)
    assert lives
    return dict(zip(made, await answers, strict=True))


def is_fair(answer: Message | Refusal | None) -> bool:
    """Whether it is a refusal that tells the caller to come again."""
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.domain) == (grpc.StatusCode.UNAVAILABLE, "imprimatur"), answer
    assert answer.reason in REASONS, answer
    return bool(answer.retry_after_seconds)


def requests(number: int = 4) -> list[SubmitJobRequest]:
    """Submissions that may be repeated."""
    return [submission(engines.APPROVE, request_id=new_id().hex) for _ in range(number)]


# --- troubles --------------------------------------------------------------------------------------------

Trouble = Callable[[World, Job], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def frozen(world: World, _known: Job) -> AsyncIterator[None]:
    """Connections stand and nothing answers."""
    world.server.suspend()
    try:
        yield
    finally:
        world.server.resume()


@asynccontextmanager
async def killed(world: World, _known: Job) -> AsyncIterator[None]:
    await asyncio.to_thread(world.server.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(world.server.restart)


@asynccontextmanager
async def table_locked(world: World, _known: Job) -> AsyncIterator[None]:
    """As by a migration. More calls wait for it than there are connections."""
    async with holding(world, "LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"):
        yield


@asynccontextmanager
async def row_locked(world: World, known: Job) -> AsyncIterator[None]:
    async with holding(world, f"SELECT FROM jobs WHERE id = '{known.id}' FOR UPDATE"):
        yield


@asynccontextmanager
async def pool_taken(world: World, _known: Job) -> AsyncIterator[None]:
    """The gateway's own connections are all in use."""
    async with AsyncExitStack() as taken:
        for _ in range(POOL_SIZE):
            reader = await taken.enter_async_context(world.database.read())
            await reader.connection.execute(text("SELECT 1"))
        yield


@asynccontextmanager
async def writes_slow(world: World, _known: Job) -> AsyncIterator[None]:
    await world.ask(
        "CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';"
    )
    await world.ask("CREATE TRIGGER dozing BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION doze()")
    try:
        yield
    finally:
        await world.ask("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        await world.ask("DROP FUNCTION doze CASCADE")


@asynccontextmanager
async def connections_taken(world: World, _known: Job) -> AsyncIterator[None]:
    """Others have all connections that the server has; ours were cut."""
    taken: list[Any] = []

    async def take_all() -> bool:
        """Whether ours have none any more."""
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(world.url))
        ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'imprimatur'"
        return not await taken[0].fetch(ours)

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await take_all():
            pass
    try:
        yield
    finally:
        await asyncio.gather(*(one.close() for one in taken))


@asynccontextmanager
async def holding(world: World, statement: str) -> AsyncIterator[None]:
    """A transaction of somebody else's that has done this."""
    connection = await asyncpg.connect(world.url)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


# --- tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "refused"),
    [
        (frozen, EVERY_CALL),
        (killed, EVERY_CALL),
        (table_locked, EVERY_CALL),
        (pool_taken, EVERY_CALL),
        (connections_taken, EVERY_CALL),
        (row_locked, {"cancel"}),
        (writes_slow, {"submit", "batch", "cancel"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_call_in_trouble_is_refused_in_time_and_everything_goes_on_afterwards(
    world: World, trouble: Trouble, refused: set[str]
) -> None:
    known = await world.me.submit(engines.GATE, "known")
    asked = requests()
    async with trouble(world, known):
        for seconds in DEADLINES_SECONDS:
            answers = await outcomes(calls(world.me, known, asked, seconds))
            if {name for name, answer in answers.items() if isinstance(answer, Refusal)} == refused:
                break
        assert None not in answers.values()
        assert {name for name, answer in answers.items() if isinstance(answer, Refusal)} == refused
        assert all(is_fair(answers[name]) for name in refused)
    await goes_on(world, asked)
    await world.me.jobs.CancelJob(CancelJobRequest(job_id=known.id))
    await world.me.until(known, JOB_STATE_CANCELLED)
    await nothing_is_leaked(world)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_server_that_restarts_in_the_middle_of_calls_loses_and_doubles_nothing(world: World, end: str) -> None:
    asked: list[SubmitJobRequest] = []
    accepted: set[str] = set()
    refusals: list[Refusal] = []
    stopped = asyncio.Event()

    async def submit_again_and_again() -> None:
        while not stopped.is_set():
            [request] = requests(1)
            asked.append(request)
            answer = await outcome(world.me.jobs.SubmitJob(request, timeout=DEADLINE_SECONDS))
            if isinstance(answer, Refusal):
                assert is_fair(answer)
                refusals.append(answer)
                await asyncio.sleep(0.05)
            elif answer is not None:
                accepted.add(answer.job.id)  # type: ignore[attr-defined]  # a SubmitJobResponse

    submitting = [asyncio.create_task(submit_again_and_again()) for _ in range(6)]
    await eventually(lambda: len(accepted) > 20)
    await asyncio.to_thread(getattr(world.server, end))
    await asyncio.to_thread(world.server.restart)
    before = len(accepted)
    await eventually(lambda: len(accepted) > before + 20)
    stopped.set()
    await asyncio.gather(*submitting)

    assert refusals
    ids = await goes_on(world, asked)
    assert accepted <= ids
    await nothing_is_leaked(world)


async def goes_on(world: World, asked: list[SubmitJobRequest]) -> set[str]:
    """Whatever became of these submissions, each repeated makes exactly one job, and that is done."""
    jobs = await asyncio.gather(*(insistently(world.me, request) for request in asked))
    ids = {job.id for job in jobs}
    assert len(ids) == len(asked)
    stored = await world.ask("SELECT count(*) FROM jobs WHERE request_id = ANY($1)", [one.request_id for one in asked])
    assert stored == len(asked)
    for job in jobs:
        await world.me.until(job, JOB_STATE_SUCCEEDED)
    return ids


async def insistently(me: Caller, request: SubmitJobRequest) -> Job:
    """Submit until accepted, as clients do."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await outcome(me.jobs.SubmitJob(request, timeout=DEADLINE_SECONDS))
            if answer is not None and not isinstance(answer, Refusal):
                job: Job = answer.job  # type: ignore[attr-defined]  # a SubmitJobResponse
                return job
            assert answer is None or is_fair(answer)
            await asyncio.sleep(0.05)


async def nothing_is_leaked(world: World) -> None:
    """No connection is in use for nothing, none is held open in a transaction, and there are no more than allowed."""
    await eventually(lambda: world.database.pool_in_use == world.lease_database.pool_in_use == 0, "connections back")
    ours = "FROM pg_stat_activity WHERE application_name = 'imprimatur' AND datname = current_database()"
    assert await world.ask(f"SELECT count(*) {ours}") <= POOL_SIZE + 1
    await makers.until(lambda: is_zero(world, f"SELECT count(*) {ours} AND state LIKE 'idle in transaction%'"))


async def is_zero(world: World, query: str) -> bool:
    return bool(await world.ask(query) == 0)
