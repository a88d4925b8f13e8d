"""Whose turn it is: priorities, scheduled starts, deadlines, and jobs whose message was lost."""

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select, text, update

from imprimatur.broker.memory import MemoryBroker
from imprimatur.policy import Mode
from imprimatur.storage import clock
from imprimatur.storage.database import Database
from imprimatur.storage.schema import jobs, tenants
from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System, on_postgresql, on_sqlite, running_system, submission
from tests.service.test_reviewing import kinds, put_mode


async def _has_run(engine: ScriptedEngine, count: int) -> bool:
    return len(engine.seen) >= count


async def test_high_comes_before_normal_before_low(
    system: System, me: Caller, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)  # a chance by which the greatest share comes first
    for name, priority in (("first", "NORMAL"), ("LOW", "LOW"), ("NORMAL", "NORMAL"), ("HIGH", "HIGH")):
        await me.submit(engines.APPROVE, name, priority=pb.Priority.Value(f"PRIORITY_{priority}"))
    async with system.reviewer(engine, slots=1):
        await makers.until(lambda: _has_run(engine, 4))
    assert engine.seen == ["first", "HIGH", "NORMAL", "LOW"]


@on_postgresql
async def test_a_message_that_finds_no_slot_is_given_back_for_an_idle_worker(system: System, me: Caller) -> None:
    busy, idle = ScriptedEngine("busy"), ScriptedEngine("idle")
    async with system.reviewer(busy, slots=1):
        await me.until(await me.submit(engines.GATE, "first"), RUNNING)
        waiting = [await me.submit(engines.APPROVE, f"waiting-{number}") for number in range(2)]  # in hand by now
        async with system.reviewer(idle, slots=1):
            for job in waiting:
                await me.until(job, SUCCEEDED)
    assert sorted(idle.seen) == ["waiting-0", "waiting-1"]


@on_postgresql
async def test_a_deadline_that_passes_in_the_queue_leads_to_a_person(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.APPROVE, deadline=Duration(seconds=1))
    done = await me.until(job, AWAITING)
    assert (done.error.code, done.attempts) == ("deadline_passed", 0)
    assert done.creative_review.ai_review.reason
    async with system.reviewer(engine):
        await me.until(await me.submit(engines.APPROVE, "later"), SUCCEEDED)
    assert engine.seen == ["later"]


@pytest.mark.parametrize(
    ("mode", "trigger"),
    [
        (Mode.REQUIRE_HUMAN, creative.POLICY_TRIGGER_HUMAN_REQUIRED),
        (Mode.AUTO_APPROVE, creative.POLICY_TRIGGER_ENGINE_ERROR),  # what no review saw is not approved
        (Mode.AI_POWERED, creative.POLICY_TRIGGER_ENGINE_ERROR),
    ],
)
async def test_what_its_deadline_overtakes_is_shown_as_the_live_policy_has_it(
    system: System, me: Caller, mode: Mode, trigger: creative.PolicyTrigger.ValueType
) -> None:
    job = await me.submit(engines.APPROVE)
    await put_mode(system, mode)
    async with system.database.begin() as tx:  # time passes
        await tx.connection.execute(update(jobs).values(deadline_at=clock.after(-1.0)))
    done = await me.until(job, AWAITING)
    review = done.creative_review
    assert (done.error.code, done.attempts, done.result_count) == ("deadline_passed", 0, 0)
    assert review.decision == review.ai_review.decision == creative.DECISION_PENDING
    assert (review.ai_review.policy_triggered, review.ai_review.policy_version) == (trigger, 2)
    assert review.ai_review.HasField("reviewed_at")
    assert not review.ai_review.HasField("evidence")
    assert await kinds(me, job) == ["submitted", "awaiting_review"]


@on_postgresql
async def test_a_tenant_whose_policy_cannot_be_read_holds_up_nobody_else(system: System, me: Caller) -> None:
    overdue = await me.submit(engines.APPROVE, "overdue")
    other_tenant = await makers.make_tenant(system.database)
    other = await system.caller(tenant_id=other_tenant)
    async with system.database.begin() as tx:  # time passes
        await tx.connection.execute(update(jobs).values(deadline_at=clock.after(-1.0)))
    async with system.database.begin() as holder:
        locked = select(tenants.c.id).where(tenants.c.id == system.tenant_id).with_for_update()
        await holder.connection.execute(locked)
        async with system.reviewer(ScriptedEngine()):
            later = type(overdue.create_time)(seconds=overdue.create_time.seconds + 2)
            job = await other.submit(
                engines.APPROVE, "other", run_at=later
            )  # only a pass of the dispatcher releases it
            await other.until(job, SUCCEEDED)
    await me.until(overdue, AWAITING)


@on_sqlite
async def test_a_job_does_not_start_before_its_time(system: System, me: Caller, engine: ScriptedEngine) -> None:
    async with system.reviewer(engine):
        now = (await me.submit(engines.APPROVE)).create_time
        later = type(now)(seconds=now.seconds + 1, nanos=now.nanos)
        job = await me.submit(engines.APPROVE, "later", run_at=later)
        done = await me.until(job, SUCCEEDED)
    assert done.start_time.ToDatetime() >= done.run_at.ToDatetime() == later.ToDatetime()


async def test_a_wiped_broker_loses_no_job_even_when_all_room_was_taken(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    count = 40  # more than one worker is expected to have waiting
    task = submission().creative_review.SerializeToString()
    await makers.submit(database, *(makers.new_job(tenant, content=task) for _ in range(count)))
    async with database.begin() as tx:  # their messages are gone, and time has passed
        await tx.connection.execute(text("DELETE FROM outbox"))
        await tx.connection.execute(update(jobs).values(released_at=clock.after(-60.0)))
    engine = ScriptedEngine()
    async with running_system(database, MemoryBroker()) as system, system.reviewer(engine, slots=1):
        await makers.until(lambda: _has_run(engine, count), seconds=60.0)
