"""Many jobs done again: retries of what failed, and reviews again of what the engine failed at."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from sqlalchemy import update

from imprimatur.client import Client
from imprimatur.errors import TransientError
from imprimatur.evidence import Creative, Evidence
from imprimatur.policy import Mode
from imprimatur.storage import clock
from imprimatur.storage.schema import jobs
from imprimatur.tenancy import Role
from imprimatur.v1.creative_pb2 import (
    POLICY_TRIGGER_BUDGET_EXHAUSTED,
    POLICY_TRIGGER_ENGINE_ERROR,
    POLICY_TRIGGER_HUMAN_REQUIRED,
    POLICY_TRIGGER_LOW_CONFIDENCE,
)
from imprimatur.v1.job_pb2 import (
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    CancelJobRequest,
    JobFilter,
    ListJobEventsRequest,
    ListJobsRequest,
    RetryJobRequest,
    RetryJobsRequest,
    RetryJobsResponse,
    ReviewJobsAgainRequest,
    ReviewJobsAgainResponse,
    WatchJobRequest,
)
from imprimatur.v1.policy_service_pb2 import RedecidePendingRequest
from imprimatur.v1.review_service_pb2 import ClaimReviewRequest
from tests import makers
from tests.patience import PATIENCE_SECONDS
from tests.service import engines
from tests.service.bad_calls import decision
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_sqlite, submission
from tests.service.test_reviewing import kinds, put_mode

_LABELS = {"type": "creative_review", "priority": "normal"}
ENGINE_ERROR = JobFilter(policy_triggered=[POLICY_TRIGGER_ENGINE_ERROR])
CANCELLED = JobFilter(states=[JOB_STATE_CANCELLED])


class AwayEngine(ScriptedEngine):
    """Its provider does not answer, until it does."""

    away = True

    async def examine(self, creative: Creative) -> Evidence:
        if self.away:
            raise TransientError("the provider answered 503", code="provider_error", stage="examining")
        return await super().examine(creative)


async def cancelled(me: Caller, number: int = 1, creative: str = "cr", **fields: Any) -> list[Job]:
    submitted = [await me.submit(engines.APPROVE, f"{creative}-{place}", **fields) for place in range(number)]
    return [(await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))).job for job in submitted]


async def retry(me: Caller, wanted: JobFilter = CANCELLED, **more: Any) -> RetryJobsResponse:
    return await me.jobs.RetryJobs(RetryJobsRequest(filter=wanted, **more))


async def review_again(
    me: Caller, wanted: JobFilter = ENGINE_ERROR, job_ids: Sequence[str] = (), **more: Any
) -> ReviewJobsAgainResponse:
    return await me.jobs.ReviewJobsAgain(ReviewJobsAgainRequest(filter=wanted, job_ids=job_ids, **more))


async def failed_reviews(me: Caller, system: System, number: int = 1, *, user_id: str = "") -> list[Job]:
    """Jobs that wait for a person since the engine refused."""
    async with system.reviewer(ScriptedEngine()):
        names = [f"cr-{user_id}-{place}" for place in range(number)]
        jobs = [await me.submit(engines.REFUSE, name, user_id=user_id) for name in names]
        return [await me.until(job, JOB_STATE_AWAITING_REVIEW) for job in jobs]


# --- retries ---------------------------------------------------------------------------------------------


async def test_a_filter_is_retried_in_parts_and_each_job_once(system: System, me: Caller) -> None:
    gone = await cancelled(me, 5, labels={"campaign": "spring"})
    await cancelled(me, 1, "other", labels={"campaign": "autumn"})
    await me.submit(engines.APPROVE, labels={"campaign": "spring"})
    spring = JobFilter(labels={"campaign": "spring"})
    counted = await retry(me, spring, dry_run=True)
    assert (len(counted.retried), counted.left) == (0, 5)
    assert counted.HasField("as_of")
    first = await retry(me, spring, limit=2)
    assert ([one.retry_of for one in first.retried], first.left) == ([gone[0].id, gone[1].id], 3)
    second = await retry(me, spring)
    assert ([one.retry_of for one in second.retried], second.left) == ([job.id for job in gone[2:]], 0)
    assert not (await retry(me, spring)).retried
    new = await me.get(first.retried[0].job_id)
    assert (new.retry_of, new.subject_id, dict(new.labels)) == (gone[0].id, "cr-0", {"campaign": "spring"})
    assert (await me.get(gone[0])).state == JOB_STATE_CANCELLED
    async with system.reviewer(ScriptedEngine()):
        for pair in [*first.retried, *second.retried]:
            await me.until(await me.get(pair.job_id), JOB_STATE_SUCCEEDED)


async def test_a_job_retried_by_hand_is_not_retried_with_the_others_but_may_be_by_hand(me: Caller) -> None:
    [old] = await cancelled(me)
    by_hand = await me.jobs.RetryJob(RetryJobRequest(job_id=old.id, request_id="one"))
    assert not (await retry(me)).retried
    await me.jobs.CancelJob(CancelJobRequest(job_id=by_hand.job.id))
    again = await me.jobs.RetryJob(RetryJobRequest(job_id=old.id, request_id="two"))
    assert again.job.id != by_hand.job.id


@on_sqlite
async def test_without_states_both_kinds_are_retried_and_by_state_one(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        broken = await me.until(await me.submit(engines.UNREADABLE, "cr-x"), JOB_STATE_FAILED)
    [gone] = await cancelled(me)
    only_failed = await retry(me, JobFilter(states=[JOB_STATE_FAILED]), dry_run=True)
    assert only_failed.left == 1
    answer = await retry(me, JobFilter(states=[JOB_STATE_FAILED, JOB_STATE_CANCELLED]))
    assert [one.retry_of for one in answer.retried] == [broken.id, gone.id]


async def test_calls_at_once_retry_each_job_once(system_on_postgresql: System) -> None:
    me = await system_on_postgresql.caller()
    gone = {job.id for job in await cancelled(me, 20)}
    answers = await asyncio.gather(*(retry(me, limit=15) for _ in range(5)))
    while answers[-1].left:
        answers.append(await retry(me))
    assert sorted(one.retry_of for answer in answers for one in answer.retried) == sorted(gone)


async def test_a_call_whose_answer_was_lost_is_repeated_without_harm(me: Caller) -> None:
    await cancelled(me, 3)
    lost: Any = me.jobs.RetryJobs(RetryJobsRequest(filter=CANCELLED))
    await asyncio.sleep(0)  # it is on its way, and nobody waits for its answer
    lost.cancel()
    answer = await retry(me)
    assert answer.left == 0
    jobs = (await me.jobs.ListJobs(ListJobsRequest(filter=JobFilter(states=[JOB_STATE_QUEUED])))).jobs
    assert len({job.retry_of for job in jobs}) == len(jobs) == 3


async def test_a_retry_that_fails_while_the_rest_is_retried_is_not_retried_in_its_turn(me: Caller) -> None:
    await cancelled(me, 3)
    as_of = (await retry(me, dry_run=True)).as_of
    first = await retry(me, limit=1, as_of=as_of)
    await me.jobs.CancelJob(CancelJobRequest(job_id=first.retried[0].job_id))
    assert first.as_of == as_of
    rest = await retry(me, as_of=as_of)
    assert (len(rest.retried), rest.left) == (2, 0)
    assert (await retry(me)).retried[0].retry_of == first.retried[0].job_id


@on_sqlite
@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (RetryJobsRequest(), "filter", "FILTER_REQUIRED"),
        (RetryJobsRequest(filter=JobFilter()), "filter", "FILTER_REQUIRED"),
        (RetryJobsRequest(filter=CANCELLED, limit=1001), "limit", "INVALID_FIELD"),
        (RetryJobsRequest(filter=CANCELLED, limit=-1), "limit", "INVALID_FIELD"),
        (RetryJobsRequest(filter=JobFilter(states=[JOB_STATE_QUEUED])), "filter.states", "INVALID_FIELD"),
        (RetryJobsRequest(filter=JobFilter(user_id="\0")), "filter.user_id", "NUL_CHARACTER"),
        (RetryJobsRequest(filter=CANCELLED, as_of=Timestamp(seconds=10**12)), "as_of", "INVALID_FIELD"),
        (ReviewJobsAgainRequest(), "filter", "FILTER_REQUIRED"),
        (ReviewJobsAgainRequest(filter=ENGINE_ERROR, limit=1001), "limit", "INVALID_FIELD"),
        (ReviewJobsAgainRequest(filter=JobFilter(states=[JOB_STATE_FAILED])), "filter.states", "INVALID_FIELD"),
        (
            ReviewJobsAgainRequest(
                filter=JobFilter(policy_triggered=[POLICY_TRIGGER_ENGINE_ERROR, POLICY_TRIGGER_LOW_CONFIDENCE])
            ),
            "filter.policy_triggered",
            "INVALID_FIELD",
        ),
        (ReviewJobsAgainRequest(job_ids=["x"]), "job_ids[0]", "INVALID_FIELD"),
        (ReviewJobsAgainRequest(job_ids=["\0"]), "job_ids[0]", "INVALID_FIELD"),
        (ReviewJobsAgainRequest(job_ids=["x"] * 1001), "job_ids", "INVALID_FIELD"),
        (ReviewJobsAgainRequest(filter=ENGINE_ERROR, as_of=Timestamp(nanos=-1)), "as_of", "INVALID_FIELD"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_its_field(me: Caller, request_: Any, field: str, reason: str) -> None:
    rpc = me.jobs.RetryJobs if isinstance(request_, RetryJobsRequest) else me.jobs.ReviewJobsAgain
    seen = await refusal(rpc(request_))
    assert (seen.code, seen.reason, list(seen.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, reason, [field])


# --- reviews again ---------------------------------------------------------------------------------------


async def test_after_an_outage_everything_is_reviewed_again_and_succeeds(system: System, short_backoff: None) -> None:
    me = await system.caller(Role.SUBMITTER)
    batch = BatchSubmitJobsRequest(items=[submission(engines.APPROVE, f"cr-{place}") for place in range(50)])
    jobs = [result.accepted.job for result in (await me.jobs.BatchSubmitJobs(batch)).results]
    engine = AwayEngine()
    async with system.reviewer(engine, slots=16):
        for job in jobs:
            given_up = await me.until(job, JOB_STATE_AWAITING_REVIEW)
            assert (given_up.attempts, given_up.error.code) == (3, "provider_error")
        engine.away = False
        key = await system.key(Role.REVIEWER)
        async with Client(f"127.0.0.1:{system.port}", api_key=key) as client:
            answer = await client.review_again(ENGINE_ERROR)
        assert (sorted(answer.job_ids), answer.held, answer.left) == (sorted(job.id for job in jobs), 0, 0)
        for job in jobs:
            done = await me.until(job, JOB_STATE_SUCCEEDED)
            assert (done.attempts, len(done.attempt_history), done.HasField("error")) == (1, 4, False)
    assert await kinds(me, jobs[0]) == [
        *("submitted", "started", "retry_scheduled", "started", "retry_scheduled", "started", "awaiting_review"),
        *("review_again", "started", "succeeded"),
    ]


async def test_a_watcher_sees_the_job_go_on(system: System, me: Caller) -> None:
    [job] = await failed_reviews(me, system)
    assert (job.attempts, job.error.code, job.HasField("creative_review")) == (1, "refused", True)
    watch: Any = me.jobs.WatchJob(WatchJobRequest(job_id=job.id))
    assert (await watch.read()).job.state == JOB_STATE_AWAITING_REVIEW
    assert (await review_again(me, JobFilter(), [job.id])).job_ids == [job.id]
    async with asyncio.timeout(PATIENCE_SECONDS):
        queued = (await watch.read()).job
    assert (queued.id, queued.state, queued.version, queued.attempts) == (job.id, JOB_STATE_QUEUED, job.version + 1, 0)
    assert not queued.HasField("error")
    assert not queued.HasField("creative_review")
    assert queued.deadline.ToDatetime() > job.deadline.ToDatetime()
    seen = [queued.version]
    async with system.reviewer(ScriptedEngine()), asyncio.timeout(PATIENCE_SECONDS):
        while (now := (await watch.read()).job).state != JOB_STATE_AWAITING_REVIEW:
            assert now.state in (JOB_STATE_QUEUED, JOB_STATE_RUNNING)
            seen.append(now.version)
    watch.cancel()
    assert seen == sorted(seen)
    events = (await me.jobs.ListJobEvents(ListJobEventsRequest(job_id=job.id))).events
    assert [event.kind for event in events] == [
        *("submitted", "started", "awaiting_review"),
        *("review_again", "started", "awaiting_review"),
    ]
    assert dict(events[3].details) == {"by": "a admin key"}


async def test_what_a_person_holds_is_left_to_that_person(system: System, me: Caller) -> None:
    held, free = await failed_reviews(me, system, 2)
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    claimed = await ada.reviews.ClaimReview(ClaimReviewRequest(job_id=held.id, lease=Duration(seconds=600)))
    token = claimed.review.claim_token
    counted = await review_again(me, dry_run=True)
    assert (len(counted.job_ids), counted.held, counted.left) == (0, 1, 1)
    answer = await review_again(me)
    assert ([*answer.job_ids], answer.held, answer.left) == ([free.id], 1, 0)
    assert (await ada.reviews.DecideReview(decision(held.id, token=token))).job.state == JOB_STATE_SUCCEEDED
    assert (await refusal(ada.reviews.DecideReview(decision(free.id)))).reason == "WRONG_STATE"


async def test_only_what_the_engine_failed_at_goes_back_and_not_more_than_asked_for(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    broken = await failed_reviews(me, system, 3)
    async with system.reviewer(engine):
        unsure = await me.until(await me.submit(engines.UNSURE), JOB_STATE_AWAITING_REVIEW)
    first = await review_again(me, limit=2)
    assert ([*first.job_ids], first.left) == ([job.id for job in broken[:2]], 1)
    both = JobFilter(policy_triggered=[POLICY_TRIGGER_ENGINE_ERROR, POLICY_TRIGGER_BUDGET_EXHAUSTED])
    second = await review_again(me, both, [broken[2].id, unsure.id])
    assert ([*second.job_ids], second.held, second.left) == ([broken[2].id], 0, 0)
    assert (await me.get(unsure)).state == JOB_STATE_AWAITING_REVIEW


async def test_what_fails_again_while_the_rest_goes_back_is_left(system: System, me: Caller) -> None:
    broken = await failed_reviews(me, system, 2)
    as_of = (await review_again(me, dry_run=True)).as_of
    first = await review_again(me, limit=1, as_of=as_of)
    async with system.reviewer(ScriptedEngine()):
        await me.until(broken[0], JOB_STATE_AWAITING_REVIEW)
    rest = await review_again(me, as_of=as_of)
    assert ([*first.job_ids], [*rest.job_ids], rest.left) == ([broken[0].id], [broken[1].id], 0)


async def test_the_policy_that_is_live_then_decides(system: System, me: Caller) -> None:
    [job] = await failed_reviews(me, system)
    await put_mode(system, Mode.AUTO_APPROVE)
    await review_again(me)
    async with system.reviewer(ScriptedEngine()):
        done = await me.until(job, JOB_STATE_SUCCEEDED)
    assert done.creative_review.ai_review.reason == "The tenant approves every creative without review."


async def test_what_failed_while_a_person_was_to_decide_everything_goes_back_after_the_switch(
    system: System, me: Caller
) -> None:
    await put_mode(system, Mode.REQUIRE_HUMAN)
    [unseen] = await failed_reviews(me, system)
    async with system.reviewer(ScriptedEngine()):
        examined = await me.until(await me.submit(engines.APPROVE, "examined"), JOB_STATE_AWAITING_REVIEW)
    await put_mode(system, Mode.AI_POWERED)
    left_alone = (await me.policies.RedecidePending(RedecidePendingRequest(dry_run=True))).without_evidence
    required = JobFilter(policy_triggered=[POLICY_TRIGGER_HUMAN_REQUIRED])
    answer = await review_again(me, required)
    assert (left_alone, [*answer.job_ids], answer.left) == (1, [unseen.id], 0)
    assert (await me.get(examined)).state == JOB_STATE_AWAITING_REVIEW


async def test_the_time_before_it_was_sent_back_is_not_counted_as_the_reviews(system: System, me: Caller) -> None:
    [job] = await failed_reviews(me, system)
    day = timedelta(days=1)
    async with system.database.begin() as tx:  # a person let it lie for a day
        await tx.connection.execute(update(jobs).values(created_at=clock.after(-day.total_seconds())))
    await review_again(me)
    before = counted_seconds()
    async with system.reviewer(ScriptedEngine()):
        await me.until(job, JOB_STATE_AWAITING_REVIEW)
        await makers.until(lambda: rose(before))
    assert counted_seconds() - before < day.total_seconds() / 2


def counted_seconds() -> float:
    value = REGISTRY.get_sample_value("imprimatur_submit_to_end_seconds_sum", _LABELS)
    assert value is not None
    return value


async def rose(before: float) -> bool:
    return counted_seconds() > before


@pytest.fixture
async def two_users(system: System, me: Caller) -> tuple[Job, Job]:
    """A job of ada's and one of bob's that the engine failed at."""
    [adas], [bobs] = [await failed_reviews(me, system, user_id=name) for name in ("ada", "bob")]
    return adas, bobs


async def test_each_sends_back_and_retries_what_is_theirs(
    system: System, me: Caller, two_users: tuple[Job, Job]
) -> None:
    adas, bobs = two_users
    ada = await system.caller(Role.SUBMITTER, user_id="ada")
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    assert not (await review_again(stranger, JobFilter(), [adas.id, bobs.id])).job_ids
    assert (await review_again(ada)).job_ids == [adas.id]
    assert not (await review_again(ada, JobFilter(), [bobs.id])).job_ids
    reviewer = await system.caller(Role.REVIEWER, user_id="cleo")  # sees the whole tenant's queue
    assert (await review_again(reviewer)).job_ids == [bobs.id]
    for job in two_users:
        await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    assert not (await retry(stranger)).retried
    assert [one.retry_of for one in (await retry(ada)).retried] == [adas.id]
    assert [one.retry_of for one in (await retry(me)).retried] == [bobs.id]
    assert (await refusal(retry(reviewer))).reason == "ROLE_NOT_ALLOWED"
