"""Accepting jobs: at once, durably, once for each request id, each item of a batch for itself."""

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from imprimatur.broker.memory import MemoryBroker
from imprimatur.storage.database import Database
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED as CANCELLED
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    CancelJobRequest,
    JobFilter,
    ListJobEventsRequest,
    ListJobsRequest,
    RetryJobRequest,
)
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal, refusal_of
from tests.service.systems import Caller, System, on_sqlite, running_system, submission


async def test_a_job_is_accepted_as_it_was_asked_for(system: System, me: Caller) -> None:
    job = await me.submit(
        engines.APPROVE,
        "cr-9",
        request_id="r-1",
        user_id="ada",
        priority=pb.PRIORITY_HIGH,
        labels={"team": "ü"},
        max_attempts=7,
        timeout=Duration(seconds=30),
        deadline=Duration(seconds=600),
        callback_url="https://ads.example/hook",
    )
    assert (job.state, job.version, job.attempts, job.priority) == (QUEUED, 1, 0, pb.PRIORITY_HIGH)
    assert (job.request_id, job.user_id, job.subject_id, dict(job.labels)) == ("r-1", "ada", "cr-9", {"team": "ü"})
    assert (job.max_attempts, job.timeout.seconds) == (7, 30)
    assert job.deadline.seconds - job.run_at.seconds == 600
    assert job.callback_url == "https://ads.example/hook"
    assert dict(job.parameters) == {"creative_id": "cr-9", "headline": engines.APPROVE}
    assert await me.get(job) == job


async def test_what_is_left_out_has_the_stated_defaults(system: System, me: Caller) -> None:
    job = await me.submit(engines.APPROVE)
    assert (job.priority, job.max_attempts, job.timeout.seconds) == (pb.PRIORITY_NORMAL, 3, 120)
    assert job.deadline.seconds - job.create_time.seconds == 24 * 3600
    assert job.run_at == job.create_time


# --- request ids -----------------------------------------------------------------------------------------


async def test_a_second_submit_with_the_same_request_id_returns_the_same_job(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    first = await me.jobs.SubmitJob(submission(request_id="r-1"))
    async with system.reviewer(engine):
        done = await me.until(first.job, SUCCEEDED)
    again = await me.jobs.SubmitJob(submission(request_id="r-1"))
    assert (first.already_accepted, again.already_accepted) == (False, True)
    assert (again.job.id, again.job.state, again.job.version) == (first.job.id, SUCCEEDED, done.version)


async def test_a_request_id_with_other_content_is_refused_and_names_the_job(system: System, me: Caller) -> None:
    first = await me.submit(engines.APPROVE, request_id="r-1")
    for other in (submission("else", request_id="r-1"), submission(request_id="r-1", labels={"a": "b"})):
        seen = await refusal(me.jobs.SubmitJob(other))
        assert (seen.code, seen.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert (seen.metadata["job_id"], seen.metadata["field"]) == (first.id, "request_id")


async def test_many_submits_at_once_with_one_request_id_make_one_job(system: System, me: Caller) -> None:
    requests = [me.jobs.SubmitJob(submission(request_id="r-1")) for _ in range(20)]
    answers = await asyncio.gather(*requests)
    assert len({answer.job.id for answer in answers}) == 1
    assert [answer.already_accepted for answer in answers].count(False) == 1


# --- batches ---------------------------------------------------------------------------------------------


async def test_a_batch_is_answered_item_by_item_in_order(system: System, me: Caller) -> None:
    items = [submission(engines.APPROVE, f"cr-{number}", request_id=f"r-{number % 90}") for number in range(100)]
    items[50].ClearField("creative_review")
    results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))).results
    assert len(results) == 100
    assert refusal_of(results[50].error).metadata["field"] == "items[50].task"
    for number, result in enumerate(results):
        if number >= 90:  # the same request ids as the first ten, with other content
            error = refusal_of(result.error)
            assert (error.reason, error.metadata["field"]) == ("REQUEST_ID_REUSED", f"items[{number}].request_id")
        elif number != 50:
            assert (result.accepted.job.subject_id, result.accepted.already_accepted) == (f"cr-{number}", False)
    listed = (await me.jobs.ListJobs(ListJobsRequest(page_size=500))).jobs
    assert len(listed) == 89


async def test_the_same_batch_again_makes_nothing_new(system: System, me: Caller) -> None:
    batch = BatchSubmitJobsRequest(items=[submission(request_id="a"), submission(request_id="a"), submission("b")])
    first = (await me.jobs.BatchSubmitJobs(batch)).results
    assert [one.accepted.already_accepted for one in first] == [False, True, False]
    assert first[0].accepted.job.id == first[1].accepted.job.id
    again = (await me.jobs.BatchSubmitJobs(batch)).results
    assert [one.accepted.already_accepted for one in again] == [True, True, True]  # the last by its creative
    assert [one.accepted.job.id for one in again] == [one.accepted.job.id for one in first]


@on_sqlite
async def test_jobs_are_accepted_while_the_broker_is_away_and_done_when_it_is_back(
    database: Database, engine: ScriptedEngine
) -> None:
    broker = MemoryBroker()
    async with running_system(database, broker, broker_is_up=False) as system:
        me = await system.caller()
        job = await me.submit(engines.APPROVE)
        assert job.state == QUEUED
        await broker.start()
        async with system.reviewer(engine):
            await me.until(job, SUCCEEDED)


# --- finding ---------------------------------------------------------------------------------------------


async def test_lists_are_newest_first_and_pages_follow_each_other_while_jobs_arrive(system: System, me: Caller) -> None:
    submitted = [await me.submit(engines.APPROVE, f"cr-{number}", labels={"n": str(number % 2)}) for number in range(7)]
    seen: list[str] = []
    request = ListJobsRequest(page_size=3, filter=JobFilter(labels={"n": "0"}))
    while True:
        page = await me.jobs.ListJobs(request)
        seen += [job.subject_id for job in page.jobs]
        await me.submit(engines.APPROVE, "newer", labels={"n": "0"})
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [job.subject_id for job in reversed(submitted[::2])]


async def test_a_history_comes_in_pages_oldest_first(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit(engines.APPROVE)
    async with system.reviewer(engine):
        await me.until(job, SUCCEEDED)
    first = await me.jobs.ListJobEvents(ListJobEventsRequest(job_id=job.id, page_size=2))
    rest = await me.jobs.ListJobEvents(ListJobEventsRequest(job_id=job.id, page_token=first.next_page_token))
    assert [(one.version, one.kind) for one in (*first.events, *rest.events)] == [
        (1, "submitted"),
        (2, "started"),
        (3, "succeeded"),
    ]
    assert not rest.next_page_token


# --- again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
async def test_a_failed_or_cancelled_job_can_be_tried_again_as_a_new_one(
    system: System, me: Caller, engine: ScriptedEngine, state: pb.JobState.ValueType
) -> None:
    old = await me.submit(engines.UNREADABLE, "cr-3", labels={"a": "b"}, user_id="ada", max_attempts=2)
    if state == CANCELLED:
        await me.jobs.CancelJob(CancelJobRequest(job_id=old.id))
    async with system.reviewer(engine):
        await me.until(old, state)
    new = (await me.jobs.RetryJob(RetryJobRequest(job_id=old.id, request_id="again"))).job
    assert (new.retry_of, new.state, new.version, new.attempts) == (old.id, QUEUED, 1, 0)
    assert (new.subject_id, dict(new.labels), new.user_id, new.max_attempts) == ("cr-3", {"a": "b"}, "ada", 2)
    same = (await me.jobs.RetryJob(RetryJobRequest(job_id=old.id, request_id="again"))).job
    assert same.id == new.id
    assert (await me.get(old)).state == state  # terminal is final
    assert (await refusal(me.jobs.SubmitJob(submission(request_id="again")))).reason == "REQUEST_ID_REUSED"
