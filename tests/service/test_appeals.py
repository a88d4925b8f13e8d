"""Appeals: a new job against a decision, which another person decides in any case."""

import asyncio
from typing import Any

from imprimatur.policy import Mode
from imprimatur.tenancy import Role
from imprimatur.v1.creative_pb2 import (
    DECISION_APPROVED,
    DECISION_PENDING,
    DECISION_REJECTED,
    POLICY_TRIGGER_AUTO_APPROVE,
    POLICY_TRIGGER_AUTO_APPROVE_MODE,
    POLICY_TRIGGER_BLOCKED_CATEGORY,
    POLICY_TRIGGER_ENGINE_ERROR,
)
from imprimatur.v1.job_pb2 import APPEAL_OUTCOME_OVERTURNED, APPEAL_OUTCOME_UPHELD, Job
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import AppealJobRequest, CancelJobRequest, RetryJobRequest
from imprimatur.v1.review_service_pb2 import (
    AUDIT_ACTION_APPEALED,
    ClaimNextReviewRequest,
    ClaimReviewRequest,
    ListAuditEntriesRequest,
    ListPendingReviewsRequest,
    ReviewFilter,
)
from tests import makers
from tests.service import engines
from tests.service.bad_calls import decision
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_sqlite
from tests.service.test_people import claim
from tests.service.test_reviewing import put_mode


async def appeal(me: Caller, job: Job, reason: str = "It is a parody.", **fields: Any) -> Job:
    return (await me.jobs.AppealJob(AppealJobRequest(job_id=job.id, reason=reason, **fields))).job


async def rejected(me: Caller, system: System) -> Job:
    """What the AI rejected."""
    async with system.reviewer(ScriptedEngine()):
        return await me.until(await me.submit(engines.REJECT, "cr-1", labels={"team": "a"}), SUCCEEDED)


async def appealed(me: Caller, system: System, job: Job) -> Job:
    """An appeal that waits for a person."""
    made = await appeal(me, job)
    async with system.reviewer(ScriptedEngine()):
        return await me.until(made, AWAITING)


async def test_an_appeal_is_a_new_job_that_a_person_decides_whatever_the_engine_says(
    system: System, me: Caller
) -> None:
    old = await rejected(me, system)
    engine = ScriptedEngine()
    made = await appeal(me, old)
    assert (made.appeal_of, made.subject_id, dict(made.labels)) == (old.id, "cr-1", {"team": "a"})
    async with system.reviewer(engine):
        waits = await me.until(made, AWAITING)
    assert engine.seen == ["cr-1"]  # it looked anew
    ai = waits.creative_review.ai_review
    # What applied is told as it is; the decision is a person's.
    assert (ai.decision, ai.policy_triggered) == (DECISION_PENDING, POLICY_TRIGGER_BLOCKED_CATEGORY)
    assert ai.reason.startswith("An appeal: a person decides. By itself the policy would have rejected it:")
    assert (waits.appeal.reason, waits.appeal.appellant) == ("It is a parody.", "a admin key")
    assert (waits.appeal.former_decision, waits.appeal.former_reviewer) == (DECISION_REJECTED, "")
    only = ListPendingReviewsRequest(filter=ReviewFilter(is_appeal=True))
    assert [one.job.id for one in (await me.reviews.ListPendingReviews(only)).reviews] == [made.id]
    decided = (await me.reviews.DecideReview(decision(made.id))).job
    assert (decided.creative_review.decision, decided.appeal.outcome) == (DECISION_APPROVED, APPEAL_OUTCOME_OVERTURNED)
    assert (await me.get(old)).creative_review.decision == DECISION_REJECTED  # terminal is final


async def test_an_approval_can_be_appealed_against_too_and_upheld(system: System, me: Caller) -> None:
    async with system.reviewer(ScriptedEngine()):
        old = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    waits = await appealed(me, system, old)
    assert waits.creative_review.ai_review.policy_triggered == POLICY_TRIGGER_AUTO_APPROVE
    decided = (await me.reviews.DecideReview(decision(waits.id))).job
    assert decided.appeal.outcome == APPEAL_OUTCOME_UPHELD


async def test_neither_a_failing_engine_nor_a_mode_without_one_decides_an_appeal(system: System, me: Caller) -> None:
    await put_mode(system, Mode.REQUIRE_HUMAN)
    async with system.reviewer(ScriptedEngine()):
        job = await me.until(await me.submit(engines.REFUSE), AWAITING)
    await me.reviews.DecideReview(decision(job.id, DECISION_REJECTED))
    await put_mode(system, Mode.AI_POWERED)
    waits = await appealed(me, system, job)
    assert waits.creative_review.ai_review.policy_triggered == POLICY_TRIGGER_ENGINE_ERROR
    await me.jobs.CancelJob(CancelJobRequest(job_id=waits.id))
    await put_mode(system, Mode.AUTO_APPROVE)
    again = await appealed(me, system, job)
    assert again.creative_review.ai_review.policy_triggered == POLICY_TRIGGER_AUTO_APPROVE_MODE


async def test_another_person_than_before_decides_an_appeal(system: System, me: Caller) -> None:
    ada, bob = [await system.caller(Role.REVIEWER, user_id=name) for name in ("ada", "bob")]
    async with system.reviewer(ScriptedEngine()):
        job = await me.until(await me.submit(engines.HUMAN), AWAITING)
    await ada.reviews.DecideReview(decision(job.id, DECISION_REJECTED, "No."))
    waits = await appealed(me, system, job)
    assert (waits.appeal.former_reviewer, waits.appeal.former_reason) == ("ada", "No.")
    for call in (
        ada.reviews.ClaimReview(ClaimReviewRequest(job_id=waits.id)),
        ada.reviews.DecideReview(decision(waits.id)),
    ):
        assert (await refusal(call)).reason == "DECIDED_BEFORE"
    nothing = await ada.reviews.ClaimNextReview(ClaimNextReviewRequest())
    assert (nothing.HasField("review"), nothing.left) == (False, 0)
    held = (await bob.reviews.ClaimNextReview(ClaimNextReviewRequest())).review
    assert held.job.id == waits.id
    decided = (await bob.reviews.DecideReview(decision(waits.id, DECISION_REJECTED, token=held.claim_token))).job
    assert decided.appeal.outcome == APPEAL_OUTCOME_UPHELD
    # And a further appeal is for neither of them.
    further = await appealed(me, system, decided)
    for person in (ada, bob):
        seen = await refusal(person.reviews.ClaimReview(ClaimReviewRequest(job_id=further.id)))
        assert seen.reason == "DECIDED_BEFORE"
    assert (await claim(me, further, reviewer="carl")).claimed_by == "carl"


async def test_where_a_shared_key_does_not_tell_who_decided_nobody_is_kept_from_the_appeal(
    system: System, me: Caller
) -> None:
    shared = await system.caller(Role.REVIEWER)
    async with system.reviewer(ScriptedEngine()):
        job = await me.until(await me.submit(engines.HUMAN), AWAITING)
    await shared.reviews.DecideReview(decision(job.id, DECISION_REJECTED))
    waits = await appealed(me, system, job)
    assert (await claim(shared, waits)).claimed_by == "a reviewer key"


async def test_only_what_is_decided_can_be_appealed_against_and_once_at_a_time(system: System, me: Caller) -> None:
    queued = await me.submit(engines.APPROVE)
    assert (await refusal(me.jobs.AppealJob(AppealJobRequest(job_id=queued.id, reason="x")))).reason == "NOT_DECIDED"
    old = await rejected(me, system)
    many = [me.jobs.AppealJob(AppealJobRequest(job_id=old.id, reason=f"reason {number}")) for number in range(5)]
    answers = await asyncio.gather(*many, return_exceptions=True)
    [made] = [one.job for one in answers if not isinstance(one, BaseException)]
    seen = await refusal(me.jobs.AppealJob(AppealJobRequest(job_id=old.id, reason="once more")))
    assert (seen.reason, seen.metadata["job_id"]) == ("APPEAL_OPEN", made.id)
    await me.jobs.CancelJob(CancelJobRequest(job_id=made.id))
    assert (await appeal(me, old)).id != made.id


async def test_the_same_request_id_is_the_same_appeal(system: System, me: Caller) -> None:
    old = await rejected(me, system)
    first = await appeal(me, old, request_id="a-1")
    assert (await appeal(me, old, request_id="a-1")).id == first.id
    other = await me.submit(engines.APPROVE)
    async with system.reviewer(ScriptedEngine()):
        await me.until(other, SUCCEEDED)
    request = AppealJobRequest(job_id=other.id, reason="x", request_id="a-1")
    assert (await refusal(me.jobs.AppealJob(request))).reason == "REQUEST_ID_REUSED"


async def test_the_retry_of_a_cancelled_appeal_is_one(system: System, me: Caller) -> None:
    old = await rejected(me, system)
    made = await appeal(me, old)
    await me.jobs.CancelJob(CancelJobRequest(job_id=made.id))
    again = (await me.jobs.RetryJob(RetryJobRequest(job_id=made.id))).job
    assert (again.retry_of, again.appeal_of, again.appeal.reason) == (made.id, old.id, "It is a parody.")
    async with system.reviewer(ScriptedEngine()):
        await me.until(again, AWAITING)


async def test_an_appeal_stands_back_while_its_creative_is_under_review_and_a_changed_one_takes_its_place(
    system: System, me: Caller
) -> None:
    old = await rejected(me, system)
    newer = await me.submit("approve this", "cr-1")
    seen = await refusal(me.jobs.AppealJob(AppealJobRequest(job_id=old.id, reason="x")))
    assert (seen.reason, seen.metadata["job_id"]) == ("KEY_BUSY", newer.id)
    await me.jobs.CancelJob(CancelJobRequest(job_id=newer.id))
    made = await appeal(me, old)
    changed = await me.submit("approve this instead", "cr-1")
    assert changed.supersedes == made.id


async def test_only_the_owner_appeals(system: System, me: Caller) -> None:
    ada, bob = [await system.caller(Role.SUBMITTER, user_id=name) for name in ("ada", "bob")]
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    async with system.reviewer(ScriptedEngine()):
        job = await ada.until(await ada.submit(engines.REJECT), SUCCEEDED)
    request = AppealJobRequest(job_id=job.id, reason="x")
    for other in (bob, stranger):
        assert (await refusal(other.jobs.AppealJob(request))).reason == "JOB_NOT_FOUND"
    made = (await ada.jobs.AppealJob(request)).job
    assert (made.user_id, made.appeal.appellant) == ("ada", "ada")
    [entry] = (await me.reviews.ListAuditEntries(ListAuditEntriesRequest(actions=[AUDIT_ACTION_APPEALED]))).entries
    assert (entry.job_id, entry.person, entry.reason) == (job.id, "ada", "x")
    assert (entry.details["appeal"], entry.details["former_decision"]) == (made.id, "rejected")


@on_sqlite
async def test_an_appeal_needs_a_reason(system: System, me: Caller) -> None:
    old = await rejected(me, system)
    for fields, reason in (
        ({"reason": " "}, "FIELD_REQUIRED"),
        ({"reason": "x" * 5001}, "FIELD_TOO_LONG"),
        ({"reason": "a\0"}, "NUL_CHARACTER"),
        ({"reason": "x", "request_id": "x" * 201}, "FIELD_TOO_LONG"),
    ):
        assert (await refusal(me.jobs.AppealJob(AppealJobRequest(job_id=old.id, **fields)))).reason == reason
