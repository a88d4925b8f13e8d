"""The human queue: what waits, who holds it, what they decide, and what is recorded of it."""

import asyncio
import base64
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text

from imprimatur.policy import Mode
from imprimatur.tenancy import Role
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, DECISION_REJECTED, CreativeImage
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_LOW, Job
from imprimatur.v1.job_service_pb2 import CancelJobRequest, WatchJobRequest
from imprimatur.v1.review_service_pb2 import (
    ClaimReviewRequest,
    DecideReviewRequest,
    ListPendingReviewsRequest,
    PendingReview,
)
from tests.service import engines
from tests.service.bad_calls import decision
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, submission
from tests.service.test_reviewing import kinds, put_mode

#: The smallest picture there is, three by two.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAFUlEQVR4nGM8wcXFwMDAwMDAxAADABByAOAp6i43AAAAAElFTkSuQmCC"
)


async def waiting(me: Caller, system: System, *headlines: str) -> list[Job]:
    """One job that waits for a person for each headline."""
    async with system.reviewer(ScriptedEngine()):
        jobs = [await me.submit(headline, f"cr-{place}") for place, headline in enumerate(headlines)]
        return [await me.until(job, AWAITING) for job in jobs]


async def claim(person: Caller, job: Job, **fields: object) -> PendingReview:
    answer = await person.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id, **fields))  # type: ignore[arg-type]  # fields of it
    return answer.review


async def test_high_priority_waits_in_front_and_pages_follow_each_other(system: System, me: Caller) -> None:
    async with system.reviewer(ScriptedEngine()):
        submitted = [
            await me.until(await me.submit(engines.HUMAN, priority=priority), AWAITING)
            for priority in (PRIORITY_LOW, 0, PRIORITY_HIGH, 0, 0)
        ]
    person = await system.caller(Role.REVIEWER)
    seen: list[str] = []
    token = ""
    while True:
        page = await person.reviews.ListPendingReviews(ListPendingReviewsRequest(page_size=2, page_token=token))
        assert 1 <= len(page.reviews) <= 2
        seen += [one.job.id for one in page.reviews]
        if not (token := page.next_page_token):
            break
    assert seen == [submitted[place].id for place in (2, 1, 3, 4, 0)]


async def test_the_queue_shows_the_creative_and_only_a_claim_its_images(system: System, me: Caller) -> None:
    request = submission(engines.HUMAN)
    request.creative_review.creative.images.append(CreativeImage(name="a.png", data=PNG))
    job = (await me.jobs.SubmitJob(request)).job
    async with system.reviewer(ScriptedEngine()):
        await me.until(job, AWAITING)
    [shown] = (await me.reviews.ListPendingReviews(ListPendingReviewsRequest())).reviews
    assert (shown.creative.headline, shown.creative.images[0].name) == (engines.HUMAN, "a.png")
    assert not shown.creative.images[0].data
    assert shown.job.creative_review.ai_review.evidence.reason
    assert shown.HasField("waiting_since")
    held = await claim(me, job)
    assert held.creative.images[0].data == PNG


async def test_a_held_review_is_its_holders_until_the_hold_runs_out(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    ada, bob = [await system.caller(Role.REVIEWER, user_id=name) for name in ("ada", "bob")]
    held = await claim(ada, job, lease=Duration(seconds=600))
    assert (held.claimed_by, held.job.state) == ("ada", AWAITING)
    assert 590 < held.claimed_until.seconds - held.job.update_time.seconds < 610
    longer = await claim(ada, job, lease=Duration(seconds=3600))  # one's own may be prolonged
    assert longer.claimed_until.seconds > held.claimed_until.seconds
    for call in (
        bob.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id)),
        bob.reviews.DecideReview(decision(job.id)),
    ):
        assert (await refusal(call)).reason == "CLAIMED_BY_ANOTHER"
    free = ListPendingReviewsRequest(unclaimed_only=True)
    assert not (await bob.reviews.ListPendingReviews(free)).reviews
    assert [one.claimed_by for one in (await ada.reviews.ListPendingReviews(free)).reviews] == ["ada"]
    async with system.database.begin() as tx:  # time passes
        await tx.connection.execute(text("UPDATE jobs SET held_until = created_at"))
    [shown] = (await bob.reviews.ListPendingReviews(free)).reviews
    assert (shown.claimed_by, shown.HasField("claimed_until")) == ("", False)
    assert (await claim(bob, job)).claimed_by == "bob"
    assert (await refusal(ada.reviews.DecideReview(decision(job.id)))).metadata["claimed_by"] == "bob"


async def test_two_people_who_claim_at_once_do_not_both_get_it(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    people = [await system.caller(Role.REVIEWER, user_id=f"person-{number}") for number in range(8)]
    claims = await asyncio.gather(*(claim(person, job) for person in people), return_exceptions=True)
    [held] = [one for one in claims if isinstance(one, PendingReview)]
    assert all(one.code() is grpc.StatusCode.FAILED_PRECONDITION for one in claims if isinstance(one, grpc.RpcError))
    assert (await kinds(me, job)).count("claimed_by_person") == 1
    assert held.claimed_by.startswith("person-")


async def test_a_decision_ends_the_job_with_both_sides_on_record(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    stream = me.jobs.WatchJob(WatchJobRequest(job_id=job.id))
    await stream.read()
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    decided = (await ada.reviews.DecideReview(decision(job.id, DECISION_REJECTED, "Claims too much."))).job
    assert (decided.state, decided.result_count) == (SUCCEEDED, 1)
    human, ai = decided.creative_review.human_review, decided.creative_review.ai_review
    assert (human.decision, human.reason, human.reviewer) == (DECISION_REJECTED, "Claims too much.", "ada")
    assert human.HasField("decided_at")
    assert not human.overrides_ai  # the AI asked for a person
    assert (ai.decision, decided.creative_review.decision) == (
        job.creative_review.ai_review.decision,
        DECISION_REJECTED,
    )
    async with asyncio.timeout(10.0):
        seen: Any = await stream.read()
    assert (seen.job.version, seen.job.state) == (decided.version, SUCCEEDED)
    assert not (await ada.reviews.ListPendingReviews(ListPendingReviewsRequest())).reviews


async def test_a_decision_against_the_ai_is_recorded_as_an_override(system: System, me: Caller) -> None:
    await put_mode(system, Mode.REQUIRE_HUMAN)
    approve, reject, failed = await waiting(me, system, engines.APPROVE, engines.REJECT, engines.REFUSE)
    for job, word, overrides in (
        (approve, DECISION_APPROVED, False),
        (reject, DECISION_APPROVED, True),
        (failed, DECISION_REJECTED, False),
    ):
        decided = (await me.reviews.DecideReview(decision(job.id, word))).job
        assert decided.creative_review.human_review.overrides_ai is overrides
        assert not decided.HasField("error")  # what the AI failed at is settled
    async with system.database.read() as reader:
        rows = await reader.connection.execute(text("SELECT overrides_ai FROM human_decisions ORDER BY id"))
        assert [bool(one) for one in rows.scalars()] == [False, True, False]


async def test_only_one_of_many_decisions_at_once_stands(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    words = [DecideReviewRequest(job_id=job.id, decision=1 + number % 2, reason="So.") for number in range(8)]  # type: ignore[arg-type]  # approved, rejected
    answers = await asyncio.gather(*(me.reviews.DecideReview(word) for word in words), return_exceptions=True)
    [stands] = [one for one in answers if not isinstance(one, BaseException)]
    assert (await me.get(job)).creative_review.decision == stands.job.creative_review.decision
    assert (await kinds(me, job)).count("decided") == 1


async def test_a_decision_and_a_cancellation_at_once_leave_one_end(system: System, me: Caller) -> None:
    jobs = await waiting(me, system, *[engines.HUMAN] * 6)
    for job in jobs:
        await asyncio.gather(
            me.reviews.DecideReview(decision(job.id)),
            me.jobs.CancelJob(CancelJobRequest(job_id=job.id)),
            return_exceptions=True,
        )
        assert len({"decided", "cancelled"} & set(await kinds(me, job))) == 1
