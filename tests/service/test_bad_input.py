"""Whatever is sent, the answer names what is wrong with it, touches nothing else, and gives nothing away."""

import base64
import json
import shutil
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # ships no types
import grpc.aio
import pytest
import pytest_asyncio

from deploy.local.postgres import PrivatePostgres
from imprimatur.client import ClientError
from imprimatur.storage.database import Database
from imprimatur.v1.creative_pb2 import DECISION_REJECTED
from imprimatur.v1.job_pb2 import (
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
    Job,
)
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    CancelJobRequest,
    ListJobEventsRequest,
    ListJobsRequest,
)
from imprimatur.v1.review_service_pb2 import ClaimReviewRequest, ListPendingReviewsRequest
from tests.service import engines
from tests.service.bad_calls import CALLS, BadCall, decision
from tests.service.bad_submissions import SUBMISSIONS, BadSubmission, Refused
from tests.service.engines import ScriptedEngine
from tests.service.statuses import Refusal, refusal, refusal_of
from tests.service.systems import Caller, System, running_system, submission

pytestmark = pytest.mark.asyncio(loop_scope="module")


class World:
    """A system whose admin has one job of every kind."""

    def __init__(self, system: System, me: Caller, ids: Mapping[str, str]) -> None:
        self.system, self.me, self.ids = system, me, ids


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests here, on each kind of database: refusals leave no traces."""
    database = Database(await _database_url(request, tmp_path_factory.mktemp("world")))
    async with running_system(database) as system:
        me = await system.caller()
        yield World(system, me, await _one_of_each(system, me))
    await database.close()


async def _database_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        return f"sqlite:///{shutil.copy(template, folder / 'world.db')}"
    server: PrivatePostgres = request.getfixturevalue("postgresql")
    name = f"world_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(f"CREATE DATABASE {name} {request.getfixturevalue('postgresql_template')}")
    await connection.close()
    return str(server.url(name))


async def _one_of_each(system: System, me: Caller) -> dict[str, str]:
    jobs: dict[str, Job] = {}
    engine = ScriptedEngine()
    async with system.reviewer(engine):
        jobs["succeeded"] = await me.until(await me.submit(engines.APPROVE), JOB_STATE_SUCCEEDED)
        jobs["failed"] = await me.until(await me.submit(engines.UNREADABLE), JOB_STATE_FAILED)
        for name in ("waiting", "held", "decided"):
            jobs[name] = await me.until(await me.submit(engines.HUMAN, name), JOB_STATE_AWAITING_REVIEW)
    jobs["queued"] = await me.submit(engines.APPROVE)
    jobs["cancelled"] = await me.submit(engines.APPROVE)
    ids = {name: job.id for name, job in jobs.items()}
    await me.jobs.CancelJob(CancelJobRequest(job_id=ids["cancelled"]))
    await me.reviews.ClaimReview(ClaimReviewRequest(job_id=ids["held"], reviewer="ada"))
    reason = "Ω" * 5000  # as long as it may be, and long as bytes
    await me.reviews.DecideReview(decision(ids["decided"], DECISION_REJECTED, reason, reviewer="ada"))
    return ids


def agrees(seen: Refusal, wanted: Refused, *, path: str = "") -> None:
    """The refusal has the code, reason and domain, and names the field wherever it should."""
    assert (seen.code, seen.reason, seen.domain) == (wanted.code, wanted.reason, "imprimatur")
    assert seen.message
    assert seen.size < 8000  # what a client takes as trailers
    if wanted.field:
        assert seen.message.startswith(f"{path}{wanted.field}: ")
        assert seen.metadata["field"] == f"{path}{wanted.field}"
    if wanted.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert list(seen.violations) == [f"{path}{wanted.field}"]


# --- the tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", SUBMISSIONS, ids=lambda bad: bad.says)
async def test_a_bad_submission_is_refused_and_its_field_named(world: World, bad: BadSubmission) -> None:
    agrees(await refusal(world.me.jobs.SubmitJob(bad.request)), bad.refused)


@pytest.mark.parametrize("bad", SUBMISSIONS, ids=lambda bad: bad.says)
async def test_a_bad_item_of_a_batch_is_refused_and_the_others_are_accepted(world: World, bad: BadSubmission) -> None:
    batch = BatchSubmitJobsRequest(items=[submission(), bad.request, submission()])
    first, second, third = (await world.me.jobs.BatchSubmitJobs(batch)).results
    agrees(refusal_of(second.error), bad.refused, path="items[1].")
    assert not second.HasField("accepted")
    for accepted in (first, third):
        assert accepted.accepted.job.state == JOB_STATE_QUEUED


@pytest.mark.parametrize("bad", CALLS, ids=lambda bad: bad.says)
async def test_a_bad_call_is_refused_with_a_reason(world: World, bad: BadCall) -> None:
    rpc = getattr(getattr(world.me, bad.service), bad.rpc)
    seen = await refusal(rpc(bad.request(world.ids)))
    agrees(seen, bad.refused)
    assert dict(bad.metadata).items() <= dict(seen.metadata).items()


# --- page tokens -----------------------------------------------------------------------------------------

_UNFILTERED = "e3b0c44298fc"  # the mark of an empty filter
_NEW_YEAR = "2026-01-01T00:00:00+00:00"
_QUEUED = "the queued job's id"


def coded(body: str) -> str:
    """As the parts of a token travel."""
    return base64.urlsafe_b64encode(body.encode()).rstrip(b"=").decode()


#: Whole tokens, and the parts of tokens that only this server should write.
TOKENS: dict[str, str | list[object]] = {
    "noise": "not a token!",
    "not JSON": "AAAA",
    "an empty list": coded("[]"),
    "an object": coded('{"a":1}'),
    "a number": coded("7"),
    "a deep list": coded("[" * 100_000),
    "numbers as parts": [1, 2, 3],
    "no position": [],
    "one part that is no id": ["1"],
    "two parts of nonsense": ["a", "b"],
    "three parts of nonsense": ["a", "b", "c"],
    "a version beyond 64 bits": [_QUEUED, "9" * 30],
    "a version of 5,000 digits": [_QUEUED, "9" * 5000],
    "a version in Arabic digits": [_QUEUED, "٣"],
    "a negative version": [_QUEUED, "-1"],
    "a priority beyond 64 bits": ["9" * 30, _NEW_YEAR, _QUEUED],
    "a priority that is none": ["17", _NEW_YEAR, _QUEUED],
    "a time without a zone": ["1", "2026-01-01T00:00:00", _QUEUED],
    "a time before all time": ["1", "0001-01-01T00:00:00+23:59", _QUEUED],
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
async def test_a_page_token_that_is_none_of_the_list_is_refused(world: World, token: str | list[object]) -> None:
    if isinstance(token, list):
        token = coded(json.dumps([_UNFILTERED, *(world.ids["queued"] if one == _QUEUED else one for one in token)]))
    calls = (
        world.me.jobs.ListJobs(ListJobsRequest(page_token=token)),
        world.me.jobs.ListJobEvents(ListJobEventsRequest(job_id=world.ids["queued"], page_token=token)),
        world.me.reviews.ListPendingReviews(ListPendingReviewsRequest(page_token=token)),
    )
    for call in calls:
        agrees(await refusal(call), Refused(reason="INVALID_PAGE_TOKEN", field="page_token"))


async def test_a_page_token_of_another_list_is_refused(world: World) -> None:
    jobs = await world.me.jobs.ListJobs(ListJobsRequest(page_size=1))
    queued = ListJobEventsRequest(job_id=world.ids["succeeded"], page_size=1)
    events = await world.me.jobs.ListJobEvents(queued)
    reviews = await world.me.reviews.ListPendingReviews(ListPendingReviewsRequest(page_size=1))
    assert jobs.next_page_token
    assert events.next_page_token
    assert reviews.next_page_token
    wanted = Refused(reason="INVALID_PAGE_TOKEN", field="page_token")
    other_filter = ListJobsRequest(page_token=jobs.next_page_token)
    other_filter.filter.user_id = "u"
    agrees(await refusal(world.me.jobs.ListJobs(other_filter)), wanted)
    other_job = ListJobEventsRequest(job_id=world.ids["failed"], page_token=events.next_page_token)
    agrees(await refusal(world.me.jobs.ListJobEvents(other_job)), wanted)
    for foreign in (events, jobs):
        request = ListPendingReviewsRequest(page_token=foreign.next_page_token)
        agrees(await refusal(world.me.reviews.ListPendingReviews(request)), wanted)
    agrees(await refusal(world.me.jobs.ListJobs(ListJobsRequest(page_token=reviews.next_page_token))), wanted)


# --- what never gets out ---------------------------------------------------------------------------------


async def test_bytes_that_are_no_message_are_refused_without_a_word_of_ours(world: World) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.system.port}") as channel:
        metadata = (("authorization", f"Bearer {world.me.key}"),)
        for path in ("JobService/SubmitJob", "JobService/GetJob", "ReviewService/DecideReview"):
            for body in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28"):  # no tag; a text that is not UTF-8
                raw: Any = channel.unary_unary(f"/imprimatur.v1.{path}")
                seen = await refusal(raw(body, metadata=metadata))
                agrees(seen, Refused(field="request"))
        watch: Any = channel.unary_stream("/imprimatur.v1.JobService/WatchJob")
        agrees(await refusal(watch(b"\xff", metadata=metadata)), Refused(field="request"))


async def test_bytes_that_are_no_message_still_need_a_key(world: World) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.system.port}") as channel:
        get: Any = channel.unary_unary("/imprimatur.v1.JobService/GetJob")
        seen = await refusal(get(b"\xff"))
    assert (seen.code, seen.reason) == (grpc.StatusCode.UNAUTHENTICATED, "MISSING_API_KEY")


async def test_a_message_over_4_mebibytes_is_refused(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.me.jobs.SubmitJob(submission("x" * (4 * 1024 * 1024)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "have 4 MiB together: upload images" in ClientError.of(caught.value).message
    assert (await world.me.get(world.ids["queued"])).state == JOB_STATE_QUEUED  # and the connection lives


async def test_a_second_decision_by_the_same_person_is_refused_too(world: World) -> None:
    again = decision(world.ids["decided"], DECISION_REJECTED, reviewer="ada")
    assert (await refusal(world.me.reviews.DecideReview(again))).reason == "ALREADY_DECIDED"


async def test_a_start_in_the_past_is_now(world: World) -> None:
    for past in (1, -62_135_596_800):
        request = submission()
        request.run_at.FromSeconds(past)
        accepted = (await world.me.jobs.SubmitJob(request)).job
        assert accepted.run_at.ToDatetime() == accepted.create_time.ToDatetime()
