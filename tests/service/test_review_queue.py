"""The human queue over the wire: its order and filters, claims with tokens, the next one, the watch, the record and
the figures."""

import asyncio
import uuid
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text, update

from imprimatur.policy import Mode
from imprimatur.storage import clock, schema
from imprimatur.tenancy import Role
from imprimatur.v1.creative_pb2 import (
    AGREEMENT_AGREED,
    AGREEMENT_NO_ADVICE,
    AGREEMENT_OVERRODE,
    CATEGORY_POLITICAL,
    CATEGORY_SCAM,
    DECISION_APPROVED,
    DECISION_REJECTED,
    POLICY_TRIGGER_HUMAN_REQUIRED,
    Creative,
    CreativeImage,
    CreativeReviewTask,
)
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Job
from imprimatur.v1.job_service_pb2 import CancelJobRequest, ReviewJobsAgainRequest, SubmitJobRequest
from imprimatur.v1.review_service_pb2 import (
    AUDIT_ACTION_CLAIMED,
    AUDIT_ACTION_DECIDED,
    AUDIT_ACTION_EXPIRED,
    AUDIT_ACTION_RELEASED,
    AuditEntry,
    ClaimNextReviewRequest,
    ClaimNextReviewResponse,
    ClaimReviewRequest,
    GetReviewStatsRequest,
    ListAuditEntriesRequest,
    ListPendingReviewsRequest,
    ReleaseReviewRequest,
    RenewReviewRequest,
    ReviewFilter,
    WatchReviewQueueRequest,
    WatchReviewQueueResponse,
)
from tests import makers
from tests.service import engines
from tests.service.bad_calls import decision
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_sqlite
from tests.service.test_people import PNG, claim, waiting
from tests.service.test_reviewing import kinds, put_mode


async def listed(person: Caller, size: int = 0, **wanted: Any) -> list[str]:
    """Creative ids, page by page."""
    found: list[str] = []
    request = ListPendingReviewsRequest(filter=ReviewFilter(**wanted), page_size=size)
    while True:
        page = await person.reviews.ListPendingReviews(request)
        found += [one.job.subject_id for one in page.reviews]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def take_next(person: Caller, **fields: Any) -> ClaimNextReviewResponse:
    return await person.reviews.ClaimNextReview(ClaimNextReviewRequest(**fields))


async def age(system: System, job: Job, hours: float) -> None:
    """It waits for so long already."""
    past = {
        "postgresql": f"awaiting_since - interval '{hours} hours'",
        "sqlite": f"awaiting_since - {int(hours * 3600 * 1e6)}",
    }["postgresql" if system.database.on_postgresql else "sqlite"]
    id_ = job.id if system.database.on_postgresql else uuid.UUID(job.id).hex
    async with system.database.begin() as tx:
        await tx.connection.execute(text(f"UPDATE jobs SET awaiting_since = {past} WHERE id = :id"), {"id": id_})


# --- order and filters -----------------------------------------------------------------------------------


async def test_what_is_overdue_comes_first_then_priority_then_what_waits_longest(system: System, me: Caller) -> None:
    async with system.reviewer(ScriptedEngine()):
        jobs = {}
        for name, priority in (
            ("low", PRIORITY_LOW),
            ("young", PRIORITY_NORMAL),
            ("old", PRIORITY_NORMAL),
            ("late", PRIORITY_NORMAL),
            ("high", PRIORITY_HIGH),
            ("late-low", PRIORITY_LOW),
        ):
            jobs[name] = await me.until(await me.submit(engines.HUMAN, name, priority=priority), AWAITING)
    await age(system, jobs["old"], 23)
    await age(system, jobs["late"], 25)
    await age(system, jobs["late-low"], 73)
    in_order = ["late", "late-low", "high", "old", "young", "low"]
    for size in (1, 2, 4, 50):
        assert await listed(me, size) == in_order
    shown = (await me.reviews.ListPendingReviews(ListPendingReviewsRequest())).reviews
    assert [one.overdue for one in shown] == [True, True, False, False, False, False]
    assert shown[0].due_at.seconds - shown[0].waiting_since.seconds == 24 * 3600
    assert await listed(me, overdue_only=True) == ["late", "late-low"]
    assert await listed(me, priorities=[PRIORITY_LOW, PRIORITY_HIGH]) == ["late-low", "high", "low"]
    assert await listed(me, waiting_longer_than=Duration(seconds=20 * 3600)) == ["late", "late-low", "old"]


async def test_reviews_are_found_by_what_they_are(system: System, me: Caller) -> None:
    await put_mode(system, Mode.REQUIRE_HUMAN)
    picture = Creative(creative_id="picture", headline=engines.APPROVE, images=[CreativeImage(name="p", data=PNG)])
    declared = Creative(creative_id="declared", headline=engines.APPROVE, declared_categories=[CATEGORY_POLITICAL])
    async with system.reviewer(ScriptedEngine()):
        await me.until(await me.submit(engines.REJECT, "scam", labels={"team": "a"}), AWAITING)
        await me.until(await me.submit(engines.REFUSE, "failed", user_id="bob"), AWAITING)
        for creative in (picture, declared):
            request = SubmitJobRequest(creative_review=CreativeReviewTask(creative=creative))
            await me.until((await me.jobs.SubmitJob(request)).job, AWAITING)
    assert await listed(me, categories=[CATEGORY_SCAM]) == ["scam"]
    assert await listed(me, categories=[CATEGORY_SCAM, CATEGORY_POLITICAL]) == ["scam", "declared"]
    assert await listed(me, policy_triggered=[POLICY_TRIGGER_HUMAN_REQUIRED]) == [
        "scam",
        "failed",
        "picture",
        "declared",
    ]
    assert await listed(me, labels={"team": "a"}) == ["scam"]
    assert await listed(me, user_id="bob") == ["failed"]
    assert await listed(me, subject_id="picture") == ["picture"]
    assert await listed(me, has_images=True) == ["picture"]
    assert await listed(me, has_images=False) == ["scam", "failed", "declared"]
    assert await listed(me, is_appeal=True) == []
    [shown] = (
        await me.reviews.ListPendingReviews(ListPendingReviewsRequest(filter=ReviewFilter(subject_id="declared")))
    ).reviews
    assert list(shown.categories) == [CATEGORY_POLITICAL]


async def test_reviews_are_found_by_who_holds_them(system: System, me: Caller) -> None:
    jobs = await waiting(me, system, *[engines.HUMAN] * 3)
    ada, bob = [await system.caller(Role.REVIEWER, user_id=name) for name in ("ada", "bob")]
    await claim(ada, jobs[0])
    await claim(bob, jobs[1])
    assert await listed(bob, claimed_by="ada") == ["cr-0"]
    assert await listed(bob, claimed_by_me=True) == ["cr-1"]
    assert await listed(bob, unclaimed_only=True) == ["cr-1", "cr-2"]
    wrong = ListPendingReviewsRequest(filter=ReviewFilter(claimed_by="ada", claimed_by_me=True))
    assert (await refusal(bob.reviews.ListPendingReviews(wrong))).metadata["field"] == "filter.claimed_by"


@on_sqlite
async def test_a_page_token_is_good_for_its_own_filter_alone(system: System, me: Caller) -> None:
    await waiting(me, system, *[engines.HUMAN] * 2)
    page = await me.reviews.ListPendingReviews(ListPendingReviewsRequest(page_size=1))
    for other in (
        ListPendingReviewsRequest(page_token=page.next_page_token, filter=ReviewFilter(overdue_only=True)),
        ListPendingReviewsRequest(page_token=page.next_page_token, unclaimed_only=True),
        ListPendingReviewsRequest(page_token=page.next_page_token[:-4]),
    ):
        assert (await refusal(me.reviews.ListPendingReviews(other))).reason == "INVALID_PAGE_TOKEN"


# --- claims ----------------------------------------------------------------------------------------------


async def test_a_token_is_good_for_the_present_claim_alone(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    at_the_office = (await claim(ada, job)).claim_token
    at_home = (await claim(ada, job)).claim_token  # the same person, at another desk
    assert at_home != at_the_office
    for call in (
        ada.reviews.DecideReview(decision(job.id, token=at_the_office)),
        ada.reviews.RenewReview(RenewReviewRequest(job_id=job.id, token=at_the_office)),
        ada.reviews.ReleaseReview(ReleaseReviewRequest(job_id=job.id, token=at_the_office)),
        ada.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id, token=at_the_office)),
    ):
        assert (await refusal(call)).reason == "CLAIM_LOST"
    renewed = await ada.reviews.RenewReview(
        RenewReviewRequest(job_id=job.id, token=at_home, lease=Duration(seconds=7200))
    )
    prolonged = await claim(ada, job, token=at_home, lease=Duration(seconds=7300))
    assert prolonged.claim_token == at_home
    assert prolonged.claimed_until.seconds > renewed.claimed_until.seconds
    decided = (await ada.reviews.DecideReview(decision(job.id, token=at_home))).job
    assert decided.state == SUCCEEDED


async def test_a_key_that_names_a_holder_and_has_no_token_decides_and_takes_over_nothing(
    system: System, me: Caller
) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    ada, clerk = await system.caller(Role.REVIEWER, user_id="ada"), await system.caller(Role.REVIEWER)
    held = await claim(ada, job)
    for without in (
        ada.reviews.DecideReview(decision(job.id)),
        clerk.reviews.DecideReview(decision(job.id, reviewer="ada")),
        clerk.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id, reviewer="ada")),
        clerk.reviews.ReleaseReview(ReleaseReviewRequest(job_id=job.id, reviewer="ada")),
    ):
        assert (await refusal(without)).reason == "TOKEN_REQUIRED"
    assert (await me.get(job)).state == AWAITING
    again = await claim(ada, job)  # the token was lost
    assert again.claim_token != held.claim_token
    assert (await ada.reviews.DecideReview(decision(job.id, token=again.claim_token))).job.state == SUCCEEDED


async def test_a_claim_by_name_alone_is_its_keys_and_that_persons_own(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    desk, ada = [await system.caller(Role.REVIEWER, user_id=name) for name in ("", "ada")]
    await claim(desk, job, reviewer="ada")
    lost = (await claim(desk, job, reviewer="ada")).claim_token  # the desk was started again
    refused = await refusal(me.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id, reviewer="ada")))
    assert (refused.reason, "with another key" in refused.message) == ("TOKEN_REQUIRED", True)
    assert (await claim(ada, job)).claim_token != lost
    assert (await refusal(desk.reviews.ReleaseReview(ReleaseReviewRequest(job_id=job.id, reviewer="ada")))).reason == (
        "TOKEN_REQUIRED"
    )
    assert (await ada.reviews.ReleaseReview(ReleaseReviewRequest(job_id=job.id))).job.state == AWAITING


async def test_what_ran_out_is_nobodys_and_cannot_be_decided_with_its_token(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    ada, bob = [await system.caller(Role.REVIEWER, user_id=name) for name in ("ada", "bob")]
    token = (await claim(ada, job)).claim_token
    async with system.database.begin() as tx:  # time passes
        await tx.connection.execute(text("UPDATE jobs SET held_until = created_at"))
    seen = await refusal(ada.reviews.DecideReview(decision(job.id, token=token)))
    assert (seen.reason, "nobody holds it now" in seen.message) == ("CLAIM_LOST", True)
    assert (await claim(bob, job)).claimed_by == "bob"
    assert (await refusal(ada.reviews.DecideReview(decision(job.id, token=token)))).reason == "CLAIMED_BY_ANOTHER"
    assert (await kinds(me, job))[-3:] == ["claimed_by_person", "claim_expired", "claimed_by_person"]


async def test_a_claim_is_given_back_by_its_holder_or_by_an_admin(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    ada, bob = [await system.caller(Role.REVIEWER, user_id=name) for name in ("ada", "bob")]
    assert (await refusal(ada.reviews.ReleaseReview(ReleaseReviewRequest(job_id=job.id)))).reason == "NOT_CLAIMED"
    held = await claim(ada, job)
    mine = ReleaseReviewRequest(job_id=job.id, token=held.claim_token)
    assert (await refusal(bob.reviews.ReleaseReview(mine))).reason == "CLAIMED_BY_ANOTHER"
    released = (await ada.reviews.ReleaseReview(mine)).job
    assert released.state == AWAITING
    await claim(bob, job)
    anybodys = ReleaseReviewRequest(job_id=job.id, of_anybody=True, reason="He is ill.")
    assert (await refusal(ada.reviews.ReleaseReview(anybodys))).reason == "ROLE_NOT_ALLOWED"
    without = ReleaseReviewRequest(job_id=job.id, of_anybody=True)
    assert (await refusal(me.reviews.ReleaseReview(without))).reason == "FIELD_REQUIRED"
    await me.reviews.ReleaseReview(anybodys)
    assert (await claim(ada, job)).claimed_by == "ada"
    entries = (await me.reviews.ListAuditEntries(ListAuditEntriesRequest(actions=[AUDIT_ACTION_RELEASED]))).entries
    assert [(one.person, one.reason, one.details["claimed_by"]) for one in entries] == [
        ("a admin key", "He is ill.", "bob"),
        ("ada", "", "ada"),
    ]


async def test_many_who_take_the_next_one_at_once_get_different_ones(system: System, me: Caller) -> None:
    jobs = await waiting(me, system, *[engines.HUMAN] * 6)
    everybody = [await system.caller(Role.REVIEWER, user_id=f"person-{number}") for number in range(8)]
    taken = await asyncio.gather(*(take_next(person) for person in everybody))
    got = [one.review.job.id for one in taken if one.HasField("review")]
    assert sorted(got) == sorted(job.id for job in jobs)
    assert all(one.review.claim_token for one in taken if one.HasField("review"))
    await makers.until(lambda: _is_claimed(me, 6))


async def _is_claimed(me: Caller, number: int) -> bool:
    return sum(one.claimed for one in (await me.reviews.GetReviewStats(GetReviewStatsRequest())).waiting) == number


async def test_the_next_one_is_the_most_urgent_that_matches_and_is_not_passed_over(system: System, me: Caller) -> None:
    jobs = await waiting(me, system, *[engines.HUMAN] * 4)
    for job, hours in zip(jobs, (4, 3, 30, 1), strict=True):
        await age(system, job, hours)
    first = await take_next(me, reviewer="ada")
    assert (first.review.job.subject_id, first.left) == ("cr-2", 3)
    second = await take_next(me, reviewer="ada", except_job_ids=[jobs[0].id])
    assert (second.review.job.subject_id, second.left) == ("cr-1", 1)
    third = await take_next(me, reviewer="ada", filter=ReviewFilter(subject_id="cr-3"))
    assert (third.review.job.subject_id, third.left) == ("cr-3", 0)
    assert not (await take_next(me, filter=ReviewFilter(subject_id="cr-3"))).HasField("review")


async def test_a_next_one_whose_answer_was_lost_is_given_again(system: System, me: Caller) -> None:
    await waiting(me, system, *[engines.HUMAN] * 2)
    token = str(uuid.uuid4())
    first = await take_next(me, reviewer="ada", token=token)
    again = await take_next(me, reviewer="ada", token=token)
    assert (again.review.job.id, again.review.claim_token) == (first.review.job.id, token)
    others = await take_next(me, reviewer="bob", token=token)
    assert others.review.job.id != first.review.job.id


@on_sqlite
async def test_what_is_wrong_with_a_question_is_named(system: System, me: Caller) -> None:
    nobodys = str(uuid.uuid4())
    for call, field in (
        (take_next(me, token="x"), "token"),
        (take_next(me, except_job_ids=["", ""]), "except_job_ids[0]"),
        (take_next(me, except_job_ids=[nobodys] * 501), "except_job_ids"),
        (take_next(me, filter=ReviewFilter(claimed_by="ada")), "filter.claimed_by"),
        (take_next(me, filter=ReviewFilter(claimed_by_me=True)), "filter.claimed_by_me"),
        (take_next(me, lease=Duration(seconds=1)), "lease"),
        (listed(me, priorities=[0]), "filter.priorities[0]"),
        (listed(me, categories=[99]), "filter.categories[0]"),
        (listed(me, user_id="x" * 201), "filter.user_id"),
        (listed(me, subject_id="\0"), "filter.subject_id"),
        (listed(me, waiting_longer_than=Duration(seconds=-1)), "filter.waiting_longer_than"),
        (me.reviews.RenewReview(RenewReviewRequest(job_id=nobodys)), "token"),
        (me.reviews.ListAuditEntries(ListAuditEntriesRequest(job_id="x")), "job_id"),
        (me.reviews.ListAuditEntries(ListAuditEntriesRequest(actions=[0])), "actions[0]"),  # type: ignore[list-item]  # none
        (me.reviews.GetReviewStats(_window(since=0, until=32 * 86_400)), "since"),
        (me.reviews.GetReviewStats(_window(since=10, until=5)), "since"),
    ):
        seen = await refusal(call)
        assert (seen.code, seen.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def _window(*, since: int, until: int) -> GetReviewStatsRequest:
    request = GetReviewStatsRequest()
    request.since.FromSeconds(1_700_000_000 + since)
    request.until.FromSeconds(1_700_000_000 + until)
    return request


# --- the watch -------------------------------------------------------------------------------------------


async def news_of(stream: Any) -> WatchReviewQueueResponse:
    async with asyncio.timeout(60.0):
        one: WatchReviewQueueResponse = await stream.read()
    return one


async def test_a_watch_shows_what_waits_and_then_what_enters_changes_and_leaves(system: System, me: Caller) -> None:
    [first] = await waiting(me, system, engines.HUMAN)
    stream: Any = me.reviews.WatchReviewQueue(WatchReviewQueueRequest(), timeout=None)
    assert (await news_of(stream)).review.job.id == first.id
    assert (await news_of(stream)).snapshot_complete
    async with system.reviewer(ScriptedEngine()):
        approved = await me.submit(engines.APPROVE, "not for people")
        await me.until(approved, SUCCEEDED)
        second = await me.until(await me.submit(engines.HUMAN, "cr-second"), AWAITING)
    entered = (await news_of(stream)).review
    assert (entered.job.id, entered.creative.headline) == (second.id, engines.HUMAN)
    held = await claim(me, first, reviewer="ada")
    changed = (await news_of(stream)).review
    assert (changed.job.id, changed.claimed_by, changed.claim_token) == (first.id, "ada", "")
    await me.reviews.DecideReview(decision(first.id, reviewer="ada", token=held.claim_token))
    left = (await news_of(stream)).left
    assert (left.job_id, left.state) == (first.id, SUCCEEDED)
    stream.cancel()


async def test_a_watch_of_a_part_of_the_queue_tells_when_something_is_part_of_it_no_more(
    system: System, me: Caller
) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    ada, bob = [await system.caller(Role.REVIEWER, user_id=name) for name in ("ada", "bob")]
    wanted = WatchReviewQueueRequest(filter=ReviewFilter(unclaimed_only=True))
    stream: Any = ada.reviews.WatchReviewQueue(wanted, timeout=None)
    assert (await news_of(stream)).HasField("review")
    assert (await news_of(stream)).snapshot_complete
    held = await claim(bob, job)
    left = (await news_of(stream)).left
    assert (left.job_id, left.state) == (job.id, AWAITING)
    await bob.reviews.ReleaseReview(ReleaseReviewRequest(job_id=job.id, token=held.claim_token))
    assert (await news_of(stream)).review.job.id == job.id
    stream.cancel()


async def test_another_tenant_watches_takes_and_reads_nothing_of_it(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    stream: Any = stranger.reviews.WatchReviewQueue(WatchReviewQueueRequest(), timeout=None)
    assert (await news_of(stream)).snapshot_complete
    assert not (await take_next(stranger)).HasField("review")
    await me.reviews.DecideReview(decision(job.id))
    assert not (await stranger.reviews.ListAuditEntries(ListAuditEntriesRequest())).entries
    assert not (await stranger.reviews.ListAuditEntries(ListAuditEntriesRequest(job_id=job.id))).entries
    figures = await stranger.reviews.GetReviewStats(GetReviewStatsRequest())
    assert (figures.everybody.decisions, len(figures.reviewers)) == (0, 0)
    async with system.reviewer(ScriptedEngine()):
        own = await stranger.submit(engines.HUMAN, "own")
        assert (await news_of(stream)).review.job.id == own.id
    stream.cancel()


async def test_an_admin_key_bound_to_a_user_sees_that_users_part_and_decides_none_of_it(
    system: System, me: Caller
) -> None:
    ada = await system.caller(Role.ADMIN, user_id="ada")
    async with system.reviewer(ScriptedEngine()):
        hers = await ada.until(await ada.submit(engines.HUMAN, "hers"), AWAITING)
        theirs = await me.until(await me.submit(engines.HUMAN, "theirs", user_id="bob"), AWAITING)
    assert await listed(ada) == ["hers"]
    refused = await refusal(ada.reviews.DecideReview(decision(hers.id)))
    assert (refused.reason, (await me.get(hers)).state) == ("ROLE_NOT_ALLOWED", AWAITING)
    for job in (hers, theirs):
        await me.reviews.DecideReview(decision(job.id, reviewer="carl"))
    entries = (await ada.reviews.ListAuditEntries(ListAuditEntriesRequest())).entries
    assert {one.subject_id for one in entries} == {"hers"}
    assert (await ada.reviews.GetReviewStats(GetReviewStatsRequest())).everybody.decisions == 1


# --- the record and the figures --------------------------------------------------------------------------


async def test_a_claim_whose_job_leaves_the_queue_undecided_ends_on_record(system: System, me: Caller) -> None:
    cancelled, superseded, again = jobs = await waiting(me, system, engines.HUMAN, engines.HUMAN, engines.REFUSE)
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    for job in jobs:
        await claim(ada, job)
    async with system.database.begin() as tx:  # time passes for one of them
        ran_out = update(schema.jobs).where(schema.jobs.c.id == uuid.UUID(again.id))
        await tx.connection.execute(ran_out.values(held_until=clock.after(-1.0)))
    await me.jobs.CancelJob(CancelJobRequest(job_id=cancelled.id, reason="withdrawn"))
    new = await me.submit(engines.APPROVE, superseded.subject_id)
    assert (await me.jobs.ReviewJobsAgain(ReviewJobsAgainRequest(job_ids=[again.id]))).job_ids == [again.id]

    async def last(job: Job) -> AuditEntry:
        entries = (await me.reviews.ListAuditEntries(ListAuditEntriesRequest(job_id=job.id))).entries
        assert [one.action for one in entries[1:]] == [AUDIT_ACTION_CLAIMED]
        return entries[0]

    entry = await last(cancelled)
    assert (entry.action, entry.person, entry.reason) == (AUDIT_ACTION_RELEASED, "a admin key", "withdrawn")
    assert (dict(entry.details), bool(entry.key_id)) == ({"claimed_by": "ada", "because": "cancelled"}, True)
    entry = await last(superseded)
    assert (entry.action, entry.person) == (AUDIT_ACTION_RELEASED, "")
    assert dict(entry.details) == {"claimed_by": "ada", "because": "superseded", "superseded_by": new.id}
    entry = await last(again)
    assert (entry.action, entry.person, [*entry.details]) == (AUDIT_ACTION_EXPIRED, "ada", ["claimed_until"])


async def test_the_record_tells_who_did_what_with_which_key_and_why(system: System, me: Caller) -> None:
    first, second = await waiting(me, system, engines.HUMAN, engines.HUMAN)
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    held = await claim(ada, first)
    await ada.reviews.DecideReview(decision(first.id, DECISION_REJECTED, "Claims too much.", token=held.claim_token))
    await claim(ada, second)
    whole = (await me.reviews.ListAuditEntries(ListAuditEntriesRequest(job_id=first.id))).entries
    assert [one.action for one in whole] == [AUDIT_ACTION_DECIDED, AUDIT_ACTION_CLAIMED]
    decided = whole[0]
    assert (decided.person, decided.key_name, decided.reason) == ("ada", "a reviewer key", "Claims too much.")
    assert (decided.job_id, decided.subject_id) == (first.id, "cr-0")
    assert uuid.UUID(decided.key_id)
    assert dict(decided.details) == {
        "decision": "rejected",
        "agreement": "no_advice",
        "ai_recommendation": "human",
        "policy_triggered": "uncertain",
    }
    seen: list[str] = []
    request = ListAuditEntriesRequest(person="ada", page_size=1)
    while True:
        page = await ada.reviews.ListAuditEntries(request)
        seen += [one.id for one in page.entries]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 3
    request = ListAuditEntriesRequest(page_token=page.next_page_token or request.page_token, person="bob")
    assert (await refusal(ada.reviews.ListAuditEntries(request))).reason == "INVALID_PAGE_TOKEN"


async def test_a_claim_that_ran_out_is_ended_by_itself_and_put_on_record(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, engines.HUMAN)
    await claim(me, job, reviewer="ada")
    async with system.database.begin() as tx:
        await tx.connection.execute(text("UPDATE jobs SET held_until = created_at"))

    async def noticed() -> bool:
        request = ListAuditEntriesRequest(actions=[AUDIT_ACTION_EXPIRED])
        found = (await me.reviews.ListAuditEntries(request)).entries
        return [(one.person, one.key_id) for one in found] == [("ada", "")]

    await makers.until(noticed)
    assert (await kinds(me, job))[-1] == "claim_expired"


async def test_the_figures_tell_what_waits_and_how_people_decide(system: System, me: Caller) -> None:
    await put_mode(system, Mode.REQUIRE_HUMAN)
    approve, reject, failed, late = await waiting(
        me, system, engines.APPROVE, engines.REJECT, engines.REFUSE, engines.APPROVE
    )
    await age(system, late, 25)
    for job, who, word, stands in (
        (approve, "ada", DECISION_APPROVED, AGREEMENT_AGREED),
        (reject, "ada", DECISION_APPROVED, AGREEMENT_OVERRODE),
        (failed, "bob", DECISION_REJECTED, AGREEMENT_NO_ADVICE),
    ):
        decided = (await me.reviews.DecideReview(decision(job.id, word, reviewer=who))).job
        assert decided.creative_review.human_review.agreement == stands
    await claim(me, late)
    figures = await me.reviews.GetReviewStats(GetReviewStatsRequest())
    high, normal, low = figures.waiting
    assert (high.waiting, high.HasField("oldest_age"), low.waiting) == (0, False, 0)
    assert (normal.waiting, normal.claimed, normal.overdue) == (1, 1, 1)
    assert normal.oldest_age.seconds >= 25 * 3600
    assert [(one.reviewer, one.decisions, one.approved) for one in figures.reviewers] == [("ada", 2, 2), ("bob", 1, 0)]
    everybody = figures.everybody
    assert (everybody.decisions, everybody.agreed, everybody.overrode) == (3, 1, 1)
    assert 1 <= everybody.active_hours <= 2  # the clock may strike meanwhile
    assert everybody.decisions_per_hour == 3 / everybody.active_hours
    assert everybody.HasField("median_time")
    [scam] = figures.categories
    assert (scam.category, scam.overrides.override_rate) == (CATEGORY_SCAM, 1.0)
    triggers = {one.policy_triggered: one.overrides for one in figures.triggers}
    assert set(triggers) == {POLICY_TRIGGER_HUMAN_REQUIRED}
    assert (triggers[POLICY_TRIGGER_HUMAN_REQUIRED].advised, triggers[POLICY_TRIGGER_HUMAN_REQUIRED].override_rate) == (
        2,
        0.5,
    )
    assert sum(one.decisions for one in figures.hours) == 3
    before = GetReviewStatsRequest()
    before.until.FromSeconds(1_700_000_000)
    assert (await me.reviews.GetReviewStats(before)).everybody.decisions == 0
