"""Watches: the job as it stands, then only newer versions, to the end; wherever, whenever and however it is lost."""

import asyncio
import tracemalloc
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc.aio
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import update
from sqlalchemy.event import listen

from gateway import access
from gateway.rendering import Version
from gateway.watching import Watchtower
from imprimatur.broker import EVENTS, Message
from imprimatur.broker.memory import MemoryBroker
from imprimatur.identity import new_id
from imprimatur.job import Happening, State
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.schema import jobs as stored_jobs
from imprimatur.tenancy import Role
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED as CANCELLED
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import (
    CancelJobRequest,
    JobFilter,
    WatchJobRequest,
    WatchJobResponse,
    WatchJobsRequest,
)
from imprimatur.v1.review_service_pb2 import WatchReviewQueueRequest
from imprimatur.wire.messages import JobChange, JobsChanged
from reviewer.tasks import creative_review
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_postgresql

pytestmark = on_postgresql

ANYTHING = Filter()


def open_streams(rpc: str = "WatchJob") -> float:
    return REGISTRY.get_sample_value("imprimatur_open_streams", {"rpc": rpc}) or 0.0


async def watched(me: Caller, job: pb.Job, after_version: int = 0) -> list[pb.Job]:
    request = WatchJobRequest(job_id=job.id, after_version=after_version)
    async with asyncio.timeout(10.0):
        return [seen.job async for seen in me.jobs.WatchJob(request)]


async def rest_of(stream: Any) -> list[pb.Job]:
    rest: list[pb.Job] = []
    while (seen := await stream.read()) is not grpc.aio.EOF:
        rest.append(seen.job)
    return rest


def rises(jobs: list[pb.Job]) -> bool:
    versions = [job.version for job in jobs]
    return versions == sorted(set(versions))


# --- one job ---------------------------------------------------------------------------------------------


async def test_a_watch_shows_the_job_now_then_newer_ones_and_ends_with_the_terminal_one(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.GATE, "cr-1")
    stream: Any = me.jobs.WatchJob(WatchJobRequest(job_id=job.id))
    first = await stream.read()
    assert (first.job.state, first.job.version) == (QUEUED, 1)
    async with system.reviewer(engine):
        second = await stream.read()
        assert (second.job.state, second.job.version) == (RUNNING, 2)
        engine.open("cr-1")
        rest = await rest_of(stream)
    assert [seen.state for seen in rest] == [SUCCEEDED]
    assert await stream.code() is grpc.StatusCode.OK
    assert not rest[-1].attempt_history  # GetJob has them


async def test_a_watch_of_a_finished_job_shows_its_end_again(system: System, me: Caller) -> None:
    job = await me.submit(engines.APPROVE)
    await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    for after_version in (0, 1, 2):
        assert [(one.state, one.version) for one in await watched(me, job, after_version)] == [(CANCELLED, 2)]


async def test_a_watch_after_a_version_begins_with_a_newer_one(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.GATE)
    stream: Any = me.jobs.WatchJob(WatchJobRequest(job_id=job.id, after_version=1))
    async with system.reviewer(engine):
        first = await stream.read()
        assert (first.job.state, first.job.version) == (RUNNING, 2)
        stream.cancel()


async def test_the_versions_that_fifty_watchers_see_never_go_backwards(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.GATE, "cr-1")
    watchers = [asyncio.create_task(watched(me, job)) for _ in range(50)]
    async with system.reviewer(engine):
        await makers.until(lambda: _holds(lambda: open_streams() == 50))
        engine.open("cr-1")
        for seen in await asyncio.gather(*watchers):
            assert rises(seen)
            assert seen[-1].state == SUCCEEDED
    await makers.until(lambda: _holds(lambda: open_streams() == 0))


async def test_a_slow_engine_is_seen_to_be_at_work(
    system: System, me: Caller, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creative_review, "_SLOW_AFTER_SECONDS", 0.01)
    job = await me.submit(engines.GATE, "cr-1")
    stream: Any = me.jobs.WatchJob(WatchJobRequest(job_id=job.id))
    async with system.reviewer(engine), asyncio.timeout(10.0):
        seen = [(await stream.read()).job]
        while not seen[-1].progress.stage:
            seen.append((await stream.read()).job)
        engine.open("cr-1")
        rest = await rest_of(stream)
    assert rises(seen + rest)
    assert (seen[-1].progress.percent, seen[-1].progress.stage) == (30, "examining")
    assert (rest[-1].state, rest[-1].progress.percent) == (SUCCEEDED, 100)


async def test_a_watch_that_is_left_leaves_nothing_behind(system: System, me: Caller) -> None:
    job = await me.submit(engines.APPROVE)
    streams: list[Any] = [me.jobs.WatchJob(WatchJobRequest(job_id=job.id)) for _ in range(10)]
    streams += [me.jobs.WatchJobs(WatchJobsRequest()) for _ in range(10)]
    for stream in streams:
        await stream.read()
    assert (open_streams(), open_streams("WatchJobs")) == (10, 10)
    for stream in streams:
        stream.cancel()
    await makers.until(lambda: _holds(lambda: open_streams() + open_streams("WatchJobs") == 0))


async def test_a_watch_goes_on_at_another_gateway(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit(engines.GATE, "cr-1")
    async with system.gateway() as port:
        other = await system.holder(me.key, port=port)
        stream: Any = other.jobs.WatchJob(WatchJobRequest(job_id=job.id))
        seen = (await stream.read()).job
    left = await refusal(stream)
    assert (left.code, left.reason) == (grpc.StatusCode.UNAVAILABLE, "GATEWAY_STOPPING")
    assert left.retry_after_seconds
    engine.open("cr-1")
    async with system.reviewer(engine):
        rest = await watched(me, job, after_version=seen.version)
    assert rises([seen, *rest])
    assert rest[-1].state == SUCCEEDED


async def test_a_change_made_through_one_gateway_is_seen_at_another(system: System, me: Caller) -> None:
    async with system.gateway() as port:
        other = await system.holder(me.key, port=port)
        job = await me.submit(engines.APPROVE)
        stream: Any = other.jobs.WatchJob(WatchJobRequest(job_id=job.id))
        await stream.read()
        await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
        async with asyncio.timeout(10.0):
            assert (await stream.read()).job.state == CANCELLED


async def test_a_revoked_keys_watch_ends_before_it_shows_more(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await me.submit(engines.APPROVE)
    other = await system.caller(Role.REVIEWER)
    streams: list[Any] = [other.jobs.WatchJob(WatchJobRequest(job_id=job.id)), other.jobs.WatchJobs(WatchJobsRequest())]
    for stream in streams:
        await stream.read()
    await system.revoke(other)
    monkeypatch.setattr(access, "KEY_MEMORY_SECONDS", 0.0)  # it was found longer ago
    await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    await streams[1].read()  # the end of the snapshot was sent before
    for stream in streams:
        assert (await refusal(stream)).code is grpc.StatusCode.UNAUTHENTICATED


# --- many jobs -------------------------------------------------------------------------------------------


async def until_complete(stream: Any) -> list[pb.Job]:
    found: list[pb.Job] = []
    while not (seen := await stream.read()).snapshot_complete:
        found.append(seen.job)
    return found


async def test_watching_many_shows_what_is_there_then_every_change_once(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    old = [await me.submit(engines.APPROVE, f"old-{number}") for number in range(3)]
    await me.jobs.CancelJob(CancelJobRequest(job_id=old[0].id))  # finished: not in the snapshot
    stream: Any = me.jobs.WatchJobs(WatchJobsRequest())
    assert [job.id for job in await until_complete(stream)] == [job.id for job in old[1:]]
    new = await me.submit(engines.APPROVE, "new")
    alive = {job.id for job in (*old[1:], new)}
    seen: dict[str, list[pb.Job]] = {job_id: [] for job_id in alive}
    async with system.reviewer(engine), asyncio.timeout(10.0):
        while any(not jobs or jobs[-1].state != SUCCEEDED for jobs in seen.values()):
            job = (await stream.read()).job
            seen[job.id].append(job)
    late = [  # or told twice
        JobChange(
            job_id=uuid.UUID(job_id), tenant_id=system.tenant_id, version=seen[job_id][-1].version, state=State.RUNNING
        )
        for job_id in alive
    ]
    await system.broker.publish(event(JobsChanged(changes=late).encode()))
    last = await me.submit(engines.APPROVE, "last")
    assert (await stream.read()).job.id == last.id  # and nothing about the others again
    assert all(rises(jobs) for jobs in seen.values())
    stream.cancel()


async def test_watching_many_keeps_to_its_filter(system: System, me: Caller, engine: ScriptedEngine) -> None:
    wanted = JobFilter(states=[AWAITING], labels={"team": "a"}, subject_id="mine")
    stream: Any = me.jobs.WatchJobs(WatchJobsRequest(filter=wanted))
    assert await until_complete(stream) == []
    async with system.reviewer(engine):
        await me.submit(engines.HUMAN, "mine", concurrency_key="1", labels={"team": "b"})
        await me.submit(engines.HUMAN, "other", concurrency_key="2", labels={"team": "a"})
        await me.submit(engines.APPROVE, "mine", concurrency_key="3", labels={"team": "a"})
        job = await me.submit(engines.HUMAN, "mine", concurrency_key="4", labels={"team": "a", "more": ""})
        async with asyncio.timeout(10.0):
            seen = await stream.read()
    assert (seen.job.id, seen.job.state) == (job.id, AWAITING)
    stream.cancel()


async def test_watching_many_ends_with_unavailable_when_the_gateway_stops(system: System, me: Caller) -> None:
    await me.submit(engines.APPROVE)
    async with system.gateway() as port:
        other = await system.holder(me.key, port=port)
        stream: Any = other.jobs.WatchJobs(WatchJobsRequest())
        await until_complete(stream)
    assert (await refusal(stream)).code is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    """Says how many bytes Python holds."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


@pytest.mark.parametrize("rpc", ["WatchJobs", "WatchReviewQueue"])
async def test_a_client_that_does_not_read_costs_little_and_misses_nothing(
    system: System, me: Caller, traced: Callable[[], int], rpc: str
) -> None:
    large = {"a": "label that " * 4000}
    new = [makers.new_job(system.tenant_id, content=b"", labels=large) for _ in range(100)]
    made = [str(job.id) for job in await makers.submit(system.database, *new)]
    async with system.database.begin() as tx:
        waiting = {"state": State.AWAITING_REVIEW, "decision": "pending", "awaiting_since": datetime.now(UTC)}
        await tx.connection.execute(update(stored_jobs).values(waiting))
    before = traced()
    watches: dict[str, Any] = {
        "WatchJobs": lambda: me.jobs.WatchJobs(WatchJobsRequest()),
        "WatchReviewQueue": lambda: me.reviews.WatchReviewQueue(WatchReviewQueueRequest()),
    }
    stream = watches[rpc]()
    first = await stream.read()
    assert traced() - before < 1_000_000  # of more than four
    await me.jobs.CancelJob(CancelJobRequest(job_id=made[-1]))
    seen = [first]
    while not seen[-1].snapshot_complete:
        seen.append(await stream.read())
    shown = [one.job if rpc == "WatchJobs" else one.review.job for one in seen[:-1]]
    assert [job.id for job in shown] == (made if rpc == "WatchJobs" else made[:-1])
    assert (shown[-1].state == CANCELLED) is (rpc == "WatchJobs")  # it is read when its turn comes
    stream.cancel()


async def test_a_client_that_does_not_read_costs_one_version_of_its_job(
    system: System, me: Caller, traced: Callable[[], int]
) -> None:
    [job] = await makers.submit(
        system.database, makers.new_job(system.tenant_id, content=b"", labels={"a": "label that " * 8000})
    )
    before = traced()
    streams: list[Any] = [me.jobs.WatchJob(WatchJobRequest(job_id=str(job.id))) for _ in range(2)]
    stalled, reading = streams
    for stream in streams:
        assert (await stream.read()).job.version == 1
    for version in range(2, 41):
        async with system.database.begin() as tx:
            await tx.connection.execute(update(stored_jobs).values(version=version))
        seen = JobChange(job_id=job.id, tenant_id=system.tenant_id, version=version, state=State.QUEUED)
        await system.broker.publish(event(JobsChanged(changes=[seen]).encode()))
        async with asyncio.timeout(10.0):
            assert (await reading.read()).job.version == version
    assert traced() - before < 1_000_000  # of more than three
    shown = [(await stalled.read()).job.version]
    while shown[-1] < 40:
        shown.append((await stalled.read()).job.version)
    assert shown == sorted(set(shown))
    for stream in streams:
        stream.cancel()


# --- events that are lost or cannot be read --------------------------------------------------------------


def event(body: bytes) -> Message:
    return Message(exchange=EVENTS, routing_key="state.any", body=body, message_id=str(new_id()), mandatory=False)


async def test_events_that_cannot_be_read_disturb_nobody(system: System, me: Caller) -> None:
    job = await me.submit(engines.APPROVE)
    stream: Any = me.jobs.WatchJob(WatchJobRequest(job_id=job.id))
    await stream.read()
    for body in (b"", b"\xff", b"\x08\x02", b"\x08\x01\x28\x63"):
        await system.broker.publish(event(body))
    await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    assert (await stream.read()).job.state == CANCELLED


@pytest.fixture
async def watchtower(database: Database) -> AsyncIterator[Watchtower]:
    """One whose broker never tells it anything."""
    broker = MemoryBroker()
    await broker.start()
    tower = Watchtower(database, broker, reread_seconds=0.1)
    await tower.start()
    yield tower
    await tower.stop()
    await broker.close()


def shown(seen: Version | bytes | None) -> pb.Job:
    assert seen is not None
    answer = seen.answer("somebody") if isinstance(seen, Version) else seen
    return WatchJobResponse.FromString(answer).job


def follow(tower: Watchtower, tenant: uuid.UUID, wanted: Filter = ANYTHING) -> AsyncGenerator[bytes | None]:
    return tower.follow(Owner(tenant_id=tenant), wanted, tenant="somebody")


async def test_a_lost_event_is_found_by_reading_again(database: Database, watchtower: Watchtower) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    owner = Owner(tenant_id=tenant)
    one, many = watchtower.watch(owner, claim.job_id), follow(watchtower, tenant)
    assert shown(await anext(one)).state == RUNNING
    assert shown(await anext(many)).version == 2
    assert await anext(many) is None
    await makers.conclude(database, claim, Happening.COMPLETED)  # nobody publishes what this wrote
    async with asyncio.timeout(10.0):
        assert [shown(version).state async for version in one] == [SUCCEEDED]
        assert shown(await anext(many)).state == SUCCEEDED
    await many.aclose()


async def test_a_job_that_this_version_cannot_read_keeps_no_news_of_others(
    database: Database, watchtower: Watchtower
) -> None:
    tenant = await makers.make_tenant(database)
    claims = [await makers.running(database, tenant) for _ in range(2)]
    owner = Owner(tenant_id=tenant)
    watches, many = [watchtower.watch(owner, claim.job_id) for claim in claims], follow(watchtower, tenant)
    for watch in watches:
        await anext(watch)
    assert [shown(await anext(many)).version for _ in claims] == [2, 2]
    assert await anext(many) is None
    async with database.begin() as tx:  # as a later version would
        newer = update(stored_jobs).where(stored_jobs.c.id == claims[0].job_id)
        await tx.connection.execute(newer.values(type="not_invented", version=stored_jobs.c.version + 1))
    await makers.conclude(database, claims[1], Happening.COMPLETED)
    async with asyncio.timeout(10.0):
        assert [shown(version).state async for version in watches[1]] == [SUCCEEDED]
        assert shown(await anext(many)).state == SUCCEEDED
    for stream in (watches[0], many):
        await stream.aclose()


async def test_following_a_state_shows_a_job_again_that_comes_back_to_it(
    database: Database, watchtower: Watchtower
) -> None:
    tenant = await makers.make_tenant(database)
    stream = follow(watchtower, tenant, Filter(states=frozenset({State.QUEUED})))
    assert await anext(stream) is None
    [job] = await makers.submit(database, makers.new_job(tenant))
    async with asyncio.timeout(10.0):
        assert shown(await anext(stream)).id == str(job.id)
    claim = await makers.claim(database, job)
    assert claim is not None
    await makers.conclude(database, claim, Happening.HANDED_BACK)
    async with asyncio.timeout(10.0):
        back = shown(await anext(stream))  # it matches again
    assert (back.id, back.version) == (str(job.id), 3)
    await stream.aclose()


async def test_watches_that_open_together_are_read_together_and_shown_alike(
    database: Database, watchtower: Watchtower
) -> None:
    tenant = await makers.make_tenant(database)
    jobs = await makers.submit(database, *(makers.new_job(tenant) for _ in range(20)))
    owner = Owner(tenant_id=tenant)
    statements: list[object] = []
    listen(database.engine.sync_engine, "after_cursor_execute", lambda *seen: statements.append(seen))
    watches = [watchtower.watch(owner, job.id) for job in jobs for _ in range(3)]
    first = await asyncio.gather(*(anext(watch) for watch in watches))
    about_jobs = [seen for seen in statements if "jobs.input" not in str(seen) and "jobs.labels" in str(seen)]
    assert len(about_jobs) == 1
    for place in range(0, len(first), 3):
        assert first[place] is first[place + 1] is first[place + 2]
    for watch in watches:
        await watch.aclose()


async def test_somebody_elses_job_shows_nothing_although_its_owner_watches_it(
    database: Database, watchtower: Watchtower
) -> None:
    mine, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(mine, user_id="ada"))
    watch = watchtower.watch(Owner(tenant_id=mine), job.id)
    await anext(watch)
    for stranger in (Owner(tenant_id=theirs), Owner(tenant_id=mine, user_id="grace")):
        assert [version async for version in watchtower.watch(stranger, job.id)] == []
    await watch.aclose()


async def _holds(condition: Callable[[], bool]) -> bool:
    return condition()
