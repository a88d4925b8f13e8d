"""Claims that are taken away from a worker in the midst of its work."""

import uuid

from prometheus_client import REGISTRY
from sqlalchemy import select

from imprimatur.job import Happening
from imprimatur.storage.database import Database
from imprimatur.storage.schema import attempts, workers
from imprimatur.storage.transitions import is_job, move
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import running_system
from tests.service.test_reviewing import outcomes


async def test_an_attempt_is_aborted_once_however_long_its_booking_takes(
    postgresql_database: Database, engine: ScriptedEngine
) -> None:
    database = postgresql_database
    async with running_system(database, lease_seconds=0.6) as system, system.reviewer(engine, slots=1):
        me = await system.caller()
        job = await me.submit(engines.GATE, "cr-1")
        await me.until(job, JOB_STATE_RUNNING)
        cancelled = _cancelled_attempts()
        async with database.begin() as slow:
            its_attempt = attempts.c.job_id == uuid.UUID(job.id)
            await slow.connection.execute(select(attempts).where(its_attempt).with_for_update())
            async with database.begin() as tx:  # as a cancellation, but for the attempt
                await move(tx, Happening.CANCELLED, is_job(uuid.UUID(job.id)))
            await makers.until(lambda: _is_aborted(engine))
            for _ in range(4):
                await _next_renewal(database)
            assert outcomes(await me.get(job)) == ["UNSPECIFIED"]
        await makers.until(lambda: _has_ended(database, job.id))
        done = await me.get(job)
        assert (outcomes(done), engine.aborted["cr-1"]) == (["CANCELLED"], 1)
        await me.until(await me.submit(engines.APPROVE, "next"), JOB_STATE_SUCCEEDED)  # its slot is free
    assert _cancelled_attempts() == cancelled + 1


def _cancelled_attempts() -> float:
    labels = {"type": "creative_review", "outcome": "cancelled"}
    return REGISTRY.get_sample_value("imprimatur_attempt_duration_seconds_count", labels) or 0.0


async def _next_renewal(database: Database) -> None:
    seen_at = await _seen_at(database)

    async def renewed() -> bool:
        return await _seen_at(database) != seen_at

    await makers.until(renewed)


async def _seen_at(database: Database) -> object:
    async with database.read() as reader:
        return (await reader.connection.execute(select(workers.c.seen_at))).scalar_one_or_none()


async def _is_aborted(engine: ScriptedEngine) -> bool:
    return engine.aborted["cr-1"] == 1


async def _has_ended(database: Database, job_id: str) -> bool:
    async with database.read() as reader:
        ended = select(attempts.c.finished_at).where(attempts.c.job_id == uuid.UUID(job_id))
        return (await reader.connection.execute(ended)).scalar_one() is not None
