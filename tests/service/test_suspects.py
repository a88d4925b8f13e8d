"""Jobs that may be what kills workers: examined apart from all others, with real processes and real kills."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select, update

from deploy.local.rabbitmq import PrivateRabbitMQ
from imprimatur.broker.rabbitmq import RabbitMQBroker
from imprimatur.job import LOSSES_OF_A_SUSPECT, WORKERS_LOST
from imprimatur.policy import Mode
from imprimatur.storage.database import Database
from imprimatur.storage.schema import jobs
from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from reviewer.engines.apart import MOST_AT_ONCE, EngineApart
from tests import deadly, makers
from tests.conftest import MakePostgresURL
from tests.contract.polling import eventually
from tests.deadly import DeadlyEngine, Looks, alive
from tests.service import doomed_reviewer, engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System, on_sqlite, running_system
from tests.service.test_reviewing import outcomes, put_mode
from tests.service.test_workers import cancel, counted

INNOCENTS = 15


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    return Looks(tmp_path)


@pytest.fixture
def apart(tmp_path: Path) -> EngineApart:
    """Opens a deadly engine in each of its processes; closed by the reviewer that it is given to."""
    return EngineApart(partial(DeadlyEngine, tmp_path), identity=deadly.IDENTITY)


async def suspected(system: System, *accused: pb.Job) -> None:
    """Have the jobs lost as many workers as make them suspects."""
    ids = [uuid.UUID(job.id) for job in accused]
    async with system.database.begin() as tx:
        await tx.connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(losses=LOSSES_OF_A_SUSPECT))


async def suspect(system: System, me: Caller, headline: str, creative_id: str = "cr-1", **fields: object) -> pb.Job:
    """Submit a job that is a suspect, while no reviewer runs."""
    job = await me.submit(headline, creative_id, **fields)
    await suspected(system, job)
    return job


# --- proof -----------------------------------------------------------------------------------------------


async def test_a_suspect_that_kills_goes_to_a_person_at_once_and_strikes_nobody_beside_it(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    poison = await suspect(system, me, deadly.KILL, "poison", max_attempts=5)
    innocents = [await me.submit(engines.GATE, f"cr-{number}") for number in range(INNOCENTS)]
    run_apart = counted("imprimatur_attempts_apart_total")
    proofs = counted("imprimatur_attempt_errors_total", type="creative_review", error_code=WORKERS_LOST)
    async with system.reviewer(engine, apart=apart, slots=INNOCENTS + 1):
        done = await me.until(poison, AWAITING)
        assert engine.running == INNOCENTS
        for job in innocents:
            engine.open(job.subject_id)
            ended = await me.until(job, SUCCEEDED)
            assert (ended.attempts, outcomes(ended)) == (1, ["SUCCEEDED"])
    assert (done.attempts, outcomes(done), len(looks.at("poison"))) == (1, ["FAILED"], 1)
    [attempt] = done.attempt_history
    for error in (done.error, attempt.error):
        assert (error.code, error.stage, error.retryable) == (WORKERS_LOST, "engine", False)
        assert "died" in error.message
    review = done.creative_review
    assert review.decision == creative.DECISION_PENDING
    assert review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR
    assert "poison" not in engine.seen
    assert counted("imprimatur_attempts_apart_total") == run_apart + 1
    assert counted("imprimatur_attempt_errors_total", type="creative_review", error_code=WORKERS_LOST) == proofs + 1


# --- no proof --------------------------------------------------------------------------------------------


@on_sqlite
async def test_innocent_suspects_succeed_each_in_a_process_of_its_own(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    names = [f"cr-{number}" for number in range(5)]
    innocents = [await suspect(system, me, deadly.APPROVE, name) for name in names]
    poison = await suspect(system, me, deadly.KILL, "poison")
    async with system.reviewer(engine, apart=apart, slots=6):
        for job in innocents:
            done = await me.until(job, SUCCEEDED)
            assert (done.attempts, done.creative_review.decision) == (1, creative.DECISION_APPROVED)
            assert done.creative_review.ai_review.evidence.engine.name == deadly.IDENTITY.name
        await me.until(poison, AWAITING)
    pids = [pid for name in [*names, "poison"] for pid in looks.at(name)]
    assert len({*pids, os.getpid()}) == len(names) + 2
    assert not any(map(alive, pids))
    assert engine.seen == []


@on_sqlite
async def test_the_time_out_of_a_suspect_does_not_run_while_it_waits_for_its_process(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    holders = [await suspect(system, me, deadly.WAIT, f"holder-{number}") for number in range(MOST_AT_ONCE)]
    timeout = Duration(seconds=5)
    waiting = [await suspect(system, me, deadly.APPROVE, f"cr-{number}", timeout=timeout) for number in range(3)]
    async with system.reviewer(engine, apart=apart, slots=len(holders) + len(waiting)):
        for job in waiting:
            await me.until(job, RUNNING)
        await asyncio.sleep(timeout.seconds)
        looks.open_gate()
        for job in (*holders, *waiting):
            done = await me.until(job, SUCCEEDED)
            assert (outcomes(done), done.attempts) == (["SUCCEEDED"], 1)


@on_sqlite
async def test_a_suspect_whose_engine_fails_is_tried_again_apart(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks, short_backoff: None
) -> None:
    wanted = {
        deadly.FAIL: (["provider_error", ""], 2),
        deadly.BREAK: (["engine_failed", ""], 2),
        deadly.LIMITED: (["rate_limited", ""], 1),
    }
    accused = {headline: await suspect(system, me, headline, headline) for headline in wanted}
    async with system.reviewer(engine, apart=apart):
        for headline, job in accused.items():
            done = await me.until(job, SUCCEEDED)
            assert ([one.error.code for one in done.attempt_history], done.attempts) == wanted[headline]
            assert len(looks.at(headline)) == 2
    assert engine.seen == []


@on_sqlite
async def test_a_suspect_that_cannot_be_reviewed_fails_like_any_other(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart
) -> None:
    job = await suspect(system, me, deadly.UNREADABLE)
    async with system.reviewer(engine, apart=apart):
        assert (await me.until(job, FAILED)).error.code == "unreviewable_input"


@on_sqlite
async def test_a_suspect_that_no_engine_has_to_look_at_is_approved_without_a_process(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    await put_mode(system, Mode.AUTO_APPROVE)
    job = await suspect(system, me, deadly.KILL)
    run_apart = counted("imprimatur_attempts_apart_total")
    async with system.reviewer(engine, apart=apart):
        await me.until(job, SUCCEEDED)
    assert (counted("imprimatur_attempts_apart_total"), looks.at("cr-1")) == (run_apart, [])


@pytest.mark.parametrize("losses", range(LOSSES_OF_A_SUSPECT))
@on_sqlite
async def test_whoever_lost_fewer_workers_is_examined_like_any_other(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks, losses: int
) -> None:
    job = await me.submit(engines.APPROVE, "cr-1")
    async with system.database.begin() as tx:
        await tx.connection.execute(update(jobs).values(losses=losses))
    async with system.reviewer(engine, apart=apart):
        await me.until(job, SUCCEEDED)
    assert (engine.seen, looks.at("cr-1")) == (["cr-1"], [])


# --- ends that come from outside -------------------------------------------------------------------------


async def begun(looks: Looks, creative_id: str = "cr-1") -> int:
    """The process that looks at it, once it does."""
    await eventually(lambda: looks.at(creative_id), "begun")
    [pid] = looks.at(creative_id)
    assert alive(pid)
    return pid


async def test_cancelling_a_suspect_kills_its_process(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    job = await suspect(system, me, deadly.WAIT)
    async with system.reviewer(engine, apart=apart, slots=1):
        pid = await begun(looks)
        await cancel(me, job)
        await eventually(lambda: not alive(pid), "gone")
        await me.until(await me.submit(engines.APPROVE, "next"), SUCCEEDED)  # its slot is free
    assert outcomes(await me.get(job)) == ["CANCELLED"]


@on_sqlite
async def test_a_time_out_kills_a_suspects_process(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    job = await suspect(system, me, deadly.WAIT, timeout=Duration(seconds=5), max_attempts=1)
    async with system.reviewer(engine, apart=apart):
        pid = await begun(looks)
        done = await me.until(job, AWAITING)
        assert not alive(pid)
    assert (outcomes(done), done.error.code) == (["TIMED_OUT"], "timed_out")


@on_sqlite
async def test_a_stopping_worker_hands_a_suspect_back_and_kills_its_process(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    job = await suspect(system, me, deadly.WAIT)
    async with system.reviewer(engine, apart=apart):
        pid = await begun(looks)
    assert not alive(pid)
    given = await me.get(job)
    assert (given.state, given.attempts, outcomes(given)) == (QUEUED, 0, ["HANDED_BACK"])


@on_sqlite
async def test_suspects_that_wait_for_a_process_are_cancelled_and_handed_back_like_any_other(
    system: System, me: Caller, engine: ScriptedEngine, apart: EngineApart, looks: Looks
) -> None:
    names = [f"cr-{number}" for number in range(MOST_AT_ONCE + 2)]
    accused = {name: await suspect(system, me, deadly.WAIT, name) for name in names}
    async with system.reviewer(engine, apart=apart, slots=len(names)):
        for job in accused.values():
            await me.until(job, RUNNING)
        await eventually(lambda: sum(bool(looks.at(name)) for name in names) == MOST_AT_ONCE, "begun")
        cancelled, waiting = (name for name in names if not looks.at(name))
        await cancel(me, accused[cancelled])
        await makers.until(lambda: _ended(me, accused[cancelled]))
    assert not any(alive(pid) for name in names for pid in looks.at(name))
    assert (looks.at(cancelled), looks.at(waiting)) == ([], [])
    assert outcomes(await me.get(accused.pop(cancelled))) == ["CANCELLED"]
    for job in accused.values():
        given = await me.get(job)
        assert (given.state, given.attempts, outcomes(given)) == (QUEUED, 0, ["HANDED_BACK"])


async def _ended(me: Caller, job: pb.Job) -> bool:
    return outcomes(await me.get(job)) == ["CANCELLED"]


# --- whole workers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    with PrivateRabbitMQ.start(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
async def system_of_processes(
    postgresql_url: MakePostgresURL, rabbitmq: PrivateRabbitMQ
) -> AsyncIterator[tuple[System, tuple[str, str]]]:
    """A gateway, and the URLs of database and broker for reviewers as processes."""
    urls = (postgresql_url(), rabbitmq.url)
    database = Database(urls[0])
    broker = RabbitMQBroker(rabbitmq.url, name="test")
    try:
        async with running_system(database, broker, lease_seconds=doomed_reviewer.LEASE_SECONDS) as system:
            yield system, urls
    finally:
        await database.close()


async def doomed(*words: str) -> asyncio.subprocess.Process:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    module = ("-m", "tests.service.doomed_reviewer")
    return await asyncio.create_subprocess_exec(sys.executable, *module, *words, env=environment)


async def test_a_job_that_killed_two_workers_kills_no_third_and_all_lost_with_it_succeed(
    system_of_processes: tuple[System, tuple[str, str]], tmp_path: Path, looks: Looks
) -> None:
    system, urls = system_of_processes
    me = await system.caller()
    together = f"{deadly.KILL_TOGETHER} {INNOCENTS + 1}"
    poison = await me.submit(together, "poison")
    innocents = [await me.submit(deadly.WAIT, f"cr-{number}") for number in range(INNOCENTS)]
    for losses in range(1, LOSSES_OF_A_SUSPECT + 1):
        worker = await doomed(*urls, str(tmp_path))
        assert await worker.wait() == -signal.SIGKILL
        assert looks.by(worker.pid) == INNOCENTS + 1
        await makers.until(lambda losses=losses: _all_lost(system, losses))  # type: ignore[misc]  # a bound copy
    looks.open_gate()
    worker = await doomed(*urls, str(tmp_path))
    try:
        done = await me.until(poison, AWAITING)
        for job in innocents:
            ended = await me.until(job, SUCCEEDED)
            assert (ended.attempts, *_ends(ended)) == (1, ["LOST", "LOST"], "SUCCEEDED")
        assert looks.by(worker.pid) == 0
    finally:
        worker.terminate()
        assert await worker.wait() == 0
    assert (*_ends(done), done.error.code) == (["LOST", "LOST"], "FAILED", WORKERS_LOST)
    assert LOSSES_OF_A_SUSPECT < len(looks.at("poison")) <= len(outcomes(done))


def _ends(job: pb.Job) -> tuple[list[str], str]:
    """How its first two attempts ended, and the last; a machine under load may lose a lease in between."""
    return outcomes(job)[:LOSSES_OF_A_SUSPECT], outcomes(job)[-1]


async def _all_lost(system: System, losses: int) -> bool:
    """Whether all jobs are queued again after so many losses."""
    async with system.database.read() as reader:
        rows = (await reader.connection.execute(select(jobs.c.state, jobs.c.losses))).all()
    return {(row.state, row.losses) for row in rows} == {("queued", losses)}
