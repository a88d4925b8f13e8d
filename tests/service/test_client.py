"""The Python client, against a scripted gateway on a real socket."""

import asyncio
import contextlib
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from imprimatur.client import Client, ClientError
from imprimatur.client.calls import Patience
from imprimatur.client.channel import is_local
from imprimatur.client.submissions import submission
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, Creative, CreativeImage
from imprimatur.v1.job_pb2 import (
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    PRIORITY_HIGH,
    Job,
    JobEvent,
    JobState,
)
from imprimatur.v1.job_service_pb2 import (
    WHEN_BUSY_SUPERSEDE,
    BatchSubmitJobsRequest,
    BatchSubmitJobsResponse,
    BatchSubmitJobsResult,
    GetJobResponse,
    GetSystemStatusResponse,
    JobFilter,
    ListJobEventsResponse,
    ListJobsResponse,
    RetriedJob,
    RetryJobResponse,
    RetryJobsResponse,
    ReviewJobsAgainResponse,
    SubmitJobRequest,
    SubmitJobResponse,
    WatchJobResponse,
    WatchJobsResponse,
)
from tests.patience import PATIENCE_SECONDS, happens
from tests.service.certificates import Authority
from tests.service.scripted import HANG, UNAVAILABLE, Fault, Script, Step, serving

KEY = "imp_the-key-that-nobody-may-see"
BAD_FIELD = Fault(
    grpc.StatusCode.INVALID_ARGUMENT,
    "labels: at most 32",
    reason="INVALID_FIELD",
    field="labels",
    metadata={"field": "labels", "limit": "32"},
)


@asynccontextmanager
async def connected(script: Script, **options: Any) -> AsyncIterator[Client]:
    async with serving(script) as port, Client(f"127.0.0.1:{port}", api_key=KEY, **options) as client:
        yield client


def job(version: int = 1, state: JobState.ValueType = JOB_STATE_QUEUED, job_id: str = "j1") -> Job:
    return Job(id=job_id, version=version, state=state)


def seen(version: int, state: JobState.ValueType = JOB_STATE_RUNNING) -> WatchJobResponse:
    return WatchJobResponse(job=job(version, state))


def change(version: int, state: JobState.ValueType = JOB_STATE_RUNNING, job_id: str = "j1") -> WatchJobsResponse:
    return WatchJobsResponse(job=job(version, state, job_id))


SNAPSHOT_COMPLETE = WatchJobsResponse(snapshot_complete=True)


async def versions(client: Client, after_version: int = 0) -> list[int]:
    return [job.version async for job in client.watch("j1", after_version)]


# --- submit ----------------------------------------------------------------------------------------------


async def test_a_submit_that_lost_its_answer_is_repeated_under_the_same_request_id() -> None:
    script = Script().on("SubmitJob", UNAVAILABLE, UNAVAILABLE, SubmitJobResponse(job=job()))
    async with connected(script) as client:
        accepted = await client.submit(creative=Creative(creative_id="cr-1", headline="Figs"), priority=PRIORITY_HIGH)
    assert accepted.id == "j1"
    ids = {request.request_id for request in script.requests["SubmitJob"]}
    assert len(script.requests["SubmitJob"]) == 3
    assert len(ids) == 1
    assert len(ids.pop()) == 36
    assert script.requests["SubmitJob"][0].priority == PRIORITY_HIGH


async def test_a_callers_own_request_is_sent_as_it_is_and_left_as_it_is() -> None:
    script = Script().on("SubmitJob", SubmitJobResponse(job=job()))
    with_id, without_id = SubmitJobRequest(request_id="mine"), SubmitJobRequest(user_id="u")
    async with connected(script) as client:
        await client.submit(with_id)
        await client.submit(without_id)
    first, second = script.requests["SubmitJob"]
    assert first == with_id
    assert second.request_id
    assert second.user_id == "u"
    assert without_id == SubmitJobRequest(user_id="u")


async def test_fields_of_a_submission_become_the_contracts() -> None:
    request = submission(
        Creative(creative_id="cr-1"),
        labels={"run": "7"},
        timeout=timedelta(seconds=90),
        run_at=datetime(2030, 1, 1, tzinfo=UTC),
    )
    assert request.timeout.seconds == 90
    assert not request.HasField("deadline")
    assert not request.HasField("revision")
    keyed = submission(Creative(), concurrency_key="k", when_busy=WHEN_BUSY_SUPERSEDE, revision=0)
    assert (keyed.concurrency_key, keyed.when_busy) == ("k", WHEN_BUSY_SUPERSEDE)
    assert keyed.HasField("revision")
    assert request.run_at.ToJsonString() == "2030-01-01T00:00:00Z"
    with pytest.raises(ValueError, match="time zone"):
        submission(Creative(), run_at=datetime(2030, 1, 1))


async def test_a_request_and_a_creative_at_once_are_a_mistake() -> None:
    async with Client("127.0.0.1:1", api_key=KEY) as client:
        with pytest.raises(TypeError, match="either"):
            await client.submit(SubmitJobRequest(), creative=Creative())
        with pytest.raises(TypeError, match="either"):
            await client.submit()


async def test_a_refusal_carries_code_reason_field_and_metadata() -> None:
    async with connected(Script().on("SubmitJob", BAD_FIELD)) as client:
        with pytest.raises(ClientError) as caught:
            await client.submit(SubmitJobRequest())
    error = caught.value
    assert (error.code, error.reason, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "labels")
    assert error.message == str(error) == "labels: at most 32"
    assert error.metadata["limit"] == "32"


async def test_a_batch_answers_item_by_item() -> None:
    answer = BatchSubmitJobsResponse(
        results=[
            BatchSubmitJobsResult(accepted=SubmitJobResponse(job=job())),
            BatchSubmitJobsResult(error=BAD_FIELD.status()),
        ]
    )
    script = Script().on("BatchSubmitJobs", UNAVAILABLE, answer)
    async with connected(script) as client:
        first, second = await client.submit_batch([SubmitJobRequest(), SubmitJobRequest(request_id="b")])
    assert isinstance(first, Job)
    assert isinstance(second, ClientError)
    assert (second.code, second.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    tries = script.requests["BatchSubmitJobs"]
    assert tries[0] == tries[1]
    assert [bool(item.request_id) for item in tries[0].items] == [True, True]


async def test_a_batch_of_any_size_goes_in_calls_that_fit_and_a_failing_call_fails_its_items_only() -> None:
    def accept(request: BatchSubmitJobsRequest) -> BatchSubmitJobsResponse:
        results = [SubmitJobResponse(job=Job(id=item.request_id)) for item in request.items]
        return BatchSubmitJobsResponse(results=[BatchSubmitJobsResult(accepted=result) for result in results])

    image = CreativeImage(data=bytes(1_500_000))
    requests = [submission(Creative(images=[image]), request_id=f"big-{number}") for number in range(3)]
    requests += [SubmitJobRequest(request_id=f"small-{number}") for number in range(2100)]
    script = Script().on("BatchSubmitJobs", accept, BAD_FIELD, accept)
    async with connected(script) as client:
        outcomes = await client.submit_batch(requests)
    sizes = [len(request.items) for request in script.requests["BatchSubmitJobs"]]
    assert sizes == [2, 1000, 1000, 101]
    assert [isinstance(outcome, ClientError) for outcome in outcomes] == [False] * 2 + [True] * 1000 + [False] * 1101
    last = outcomes[-1]
    assert isinstance(last, Job)
    assert last.id == "small-2099"


def throttled(after_ms: int, reason: str = "TOO_MANY_OPEN_JOBS") -> Fault:
    limit = {"limit": "open_jobs", "value": "2"}
    return Fault(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit is reached", reason, metadata=limit, retry_after_ms=after_ms
    )


async def test_a_submit_beyond_a_limit_comes_again_when_it_was_told_to() -> None:
    script = Script().on("SubmitJob", throttled(50), throttled(1), SubmitJobResponse(job=job()))
    async with connected(script) as client:
        assert (await client.submit(SubmitJobRequest())).id == "j1"
    assert len({request.request_id for request in script.requests["SubmitJob"]}) == 1
    assert len(script.requests["SubmitJob"]) == 3


async def test_a_limit_that_asks_for_more_patience_than_there_is_is_told_at_once() -> None:
    script = Script().on("SubmitJob", throttled(60_000))
    async with connected(script) as client:
        with pytest.raises(ClientError) as caught:
            await client.submit(SubmitJobRequest())
    assert (caught.value.reason, caught.value.metadata["value"]) == ("TOO_MANY_OPEN_JOBS", "2")
    assert caught.value.retry_after_seconds == 60.0
    assert len(script.requests["SubmitJob"]) == 1


async def test_a_limit_that_no_waiting_helps_is_told_at_once() -> None:
    narrow = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "narrow the filter", "TOO_MANY_JOBS")
    script = Script().on("WatchJobs", [narrow])
    async with connected(script) as client:
        with pytest.raises(ClientError, match="narrow"):
            await anext(client.watch_many())
    assert len(script.requests["WatchJobs"]) == 1


async def test_items_of_a_batch_beyond_a_limit_go_again_and_the_others_do_not() -> None:

    def answer(request: BatchSubmitJobsRequest) -> BatchSubmitJobsResponse:
        """There is room for one job at each call, and none for "bad" at any."""
        room, results = 1, []
        for item in request.items:
            fits = item.request_id != "bad" and room > 0
            room -= fits
            error = BAD_FIELD if item.request_id == "bad" else throttled(20)
            accepted = SubmitJobResponse(job=Job(id=item.request_id))
            results.append(
                BatchSubmitJobsResult(accepted=accepted) if fits else BatchSubmitJobsResult(error=error.status())
            )
        return BatchSubmitJobsResponse(results=results)

    script = Script().on("BatchSubmitJobs", answer)
    async with connected(script) as client:
        outcomes = await client.submit_batch([SubmitJobRequest(request_id=name) for name in ("a", "bad", "b", "c")])
    assert [one.id if isinstance(one, Job) else one.reason for one in outcomes] == ["a", "INVALID_FIELD", "b", "c"]
    asked = [[item.request_id for item in request.items] for request in script.requests["BatchSubmitJobs"]]
    assert asked == [["a", "bad", "b", "c"], ["b", "c"], ["c"]]


async def test_items_that_find_no_room_within_the_patience_stay_refused() -> None:
    refused = BatchSubmitJobsResponse(results=[BatchSubmitJobsResult(error=throttled(60_000).status())])
    script = Script().on("BatchSubmitJobs", refused)
    async with connected(script) as client:
        [outcome] = await client.submit_batch([SubmitJobRequest()])
    assert isinstance(outcome, ClientError)
    assert outcome.reason == "TOO_MANY_OPEN_JOBS"
    assert len(script.requests["BatchSubmitJobs"]) == 1


# --- repetition and deadlines ----------------------------------------------------------------------------


async def test_a_decision_is_never_repeated() -> None:
    script = Script().on("DecideReview", UNAVAILABLE)
    async with connected(script) as client:
        with pytest.raises(ClientError) as caught:
            await client.decide("j1", DECISION_APPROVED, "fine")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(script.requests["DecideReview"]) == 1


async def test_a_retry_by_hand_is_repeated_under_one_request_id() -> None:
    script = Script().on("RetryJob", UNAVAILABLE, RetryJobResponse(job=job(job_id="j2")))
    async with connected(script) as client:
        assert (await client.retry("j1")).id == "j2"
    first, second = script.requests["RetryJob"]
    assert first.request_id == second.request_id != ""


async def test_many_are_retried_as_of_one_moment_until_nothing_is_left() -> None:
    as_of = Timestamp(seconds=1_780_000_000)

    def answer(left: int, *pairs: tuple[str, str]) -> RetryJobsResponse:
        retried = [RetriedJob(retry_of=old, job_id=new) for old, new in pairs]
        return RetryJobsResponse(retried=retried, left=left, as_of=as_of)

    answers = answer(3), UNAVAILABLE, answer(1, ("a", "a2"), ("b", "b2")), answer(1), answer(0, ("c", "c2"))
    script = Script().on("RetryJobs", *answers)
    wanted = JobFilter(labels={"run": "7"})
    async with connected(script) as client:
        done = await client.retry_many(wanted)
    assert [(one.retry_of, one.job_id) for one in done.retried] == [("a", "a2"), ("b", "b2"), ("c", "c2")]
    assert done.left == 0
    first, *others = script.requests["RetryJobs"]
    assert (first.filter, first.dry_run, first.HasField("as_of")) == (wanted, True, False)
    assert [(one.filter, one.dry_run, one.as_of) for one in others] == [(wanted, False, as_of)] * 4


async def test_what_the_engine_failed_at_is_sent_back_until_only_the_held_are_left() -> None:
    as_of = Timestamp(seconds=1_780_000_000)
    answers = (
        ReviewJobsAgainResponse(held=2, left=2, as_of=as_of),
        ReviewJobsAgainResponse(job_ids=["a"], held=1, left=1, as_of=as_of),
        ReviewJobsAgainResponse(job_ids=["b"], held=1, as_of=as_of),
    )
    script = Script().on("ReviewJobsAgain", *answers)
    async with connected(script) as client:
        done = await client.review_again(job_ids=["a", "b", "c"])
    assert ([*done.job_ids], done.held, done.left) == (["a", "b"], 1, 0)
    first, *others = script.requests["ReviewJobsAgain"]
    assert (first.job_ids, first.dry_run) == (["a", "b", "c"], True)
    assert [(one.job_ids, one.dry_run, one.as_of) for one in others] == [(["a", "b", "c"], False, as_of)] * 2


async def test_a_dry_run_only_counts() -> None:
    script = Script().on("RetryJobs", RetryJobsResponse(left=7))
    script.on("ReviewJobsAgain", ReviewJobsAgainResponse(left=8, held=1))
    async with connected(script) as client:
        assert (await client.retry_many(JobFilter(user_id="ada"), dry_run=True)).left == 7
        assert (await client.review_again(JobFilter(user_id="ada"), dry_run=True)).left == 8
    for rpc in ("RetryJobs", "ReviewJobsAgain"):
        assert [one.dry_run for one in script.requests[rpc]] == [True]


async def test_what_will_not_pass_is_not_repeated() -> None:
    script = Script().on("GetJob", Fault(grpc.StatusCode.NOT_FOUND, "no such job", "NOT_FOUND"))
    async with connected(script) as client:
        with pytest.raises(ClientError):
            await client.get("j1")
    assert len(script.requests["GetJob"]) == 1


async def test_a_read_waits_for_a_server_that_restarts_on_the_same_port() -> None:
    script = Script().on("GetJob", GetJobResponse(job=job()))
    async with contextlib.AsyncExitStack() as stack:
        async with serving(script) as port:
            client = await stack.enter_async_context(Client(f"127.0.0.1:{port}", api_key=KEY))
            await client.get("j1")
        reading = asyncio.create_task(client.get("j1"))
        done, _ = await asyncio.wait({reading}, timeout=0.3)
        assert not done
        async with serving(script, port=port):
            assert (await reading).id == "j1"


#: What a client does that was told nothing takes longer.
_SHORTER_THAN_USUAL_SECONDS = 9.5


async def test_where_no_server_is_the_caller_learns_it_soon() -> None:
    async with Client("127.0.0.1:1", api_key=KEY, retry_seconds=0.3) as client:
        with pytest.raises(ClientError) as caught:
            async with asyncio.timeout(_SHORTER_THAN_USUAL_SECONDS):
                await client.get("j1")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == ""


async def test_a_call_that_is_not_answered_ends_at_its_deadline() -> None:
    script = Script().on("GetJob", HANG)
    async with connected(script, deadline_seconds=0.2) as client:
        with pytest.raises(ClientError) as caught:
            async with asyncio.timeout(_SHORTER_THAN_USUAL_SECONDS):
                await client.get("j1")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_patience_is_counted_from_the_first_failure_and_renewed_by_every_sign_of_life() -> None:
    away = ClientError(grpc.StatusCode.UNAVAILABLE, "away")
    patience = Patience(10.0, now=0.0)
    assert patience.pause_after(away, now=3600.0, jitter=1.0) == 0.2  # an hour of peace spends none of it
    patience.begin(3600.2)
    assert patience.pause_after(away, now=3605.0, jitter=1.0) == 0.4
    patience.renew(3606.0)
    assert patience.pause_after(away, now=3609.0, jitter=1.0) == 0.2
    patience.begin(3610.0)
    assert patience.pause_after(away, now=3650.0, jitter=1.0) == 0.2  # the stream stood, though it was silent
    patience.begin(3650.2)
    with pytest.raises(ClientError):
        patience.pause_after(away, now=3660.0, jitter=1.0)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ClientError(grpc.StatusCode.UNAVAILABLE, "stopping", reason="GATEWAY_STOPPING"), True),
        (ClientError(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"), True),
        (ClientError(grpc.StatusCode.CANCELLED, "RPC cancelled by the proxy"), True),
        (ClientError(grpc.StatusCode.INTERNAL, "internal error; tell the operator", reason="INTERNAL"), False),
        (ClientError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), False),
        (ClientError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams", reason="LIMIT_REACHED"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: ClientError, *, passing: bool) -> None:
    assert error.passing is passing


# --- pages -----------------------------------------------------------------------------------------------


async def test_lists_go_through_all_pages() -> None:
    pages: list[Step | list[Step]] = [
        ListJobsResponse(jobs=[job(job_id="a"), job(job_id="b")], next_page_token="p2"),
        ListJobsResponse(jobs=[job(job_id="c")]),
    ]
    script = Script().on("ListJobs", *pages)
    script.on("ListJobEvents", ListJobEventsResponse(events=[JobEvent(kind="submitted")]))
    wanted = JobFilter(user_id="u")
    async with connected(script) as client:
        assert [job.id async for job in client.list(wanted, page_size=2)] == ["a", "b", "c"]
        assert [event.kind async for event in client.events("j1")] == ["submitted"]
    assert [request.page_token for request in script.requests["ListJobs"]] == ["", "p2"]
    assert {request.filter.user_id for request in script.requests["ListJobs"]} == {"u"}


# --- watch -----------------------------------------------------------------------------------------------


async def test_a_watch_that_is_cut_resumes_after_the_last_version_and_repeats_none() -> None:
    script = Script().on(
        "WatchJob",
        [seen(1, JOB_STATE_QUEUED), seen(3), UNAVAILABLE],
        [seen(2), seen(3), seen(4), UNAVAILABLE],
        UNAVAILABLE,
        [seen(6, JOB_STATE_SUCCEEDED)],
    )
    async with connected(script) as client:
        assert await versions(client) == [1, 3, 4, 6]
    assert [request.after_version for request in script.requests["WatchJob"]] == [0, 3, 4, 4]


async def test_a_watch_survives_a_server_that_dies_and_returns_on_the_same_port() -> None:
    before = Script().on("WatchJob", [seen(2), HANG])
    after = Script().on("WatchJob", [seen(5, JOB_STATE_SUCCEEDED)])
    async with contextlib.AsyncExitStack() as stack:
        async with serving(before) as port:
            client = await stack.enter_async_context(Client(f"127.0.0.1:{port}", api_key=KEY))
            watch = client.watch("j1")
            assert (await anext(watch)).version == 2
        async with serving(after, port=port):
            assert [job.version async for job in watch] == [5]
    assert after.requests["WatchJob"][0].after_version == 2


async def test_a_stream_that_ends_before_its_job_is_resumed() -> None:
    script = Script().on("WatchJob", [seen(1)], [seen(2, JOB_STATE_SUCCEEDED)])
    async with connected(script) as client:
        assert await versions(client) == [1, 2]


async def test_a_watch_of_a_finished_job_gives_its_terminal_state_even_if_it_was_seen() -> None:
    script = Script().on("WatchJob", [seen(7, JOB_STATE_SUCCEEDED)])
    async with connected(script) as client:
        assert await versions(client, after_version=7) == [7]


async def test_a_permanent_error_ends_a_watch() -> None:
    script = Script().on("WatchJob", [seen(1), Fault(grpc.StatusCode.PERMISSION_DENIED, "no", "ROLE_NOT_ALLOWED")])
    async with connected(script) as client:
        with pytest.raises(ClientError) as caught:
            await versions(client)
    assert caught.value.reason == "ROLE_NOT_ALLOWED"
    assert len(script.requests["WatchJob"]) == 1


async def test_a_watch_gives_up_when_its_patience_is_at_its_end() -> None:
    script = Script().on("WatchJob", [seen(1), UNAVAILABLE], UNAVAILABLE)
    async with connected(script, patience_seconds=0.3) as client:
        with pytest.raises(ClientError) as caught:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await versions(client)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_watch_that_is_left_is_cancelled_on_the_server() -> None:
    script = Script().on("WatchJob", [seen(1), HANG])
    async with connected(script) as client:
        async with aclosing(client.watch("j1")) as watch:
            assert (await anext(watch)).version == 1
        await happens(script.left)


async def test_waiting_ends_with_the_job_or_with_a_person_or_in_time() -> None:
    awaiting = seen(3, JOB_STATE_AWAITING_REVIEW)
    script = Script().on(
        "WatchJob", [seen(1), awaiting, HANG], [awaiting, seen(4, JOB_STATE_SUCCEEDED)], [awaiting, HANG]
    )
    async with connected(script) as client:
        assert (await client.wait("j1", until_terminal=False)).state == JOB_STATE_AWAITING_REVIEW
        assert (await client.wait("j1", 10.0)).state == JOB_STATE_SUCCEEDED
        with pytest.raises(TimeoutError):
            await client.wait("j1", 0.2)


# --- watch many ------------------------------------------------------------------------------------------


async def test_a_watch_of_many_resumes_and_tells_of_those_that_finished_meanwhile() -> None:
    script = Script().on(
        "WatchJobs",
        [change(1, job_id="a"), change(4, job_id="b"), change(2, job_id="gone"), SNAPSHOT_COMPLETE, UNAVAILABLE],
        [change(1, job_id="a"), SNAPSHOT_COMPLETE, change(5, JOB_STATE_SUCCEEDED, "b"), change(2, job_id="a"), HANG],
    )
    finished = GetJobResponse(job=job(5, JOB_STATE_SUCCEEDED, "b"))
    missing = Fault(grpc.StatusCode.NOT_FOUND, "no such job", "NOT_FOUND")
    script.on("GetJob", lambda request: finished if request.job_id == "b" else missing)
    async with connected(script) as client, aclosing(client.watch_many()) as changes:
        told = []
        async for item in changes:
            told.append((item.job.id, item.job.version) if item.HasField("job") else "complete")
            if told[-1] == ("a", 2):
                break
    assert told == [("a", 1), ("b", 4), ("gone", 2), "complete", ("b", 5), ("a", 2)]


async def test_a_job_that_left_the_filter_while_the_connection_was_lost_is_not_told() -> None:
    running = JobFilter(states=[JOB_STATE_RUNNING])
    script = Script().on(
        "WatchJobs",
        [change(1, job_id="a"), SNAPSHOT_COMPLETE, UNAVAILABLE],
        [SNAPSHOT_COMPLETE, change(1, job_id="b"), HANG],
    )
    script.on("GetJob", GetJobResponse(job=job(2, JOB_STATE_SUCCEEDED, "a")))
    async with connected(script) as client, aclosing(client.watch_many(running)) as changes:
        told = [await anext(changes) for _ in range(3)]
    assert [item.job.id for item in told] == ["a", "", "b"]


# --- connection ------------------------------------------------------------------------------------------


async def test_the_key_travels_in_its_header_and_shows_nowhere() -> None:
    script = Script().on("GetJob", Fault(grpc.StatusCode.UNAUTHENTICATED, "no such key", "INVALID_API_KEY"))
    async with connected(script) as client:
        try:
            await client.get("j1")
        except ClientError as error:
            told = "".join(traceback.format_exception(error)) + repr(error)
        assert KEY not in told + repr(client) + repr(vars(client))
    assert script.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["", "imp_ü", "imp_a b", "imp_a\n"])
def test_what_cannot_be_a_key_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        Client("127.0.0.1:1", api_key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost:7443", True),
        ("127.0.0.1:7443", True),
        ("[::1]:7443", True),
        ("dns:///localhost:7443", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("unix:/run/imprimatur.sock", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("reviews.example:443", False),
        ("localhost.example:443", False),
        ("dns:///10.0.0.7:443", False),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_clear(target: str, *, local: bool) -> None:
    assert is_local(target) is local


async def test_mutual_tls_shows_both_sides() -> None:
    ours, strangers = Authority(), Authority()
    server = ours.issue("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(server.key, server.chain)], ours.root, require_client_auth=True)
    script = Script().on("GetSystemStatus", GetSystemStatusResponse(server_version="1"))
    async with serving(script, credentials=credentials) as port:
        target = f"127.0.0.1:{port}"
        for authority, welcome in ((ours, True), (strangers, False)):
            own = authority.issue("a caller")
            async with Client(
                target,
                api_key=KEY,
                root_certificates=ours.root,
                client_certificate=own.chain,
                client_key=own.key,
                retry_seconds=0.1,
            ) as client:
                if welcome:
                    assert (await client.status()).server_version == "1"
                else:
                    with pytest.raises(ClientError):
                        await client.status()


def test_contradicting_tls_options_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="belong together"):
        Client("127.0.0.1:1", api_key=KEY, client_certificate=b"x")
    with pytest.raises(ValueError, match="tls is False"):
        Client("127.0.0.1:1", api_key=KEY, tls=False, root_certificates=b"x")


async def test_calls_are_spread_over_all_gateways_and_go_on_when_one_dies() -> None:
    scripts = [Script().on("GetJob", GetJobResponse(job=job())) for _ in range(2)]
    async with serving(scripts[0]) as first, contextlib.AsyncExitStack() as stack:
        async with serving(scripts[1]) as second:
            target = f"ipv4:127.0.0.1:{first},127.0.0.1:{second}"
            client = await stack.enter_async_context(Client(target, api_key=KEY))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not all(script.requests["GetJob"] for script in scripts):
                    await client.get("j1")
        for _ in range(10):
            await client.get("j1")


async def test_a_watch_outlives_connections_that_the_server_ends_for_their_age() -> None:
    script = Script().on("WatchJob", [seen(1), HANG], [seen(2), HANG], [seen(3, JOB_STATE_SUCCEEDED)])
    ageing = [("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 100)]
    async with serving(script, options=ageing) as port, Client(f"127.0.0.1:{port}", api_key=KEY) as client:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await versions(client) == [1, 2, 3]
    assert [request.after_version for request in script.requests["WatchJob"]] == [0, 1, 2]


async def test_the_example_runs(tmp_path: Path) -> None:
    script = Script().on("SubmitJob", SubmitJobResponse(job=job()))
    script.on("WatchJob", [seen(2), seen(3, JOB_STATE_AWAITING_REVIEW), HANG])
    root = Path(__file__).parents[2]
    async with serving(script) as port:
        (tmp_path / "client.json").write_text(json.dumps({"target": f"127.0.0.1:{port}", "api_key": KEY}))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(root / "examples" / "submit_and_watch.py"),
            env=os.environ | {"PYTHONPATH": str(root / "services"), "IMPRIMATUR_DATA": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"JOB_STATE_AWAITING_REVIEW" in out
