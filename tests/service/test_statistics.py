"""GetStats and GetSystemStatus, against what was really done."""

import asyncio
import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import (
    CancelJobRequest,
    GetStatsRequest,
    GetStatsResponse,
    GetSystemStatusRequest,
    GetSystemStatusResponse,
)
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System


async def status(me: Caller) -> GetSystemStatusResponse:
    answer: GetSystemStatusResponse = await me.jobs.GetSystemStatus(GetSystemStatusRequest())
    return answer


@pytest.mark.usefixtures("short_backoff")
async def test_the_statistics_are_of_what_was_done(system: System, me: Caller, engine: ScriptedEngine) -> None:
    scripts = {
        engines.APPROVE: SUCCEEDED,
        "fail 1": SUCCEEDED,
        "slow 0.2": SUCCEEDED,
        engines.REJECT: SUCCEEDED,
        engines.UNREADABLE: FAILED,
        engines.HUMAN: AWAITING,
    }
    began = time.monotonic()
    submitted = {script: await me.submit(script, f"cr-{number}") for number, script in enumerate(scripts)}
    cancelled = await me.submit(engines.GATE)
    await me.jobs.CancelJob(CancelJobRequest(job_id=cancelled.id))
    async with system.reviewer(engine):
        for script, state in scripts.items():
            await me.until(submitted[script], state)
    answer: GetStatsResponse = await me.jobs.GetStats(GetStatsRequest())
    [one] = answer.types
    assert one.type == pb.JOB_TYPE_CREATIVE_REVIEW
    assert (one.created, one.succeeded, one.failed, one.cancelled, one.awaiting_review) == (7, 4, 1, 1, 1)
    assert (one.approved, one.rejected) == (3, 1)
    assert one.success_rate == pytest.approx(0.8)
    assert 0.2 <= one.p95_duration.ToTimedelta().total_seconds() <= time.monotonic() - began
    assert 0 < one.mean_duration.ToTimedelta().total_seconds() <= one.p95_duration.ToTimedelta().total_seconds()
    assert {error.code: error.attempts for error in answer.errors} == {"provider_error": 1, "unreviewable_input": 1}
    assert (sum(hour.created for hour in answer.hours), sum(hour.finished for hour in answer.hours)) == (7, 6)
    assert answer.until.seconds - answer.since.seconds == 24 * 3600


async def test_a_window_counts_what_is_inside_it(system: System, me: Caller) -> None:
    job = await me.submit(engines.APPROVE)
    before = Timestamp(seconds=job.create_time.seconds - 60)
    earlier = await me.jobs.GetStats(GetStatsRequest(since=Timestamp(seconds=before.seconds - 60), until=before))
    assert (list(earlier.types), list(earlier.hours)) == ([], [])
    now = await me.jobs.GetStats(GetStatsRequest(since=before))
    assert [one.created for one in now.types] == [1]


async def test_the_status_tells_what_waits_and_who_works(system: System, me: Caller, engine: ScriptedEngine) -> None:
    quiet = await status(me)
    assert (quiet.database.up, quiet.broker.up, quiet.workers, quiet.slots, quiet.running) == (True, True, 0, 0, 0)
    assert quiet.database.HasField("latency")
    assert quiet.server_version
    assert not any(queue.HasField("estimated_wait") for queue in quiet.queues)  # nobody works
    async with system.reviewer(engine, slots=1):
        await me.until(await me.submit(engines.HUMAN), AWAITING)
        await me.until(await me.submit(engines.GATE, "running"), RUNNING)
        await me.submit(engines.APPROVE, priority=pb.PRIORITY_HIGH)
        await me.submit(engines.APPROVE)
        await me.submit(engines.APPROVE)
        soon = Timestamp(seconds=(await me.submit(engines.APPROVE)).create_time.seconds + 3600)
        await me.submit(engines.APPROVE, priority=pb.PRIORITY_LOW, run_at=soon)
        busy = await status(me)
        assert (busy.running, busy.awaiting_review, busy.slots, busy.workers) == (1, 1, 1, 1)
        waits = [(queue.priority, queue.due, queue.scheduled) for queue in busy.queues]
        assert waits == [(pb.PRIORITY_HIGH, 1, 0), (pb.PRIORITY_NORMAL, 3, 0), (pb.PRIORITY_LOW, 0, 1)]
        assert busy.queues[0].HasField("oldest_age")
        engine.open("running")
        await makers.until(lambda: _is_quiet(me))
    async with asyncio.timeout(10.0):
        assert (await status(me)).workers == 0  # a worker that stops says so


async def _is_quiet(me: Caller) -> bool:
    now = await status(me)
    return now.running + sum(queue.due for queue in now.queues) == 0


async def test_an_expected_duration_is_given_once_something_is_known(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.gateway() as port, system.reviewer(engine):
        began = time.monotonic()
        await me.until(await me.submit("slow 0.2"), SUCCEEDED)
        took = time.monotonic() - began
        other = await system.holder(me.key, port=port)  # which has not asked yet
        job = await other.submit(engines.APPROVE)
    assert 0.2 <= job.estimated_duration.ToTimedelta().total_seconds() <= took


async def test_the_estimated_wait_counts_what_others_have_waiting(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    other = await system.caller(tenant_id=await makers.make_tenant(system.database))
    async with system.gateway() as port, system.reviewer(engine, slots=1):
        await me.until(await me.submit("slow 0.2"), SUCCEEDED)
        await other.until(await other.submit(engines.GATE, "running"), RUNNING)
        for priority in (pb.PRIORITY_HIGH, pb.PRIORITY_NORMAL, pb.PRIORITY_NORMAL, pb.PRIORITY_LOW):
            await other.submit(engines.APPROVE, priority=priority)
        mine = await status(await system.holder(me.key, port=port))  # which has not asked for the mean yet
        engine.open("running")
    mean = 0.2
    waits = [queue.estimated_wait.ToTimedelta().total_seconds() for queue in mine.queues]
    assert [(queue.due, queue.scheduled) for queue in mine.queues] == [(0, 0)] * 3  # none of it is ours
    assert (mine.running, mine.slots) == (0, 1)
    # The running one is before all; the rest by priority: one HIGH, two NORMAL, one LOW.
    assert waits == [pytest.approx(ahead * waits[0] / 2, rel=0.01) for ahead in (2, 4, 5)]
    assert waits[0] >= 2 * mean
