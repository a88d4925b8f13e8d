"""Faults of our own: what reaches a client is a code and an incident id, never how we are built."""

from contextlib import suppress
from typing import Any

import grpc
from grpc_status import rpc_status
from sqlalchemy import text
from structlog.testing import capture_logs

from imprimatur.storage.database import Database
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    GetJobRequest,
    GetStatsRequest,
    GetSystemStatusRequest,
    ListJobsRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from imprimatur.v1.review_service_pb2 import ListPendingReviewsRequest
from tests.service import engines
from tests.service.statuses import Refusal, refusal, refusal_of
from tests.service.systems import Caller, System, submission

#: Pieces of SQL, of exceptions, and of addresses.
TELLTALES = ("select", "update ", "sqlalchemy", "asyncpg", "sqlite", "postgres", "error:", "traceback", "jobs", "127.0")


async def test_a_fault_of_the_database_shows_an_incident_id_and_nothing_else(system: System, me: Caller) -> None:
    job = await me.submit(engines.APPROVE)
    async with system.database.begin() as tx:
        await tx.connection.execute(text("ALTER TABLE jobs RENAME TO hidden"))
    calls: list[Any] = [
        me.jobs.SubmitJob(submission()),
        me.jobs.GetJob(GetJobRequest(job_id=job.id)),
        me.jobs.ListJobs(ListJobsRequest()),
        me.jobs.WatchJob(WatchJobRequest(job_id=job.id)),
        me.jobs.WatchJobs(WatchJobsRequest()),
        me.jobs.GetStats(GetStatsRequest()),
        me.reviews.ListPendingReviews(ListPendingReviewsRequest()),
    ]
    with capture_logs() as logged:
        for seen in [await refusal_in_a_batch(me), *[await refusal(call) for call in calls]]:
            assert seen.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
            assert not [word for word in TELLTALES if word in f"{seen.message} {seen.metadata}".lower()], seen
            if seen.code is grpc.StatusCode.INTERNAL:  # PostgreSQL; SQLite cannot tell this from a passing fault
                assert seen.message == f"internal error; tell the operator the incident id {seen.metadata['incident']}"
                assert seen.metadata["incident"] in [entry.get("incident") for entry in logged]
            else:
                assert seen.retry_after_seconds
    async with system.database.begin() as tx:
        await tx.connection.execute(text("ALTER TABLE hidden RENAME TO jobs"))
    assert (await me.get(job)).state == JOB_STATE_QUEUED


async def refusal_in_a_batch(me: Caller) -> Refusal:
    """Of its one item, or of all."""
    try:
        [result] = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=[submission()]))).results
    except grpc.aio.AioRpcError as refused:
        status = rpc_status.from_call(refused)  # type: ignore[arg-type]  # it has what a call has
        assert status is not None
        return refusal_of(status)
    return refusal_of(result.error)


async def test_a_database_that_does_not_answer_makes_calls_unavailable_in_time(
    postgresql_database: Database, system_on_postgresql: System
) -> None:
    me = await system_on_postgresql.caller()
    job = await me.submit(engines.APPROVE)
    async with postgresql_database.begin() as tx:  # as when a migration or a failover holds everything
        await tx.connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        seen = await answered_in_time(me, GetJobRequest(job_id=job.id))
        assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "TIMED_OUT")
        assert seen.retry_after_seconds
        assert not [word for word in TELLTALES if word in f"{seen.message} {seen.metadata}".lower()]
    assert (await me.get(job)).id == job.id


async def answered_in_time(me: Caller, asked: GetJobRequest) -> Refusal:
    """Ours is the answer, not the client's own DEADLINE_EXCEEDED. A busy machine may need a later try."""
    for seconds in (1.0, 4.0, 12.0):
        with suppress(AssertionError):
            return await refusal(me.jobs.GetJob(asked, timeout=seconds))
    raise AssertionError("the client's deadline came first")


async def test_the_status_of_the_system_tells_of_a_broker_that_is_away(system: System, me: Caller) -> None:
    status = await me.jobs.GetSystemStatus(GetSystemStatusRequest())
    assert (status.broker.up, status.database.up) == (True, True)
    await system.broker.close()
    status = await me.jobs.GetSystemStatus(GetSystemStatusRequest())
    assert (status.broker.up, status.database.up) == (False, True)
