"""Workers that stop, fall silent, are told to stop a job, or are sent what nobody can read."""

import asyncio
import uuid
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text, update

from imprimatur.broker import EVENTS, Message, Queue
from imprimatur.errors import Unavailable
from imprimatur.identity import new_id
from imprimatur.job import State
from imprimatur.policy import Mode, Policy
from imprimatur.storage import acceptance, conclusions, dispatch, schema, tenants
from imprimatur.storage.database import Database
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED as CANCELLED
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import CancelJobRequest
from imprimatur.v1.message_pb2 import ReviewRequested
from imprimatur.wire.messages import JobChange, JobsChanged
from reviewer.service import Reviewer
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System, on_sqlite, running_system
from tests.service.test_reviewing import kinds, outcomes, put_mode


async def cancel(me: Caller, job: pb.Job) -> pb.Job:
    answer = await me.jobs.CancelJob(CancelJobRequest(job_id=job.id, reason="changed my mind"))
    assert answer.job.state == CANCELLED
    return answer.job


def counted(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


# --- cancellation ----------------------------------------------------------------------------------------


@on_sqlite
async def test_cancelling_a_running_job_aborts_the_engine_at_once(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        job = await me.submit(engines.GATE, "cr-1")
        await me.until(job, RUNNING)
        await cancel(me, job)
        await makers.until(lambda: _aborted(engine, "cr-1"))
        await makers.until(lambda: _has_outcomes(me, job, ["CANCELLED"]))
        assert (await me.until(await me.submit(engines.APPROVE), SUCCEEDED)).attempts == 1
    done = await me.get(job)
    assert (done.state, done.attempts, await kinds(me, job)) == (CANCELLED, 0, ["submitted", "started", "cancelled"])


@on_sqlite
async def test_a_message_that_tells_of_a_cancellation_that_never_was_aborts_nothing(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        job = await me.submit(engines.GATE, "cr-1")
        await me.until(job, RUNNING)
        change = JobChange(job_id=uuid.UUID(job.id), tenant_id=system.tenant_id, version=9, state=State.CANCELLED)
        told = JobsChanged(changes=[change])
        await system.broker.publish(
            Message(exchange=EVENTS, routing_key="outcome.cancelled", body=told.encode(), message_id=str(new_id()))
        )
        await me.until(await me.submit(engines.APPROVE, "another"), SUCCEEDED)
        engine.open("cr-1")
        done = await me.until(job, SUCCEEDED)
    assert (outcomes(done), engine.aborted["cr-1"]) == (["SUCCEEDED"], 0)


async def test_cancelling_a_queued_or_waiting_job_ends_it(system: System, me: Caller, engine: ScriptedEngine) -> None:
    queued = await me.submit(engines.APPROVE, "queued")
    await cancel(me, queued)
    async with system.reviewer(engine):
        waiting = await me.until(await me.submit(engines.HUMAN, "waiting"), AWAITING)
    await cancel(me, waiting)
    assert engine.seen == ["waiting"]  # the message about the cancelled one started nothing
    again = await me.jobs.CancelJob(CancelJobRequest(job_id=queued.id))  # changes nothing
    assert again.job.version == (await me.get(queued)).version == 2


async def test_a_job_cancelled_while_its_end_is_written_stays_as_it_is(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine, slots=20):
        submitted = [await me.submit("slow 0.05", f"cr-{number}") for number in range(10)]
        await makers.until(lambda: _has_run(engine, 5))
        answers = await asyncio.gather(*(cancel(me, job) for job in submitted), return_exceptions=True)
        for job, answer in zip(submitted, answers, strict=True):
            ended = await me.until(job, SUCCEEDED if isinstance(answer, BaseException) else CANCELLED)
            assert (await kinds(me, job)).count("succeeded") == (ended.state == SUCCEEDED)


@pytest.mark.parametrize("what", ["let it go on", "cancel it"])
async def test_a_review_run_in_full_after_a_switch_can_still_be_cancelled(
    postgresql_database: Database, engine: ScriptedEngine, what: str
) -> None:
    async with running_system(postgresql_database, lease_seconds=0.9) as system:
        me = await system.caller()
        await put_mode(system, Mode.AUTO_APPROVE)
        async with system.reviewer(engine):
            async with system.database.begin() as tx:
                await tenants.put_policy(tx, system.tenant_id, Policy(mode=Mode.REQUIRE_HUMAN))
                job = await me.submit(engines.GATE, "cr-1")
                await me.until(job, RUNNING)
                await asyncio.sleep(0.3)  # it would be approved without an engine, but for this transaction
            await makers.until(lambda: _has_run(engine, 1))
            if what == "cancel it":
                await cancel(me, job)
                await makers.until(lambda: _aborted(engine, "cr-1"))
            else:
                engine.open("cr-1")
                done = await me.until(job, AWAITING)
                assert done.creative_review.ai_review.HasField("evidence")


# --- stopping --------------------------------------------------------------------------------------------


async def test_a_stopping_worker_hands_its_jobs_back_and_no_attempt_is_spent(system: System, me: Caller) -> None:
    first, second = ScriptedEngine("first"), ScriptedEngine("second")
    async with system.reviewer(first, drain_seconds=0.05):
        job = await me.submit(engines.GATE, "cr-1", max_attempts=1)
        await me.until(job, RUNNING)
    given = await me.get(job)
    assert (given.state, given.attempts, outcomes(given)) == (QUEUED, 0, ["HANDED_BACK"])
    assert first.aborted["cr-1"] == 1
    second.open("cr-1")
    async with system.reviewer(second):
        done = await me.until(job, SUCCEEDED)
    assert (done.attempts, outcomes(done)) == (1, ["HANDED_BACK", "SUCCEEDED"])
    assert await kinds(me, job) == ["submitted", "started", "handed_back", "started", "succeeded"]


@on_sqlite
async def test_a_stopping_worker_still_writes_the_result_that_it_could_not_write_before(
    system: System, me: Caller, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, tries = conclusions.conclude, 0

    async def away_at_first(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise Unavailable("the database is out of reach")
        return await written(*args, **options)

    monkeypatch.setattr(conclusions, "conclude", away_at_first)
    async with system.reviewer(engine, drain_seconds=0.0):
        job = await me.submit(engines.APPROVE, "cr-1")
        await makers.until(lambda: _tried(lambda: tries))
    done = await me.get(job)
    assert (done.state, outcomes(done), engine.seen) == (SUCCEEDED, ["SUCCEEDED"], ["cr-1"])
    assert done.attempt_history[0].cost_micros == 7


async def _tried(tries: Callable[[], int]) -> bool:
    return tries() > 0


async def test_a_stopping_worker_finishes_what_it_can(system: System, me: Caller, engine: ScriptedEngine) -> None:
    async with system.reviewer(engine, slots=1, drain_seconds=20.0) as working:
        begun, waiting = await me.submit(engines.GATE, "begun"), await me.submit(engines.APPROVE, "waiting")
        await me.until(begun, RUNNING)
        opening = asyncio.create_task(_open_once_it_stops(engine, "begun", working))
    await opening
    assert outcomes(await me.get(begun)) == ["SUCCEEDED"]
    assert ((await me.get(waiting)).state, engine.seen) == (QUEUED, ["begun"])
    async with system.reviewer(ScriptedEngine()):  # and its message is not lost
        await me.until(waiting, SUCCEEDED)


async def _open_once_it_stops(engine: ScriptedEngine, creative_id: str, working: Reviewer) -> None:
    await makers.until(lambda: _takes_nothing_more(working))
    engine.open(creative_id)


async def _takes_nothing_more(working: Reviewer) -> bool:
    return await working.consuming() is not None


# --- falling silent --------------------------------------------------------------------------------------


async def test_a_lost_workers_job_runs_again_and_its_late_result_is_only_booked(database: Database) -> None:
    first, second = ScriptedEngine("first"), ScriptedEngine("second")
    leases = Database(str(database.engine.url.render_as_string(hide_password=False)), pool_size=1)
    async with running_system(database, lease_seconds=0.6) as system:
        me = await system.caller()
        async with system.reviewer(first, slots=1, lease_database=leases):
            job = await me.submit(engines.GATE, "cr-1")
            await me.until(job, RUNNING)
            fenced = counted("imprimatur_fenced_writes_total")
            async with leases.engine.connect(), system.reviewer(second):  # its one connection: it falls silent
                second.open("cr-1")
                done = await me.until(job, SUCCEEDED)
                first.open("cr-1")
                await makers.until(lambda: _is_booked(me, job))
        await leases.close()
        assert (outcomes(done), done.attempts) == (["LOST", "SUCCEEDED"], 1)
        assert done.attempt_history[0].error.code == "worker_lost"
        assert done.creative_review.ai_review.evidence.engine.name == "second"
        late = await me.get(job)
        assert (late.version, outcomes(late)) == (done.version, outcomes(done))  # the late result changed nothing
        assert [one.cost_micros for one in late.attempt_history] == [7, 7]
        assert counted("imprimatur_fenced_writes_total") == fenced + 1
        assert "lease_lost" in await kinds(me, job)


# --- messages --------------------------------------------------------------------------------------------


def message(body: bytes) -> Message:
    return Message(routing_key=Queue.REVIEW_NORMAL, body=body, message_id=str(new_id()))


def requested(job_id: bytes, release_no: int = 1, format_no: int = 1) -> bytes:
    return ReviewRequested(format=format_no, job_id=job_id, release_no=release_no).SerializeToString()


async def test_messages_that_nobody_can_read_are_set_aside_and_the_worker_lives(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    before = counted("imprimatur_broker_messages_set_aside_total", queue="review.normal")
    bodies = [b"\xff\xff", b"", requested(b"short"), requested(new_id().bytes, format_no=2), b"{}" * 1000]
    for body in bodies * 3:
        await system.broker.publish(message(body))
    async with system.reviewer(engine, slots=1):
        await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        assert await system.broker.depth(Queue.PARKED) == 15
    assert counted("imprimatur_broker_messages_set_aside_total", queue="review.normal") == before + 15


async def test_duplicate_stale_and_foreign_messages_start_nothing(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.GATE, "cr-1")
    job_id = uuid.UUID(job.id).bytes
    bodies = [requested(job_id, number) for number in (1, 1, 0, 2, -1, 2**31 - 1)] + [requested(new_id().bytes)]
    before = counted("imprimatur_claims_total", result="stale")
    async with system.reviewer(engine):
        for body in bodies:
            await system.broker.publish(message(body))
        await makers.until(lambda: _counted_to("imprimatur_claims_total", before + len(bodies), result="stale"))
        engine.open("cr-1")
        done = await me.until(job, SUCCEEDED)
        for body in bodies:  # nor does anything happen to a finished job
            await system.broker.publish(message(body))
        await makers.until(lambda: _counted_to("imprimatur_claims_total", before + 2 * len(bodies), result="stale"))
    assert (engine.seen, len(done.attempt_history)) == (["cr-1"], 1)
    assert (await me.get(job)).version == done.version


async def test_a_job_of_a_later_version_does_not_take_a_place_in_hand_for_ever(
    system: System, me: Caller, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "FIRST_REISSUE_AFTER_SECONDS", 0.2)
    monkeypatch.setattr(acceptance, "FIRST_REISSUE_AFTER_SECONDS", 0.2)
    strange = [await me.submit(engines.APPROVE, f"strange-{number}") for number in range(4)]
    async with system.database.begin() as tx:
        await tx.connection.execute(text("UPDATE jobs SET type = 'from_the_future'"))
    async with system.reviewer(engine, slots=1):  # which has two messages in hand at most
        await me.until(await me.submit(engines.APPROVE, "known"), SUCCEEDED)
    assert engine.seen == ["known"]
    assert await system.broker.depth(Queue.PARKED) >= len(strange)
    async with system.database.read() as reader:
        told = text("SELECT DISTINCT state, claim_no, losses FROM jobs WHERE type = 'from_the_future'")
        assert (await reader.connection.execute(told)).all() == [("queued", 0, 0)]  # for a reviewer that knows it


async def test_of_many_jobs_a_few_share_a_message_and_one_that_cannot_be_claimed_hurts_no_other(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    number, consumed = 40, partial(counted, "imprimatur_broker_deliveries_total", queue=Queue.REVIEW_NORMAL)
    submitted = [await me.submit(engines.APPROVE, f"cr-{place}") for place in range(number)]
    strange = submitted.pop(number // 2)
    async with system.database.begin() as tx:
        changing = update(schema.jobs).where(schema.jobs.c.id == uuid.UUID(strange.id))
        await tx.connection.execute(changing.values(type="from_the_future"))
    before = consumed(redelivered="false")
    async with system.reviewer(engine, slots=64):
        for job in submitted:
            assert outcomes(await me.until(job, SUCCEEDED)) == ["SUCCEEDED"]
        await makers.until(lambda: _is_set_aside(system))
    assert sorted(engine.seen) == sorted(job.subject_id for job in submitted)
    assert consumed(redelivered="false") - before < number / 2


async def _is_set_aside(system: System) -> bool:
    return await system.broker.depth(Queue.PARKED) == 1


async def test_an_input_that_is_broken_in_the_database_fails(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.APPROVE)
    async with system.database.begin() as tx:
        await tx.connection.execute(text("UPDATE jobs SET input = :noise"), {"noise": b"\xff\xff"})
    async with system.reviewer(engine):
        done = await me.until(job, FAILED)
    assert (done.error.code, done.attempts, engine.seen) == ("unreviewable_input", 1, [])


async def test_no_job_runs_twice_however_many_workers_and_messages_there_are(system: System, me: Caller) -> None:
    first, second = ScriptedEngine("first"), ScriptedEngine("second")
    async with system.reviewer(first, slots=3), system.reviewer(second, slots=3):
        submitted = [await me.submit(engines.GATE, f"cr-{number}") for number in range(20)]
        for job in submitted:
            await system.broker.publish(message(requested(uuid.UUID(job.id).bytes)))
        await makers.until(lambda: _are_full(first, second))
        for number, engine in product(range(20), (first, second)):
            engine.open(f"cr-{number}")
        for job in submitted:
            assert outcomes(await me.until(job, SUCCEEDED)) == ["SUCCEEDED"]
    assert sorted(first.seen + second.seen) == sorted(f"cr-{number}" for number in range(20))


async def _are_full(*engines: ScriptedEngine) -> bool:
    return all(engine.running == 3 for engine in engines)


async def _has_run(engine: ScriptedEngine, count: int) -> bool:
    return len(engine.seen) >= count


async def _aborted(engine: ScriptedEngine, creative_id: str) -> bool:
    return engine.aborted[creative_id] == 1


async def _counted_to(metric: str, value: float, **labels: str) -> bool:
    return counted(metric, **labels) >= value


async def _is_booked(me: Caller, job: pb.Job) -> bool:
    return (await me.get(job)).attempt_history[0].cost_micros > 0


async def _has_outcomes(me: Caller, job: pb.Job, wanted: list[str]) -> bool:
    return outcomes(await me.get(job)) == wanted
