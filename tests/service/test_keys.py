"""Concurrency keys as callers meet them: what is refused, what takes another's place, and who hears of it."""

import asyncio
from typing import Any

import pytest
from grpc import StatusCode

from gateway.accepting import Accepting
from imprimatur.errors import Contended
from imprimatur.storage import acceptance
from imprimatur.tenancy import Role
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED as CANCELLED
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import (
    WHEN_BUSY_REFUSE,
    WHEN_BUSY_SUPERSEDE,
    BatchSubmitJobsRequest,
    CancelJobRequest,
    RetryJobRequest,
    SubmitJobRequest,
    WatchJobRequest,
)
from tests import makers
from tests.service import engines
from tests.service.bad_calls import decision
from tests.service.engines import ScriptedEngine
from tests.service.statuses import Refusal, refusal, refusal_of
from tests.service.systems import Caller, System, on_sqlite, submission
from tests.service.test_people import claim
from tests.service.test_reviewing import kinds, outcomes
from tests.service.test_workers import counted


async def refused(me: Caller, request: SubmitJobRequest) -> Refusal:
    seen = await refusal(me.jobs.SubmitJob(request))
    assert seen.code is StatusCode.ALREADY_EXISTS
    return seen


async def cancel(me: Caller, job: Job) -> None:
    await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))


# --- a creative ------------------------------------------------------------------------------------------


async def test_a_creative_submitted_again_unchanged_is_the_review_that_runs(me: Caller) -> None:
    first = (await me.jobs.SubmitJob(submission("approve", "cr-1", request_id="r-1"))).job
    again = await me.jobs.SubmitJob(submission("approve", "cr-1", request_id="r-2"))
    assert (again.already_accepted, again.job) == (True, first)
    assert (first.concurrency_key, first.HasField("revision")) == ("", False)
    await cancel(me, first)
    late = await me.jobs.SubmitJob(submission("approve", "cr-1", request_id="r-2"))
    assert (late.already_accepted, late.job.id, late.job.state) == (True, first.id, CANCELLED)
    anew = await me.jobs.SubmitJob(submission("approve", "cr-1", request_id="r-3"))
    assert (anew.already_accepted, anew.job.supersedes, anew.job.id != first.id) == (False, "", True)


async def test_a_changed_creative_takes_the_place_of_its_review_under_way(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    ended = counted("imprimatur_jobs_finished_total", type="creative_review", state="cancelled")
    async with system.reviewer(engine):
        old = await me.submit(engines.GATE, "cr-1")
        await me.until(old, RUNNING)
        watch: Any = me.jobs.WatchJob(WatchJobRequest(job_id=old.id))
        new = await me.submit(engines.APPROVE, "cr-1")
        assert (new.supersedes, new.state) == (old.id, QUEUED)
        seen = [version.job async for version in watch]
        assert (seen[-1].state, seen[-1].superseded_by) == (CANCELLED, new.id)
        done = await me.until(new, SUCCEEDED)
        await makers.until(lambda: _aborted(engine))
        await makers.until(lambda: _has_outcomes(me, old, ["CANCELLED"]))
    assert (done.supersedes, outcomes(done)) == (old.id, ["SUCCEEDED"])
    gone = await me.get(old)
    assert (gone.state, gone.superseded_by, await kinds(me, old)) == (
        CANCELLED,
        new.id,
        ["submitted", "started", "cancelled"],
    )
    assert counted("imprimatur_jobs_finished_total", type="creative_review", state="cancelled") == ended + 1


async def _aborted(engine: ScriptedEngine) -> bool:
    return engine.aborted["cr-1"] == 1


async def _has_outcomes(me: Caller, job: Job, expected: list[str]) -> bool:
    return outcomes(await me.get(job)) == expected


@on_sqlite
async def test_who_decides_a_review_that_was_superseded_is_told_by_what(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        old = await me.until(await me.submit(engines.HUMAN, "cr-1"), AWAITING)
    await claim(me, old)
    new = await me.submit(engines.APPROVE, "cr-1")
    seen = await refusal(me.reviews.DecideReview(decision(old.id)))
    assert (seen.code, seen.reason) == (StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
    assert (seen.metadata["state"], seen.metadata["superseded_by"]) == ("cancelled", new.id)
    assert new.id in seen.message


async def test_a_batch_settles_each_creative_in_its_order(me: Caller) -> None:
    before = await me.submit("approve", "cr-1")
    items = [
        submission("reject", "cr-1"),
        submission("human", "cr-2"),
        submission("unsure", "cr-1"),
        submission("unsure", "cr-1"),
        submission("", "cr-3"),
    ]
    results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))).results
    assert refusal_of(results[4].error).reason == "INVALID_FIELD"
    first, other, last, same = [result.accepted for result in results[:4]]
    assert [one.already_accepted for one in (first, other, last, same)] == [False, False, False, True]
    assert (first.job.supersedes, last.job.supersedes, other.job.supersedes) == (before.id, first.job.id, "")
    assert (first.job.state, first.job.superseded_by, same.job) == (CANCELLED, last.job.id, last.job)
    assert [(await me.get(job)).state for job in (before, first.job, last.job)] == [CANCELLED, CANCELLED, QUEUED]


# --- a key of one's own ----------------------------------------------------------------------------------


async def test_a_second_job_with_a_live_key_is_refused_with_the_first(me: Caller) -> None:
    first = await me.submit("approve", concurrency_key="nightly")
    assert first.concurrency_key == "nightly"
    for when_busy in (0, WHEN_BUSY_REFUSE):
        seen = await refused(me, submission(concurrency_key="nightly", when_busy=when_busy))
        assert (seen.reason, dict(seen.metadata)) == ("KEY_BUSY", {"job_id": first.id})
    same = submission("approve", first.subject_id, concurrency_key="nightly", when_busy=WHEN_BUSY_SUPERSEDE)
    assert (await me.jobs.SubmitJob(same)).job == first
    next_one = await me.submit("approve", concurrency_key="nightly", when_busy=WHEN_BUSY_SUPERSEDE)
    assert next_one.supersedes == first.id
    beside = await me.submit("approve", next_one.subject_id)  # the same creative without a key
    assert (beside.supersedes, (await me.get(next_one)).state) == ("", QUEUED)


async def test_items_of_a_batch_with_a_busy_key_are_refused_for_themselves(me: Caller) -> None:
    items = [submission(concurrency_key="a"), submission(concurrency_key="a"), submission(concurrency_key="b")]
    results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))).results
    seen = refusal_of(results[1].error)
    assert (seen.reason, seen.metadata["job_id"]) == ("KEY_BUSY", results[0].accepted.job.id)
    assert results[2].accepted.job.state == QUEUED


async def test_a_users_keys_are_apart_from_all_others(system: System, me: Caller) -> None:
    ada, bob = [await system.caller(Role.SUBMITTER, user_id=name) for name in ("ada", "bob")]
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    made = [await who.submit("approve", "cr-1") for who in (me, ada, bob, stranger)]
    made += [await who.submit("approve", concurrency_key="k") for who in (me, ada, bob, stranger)]
    assert [job.supersedes for job in made] == [""] * 8
    assert {job.concurrency_key for job in made} == {"", "k"}
    changed = await ada.submit("reject", "cr-1")
    assert changed.supersedes == made[1].id
    assert [(await me.get(made[place])).state for place in (0, 2)] == [QUEUED, QUEUED]


async def test_a_busy_key_does_not_tell_of_a_job_that_its_caller_may_not_see(system: System, me: Caller) -> None:
    """A key of the tenant's is held for bob, when ada retries what the tenant had submitted for her."""
    hers = await me.submit("approve", concurrency_key="k", user_id="ada")
    await cancel(me, hers)
    his = await me.submit("approve", concurrency_key="k", user_id="bob")
    ada = await system.caller(Role.SUBMITTER, user_id="ada")
    for who, told in ((ada, {}), (me, {"job_id": his.id})):
        seen = await refusal(who.jobs.RetryJob(RetryJobRequest(job_id=hers.id)))
        assert (seen.code, seen.reason) == (StatusCode.ALREADY_EXISTS, "KEY_BUSY")
        assert dict(seen.metadata) == told
        assert his.id not in seen.message


async def test_a_retry_keeps_key_and_revision_and_waits_for_the_one_that_took_its_place(me: Caller) -> None:
    old = await me.submit("approve", "cr-1", concurrency_key="k", when_busy=WHEN_BUSY_SUPERSEDE, revision=7)
    newer = await me.submit("reject", "cr-1", concurrency_key="k", when_busy=WHEN_BUSY_SUPERSEDE)
    request = RetryJobRequest(job_id=old.id, request_id="again")
    seen = await refusal(me.jobs.RetryJob(request))
    assert (seen.reason, seen.metadata["job_id"]) == ("KEY_BUSY", newer.id)
    await cancel(me, newer)
    retry = (await me.jobs.RetryJob(request)).job
    assert (retry.retry_of, retry.concurrency_key, retry.revision, retry.supersedes) == (old.id, "k", 7, "")
    assert (await me.jobs.RetryJob(request)).job == retry
    other = RetryJobRequest(job_id=newer.id, request_id="again")
    assert (await refusal(me.jobs.RetryJob(other))).reason == "REQUEST_ID_REUSED"


# --- revisions -------------------------------------------------------------------------------------------


async def test_of_concurrent_updates_the_one_with_the_highest_revision_stands(me: Caller) -> None:
    revisions = [3, 1, 5, 2, 4]
    calls = (me.jobs.SubmitJob(submission(f"content {one}", "cr-1", revision=one)) for one in revisions)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    accepted = [answer.job for answer in answers if not isinstance(answer, BaseException)]
    [newest] = [job for job in accepted if job.revision == 5]
    assert (await me.get(newest)).state == QUEUED
    seen = await refused(me, submission("late", "cr-1", revision=4))
    assert (seen.reason, dict(seen.metadata)) == ("REVISION_OUTDATED", {"revision": "5", "job_id": newest.id})
    seen = await refused(me, submission("other", "cr-1", revision=5))
    assert (seen.reason, dict(seen.metadata)) == ("REVISION_REUSED", {"revision": "5", "job_id": newest.id})
    same = await me.jobs.SubmitJob(submission("content 5", "cr-1", revision=5))
    assert (same.already_accepted, same.job.id) == (True, newest.id)
    zero = await me.submit("first", "cr-2", revision=0)
    assert (zero.HasField("revision"), zero.revision) == (True, 0)


# --- others come in between ------------------------------------------------------------------------------


@pytest.fixture
def contended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches of more than one job never come through, and single ones at the third try; their sizes."""
    sizes: list[int] = []
    submit = acceptance.submit

    async def now_and_then(tx: Any, new_jobs: Any, **options: Any) -> Any:
        answers = await submit(tx, new_jobs, **options)
        sizes.append(len(new_jobs))
        if len(new_jobs) > 1 or len(sizes) % 3:
            raise Contended("others came in between")
        return answers

    monkeypatch.setattr(acceptance, "submit", now_and_then)
    return sizes


@on_sqlite
async def test_what_others_came_in_between_of_is_done_again_and_at_last_singly(
    me: Caller, contended: list[int]
) -> None:
    single = await me.submit("approve", "cr-1")
    assert single.state == QUEUED
    contended.clear()
    items = [submission("reject", "cr-1"), submission("human", "cr-1")]
    results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))).results
    assert [result.accepted.job.supersedes for result in results] == [single.id, results[0].accepted.job.id]
    assert contended[0] == 2
    assert contended[-1] == 1


@on_sqlite
async def test_what_others_always_come_in_between_of_may_be_tried_again(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> Any:
        raise Contended("others came in between")

    monkeypatch.setattr(Accepting, "_store_once", never)
    seen = await refusal(me.jobs.SubmitJob(submission()))
    assert (seen.code, seen.reason) == (StatusCode.UNAVAILABLE, "KEY_CONTENDED")
    assert seen.retry_after_seconds == pytest.approx(0.1)
