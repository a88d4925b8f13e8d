"""PolicyService: versions and which is live, what another would have decided, and what waits decided again."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from sqlalchemy import select, update

from cli import main
from imprimatur.client import Client
from imprimatur.criteria import Criterion, Effect
from imprimatur.evidence import Category
from imprimatur.job import Happening
from imprimatur.policy import Mode, Policy
from imprimatur.storage import announcements, clock, policies, redecisions, tenants
from imprimatur.storage.schema import job_events, jobs
from imprimatur.tenancy import Role
from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import policy_service_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import ListJobEventsRequest
from imprimatur.v1.review_service_pb2 import (
    AUDIT_ACTION_CLAIMED,
    AUDIT_ACTION_EXPIRED,
    AUDIT_ACTION_REDECIDED,
    ClaimReviewRequest,
    DecideReviewRequest,
    ListAuditEntriesRequest,
)
from imprimatur.wire.policies import policy_from_wire, policy_to_wire
from imprimatur.wire.webhooks import body_of
from tests import makers
from tests.contract.polling import lock_waiters
from tests.service import engines
from tests.service.engines import JudgingEngine, ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_postgresql, on_sqlite
from tests.service.test_appeals import appealed
from tests.service.test_reviewing import kinds

RIVALS = Criterion(name="rivals", text="No rival is named.", effect=Effect.BLOCKS)
LENIENT = Policy(auto_approve_threshold=0.55)
APPROVED, REJECTED, PENDING = creative.DECISION_APPROVED, creative.DECISION_REJECTED, creative.DECISION_PENDING


async def create(me: Caller, policy: Policy, **more: Any) -> pb.PolicyVersion:
    request = pb.CreatePolicyVersionRequest(policy=policy_to_wire(policy), **more)
    return (await me.policies.CreatePolicyVersion(request)).version


async def activate(me: Caller, version: int, **more: Any) -> pb.PolicyVersion:
    request = pb.ActivatePolicyVersionRequest(version=version, **more)
    return (await me.policies.ActivatePolicyVersion(request)).version


async def redecide(me: Caller, **more: Any) -> pb.RedecidePendingResponse:
    return await me.policies.RedecidePending(pb.RedecidePendingRequest(**more))


async def preview(me: Caller, policy: Policy | None = None, **more: Any) -> pb.PreviewPolicyResponse:
    if policy is not None:
        more["policy"] = policy_to_wire(policy)
    return await me.policies.PreviewPolicy(pb.PreviewPolicyRequest(**more))


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def reviewed(system: System, me: Caller, *headlines: str) -> list[Job]:
    """Jobs with these headlines, when the machine is done with them."""
    async with system.reviewer(ScriptedEngine()):
        jobs = [await me.submit(headline) for headline in headlines]
        return [await me.until(job, AWAITING, SUCCEEDED) for job in jobs]


# --- versions --------------------------------------------------------------------------------------------


async def test_a_new_version_decides_nothing_before_it_is_activated(system: System, me: Caller) -> None:
    strict = Policy(
        mode=Mode.REQUIRE_HUMAN, criteria=(RIVALS,), model="house-model", blocked=frozenset({Category.HATE})
    )
    made = await create(me, strict, note="For the fair.", author="ada")
    assert (made.version, made.live, made.note, made.created_by) == (2, False, "For the fair.", "ada")
    assert not made.HasField("last_activation")
    assert policy_from_wire(made.policy) == strict
    [first] = await reviewed(system, me, engines.APPROVE)
    assert (first.state, first.creative_review.ai_review.policy_version) == (SUCCEEDED, 1)
    live = await activate(me, 2, live_version=1, note="It is on.")
    assert (live.live, live.last_activation.from_version, live.last_activation.to_version) == (True, 1, 2)
    assert (live.last_activation.activated_by, live.last_activation.note) == ("a admin key", "It is on.")
    [second] = await reviewed(system, me, engines.APPROVE)
    assert (second.state, second.creative_review.ai_review.policy_version) == (AWAITING, 2)


async def test_versions_and_the_record_of_what_was_live_are_listed_newest_first(system: System, me: Caller) -> None:
    before = counted("imprimatur_policy_activations_total", mode="require-human")
    await create(me, Policy(mode=Mode.REQUIRE_HUMAN), activate=True, note="Stop.")
    await create(me, LENIENT)
    await activate(me, 1, author="ada")
    assert (await activate(me, 1)).live  # which it is: nothing is noted
    assert counted("imprimatur_policy_activations_total", mode="require-human") == before + 1
    async with Client(f"127.0.0.1:{system.port}", api_key=str(me.key)) as client:
        versions = [one async for one in client.policies.versions(page_size=2)]
        record = [one async for one in client.policies.activations(page_size=1)]
        assert (await client.policies.get()).version == 1
    assert [(one.version, one.live, one.last_activation.number) for one in versions] == [
        (3, False, 0),
        (2, False, 2),
        (1, True, 3),
    ]
    assert [(one.number, one.from_version, one.to_version, one.activated_by, one.note) for one in record] == [
        (3, 2, 1, "ada", ""),
        (2, 1, 2, "a admin key", "Stop."),
        (1, 0, 1, "", ""),
    ]
    times = [one.time.ToDatetime() for one in record]
    assert times == sorted(times, reverse=True)


async def test_a_change_meant_for_another_version_is_refused(me: Caller) -> None:
    await create(me, LENIENT, activate=True, based_on_version=1)
    request = pb.CreatePolicyVersionRequest(policy=policy_to_wire(Policy()), based_on_version=1, activate=True)
    for call in (
        me.policies.CreatePolicyVersion(request),
        me.policies.ActivatePolicyVersion(pb.ActivatePolicyVersionRequest(version=1, live_version=1)),
        me.policies.RedecidePending(pb.RedecidePendingRequest(live_version=1)),
    ):
        seen = await refusal(call)
        assert (seen.code, seen.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POLICY_CHANGED")
        assert seen.metadata["live_version"] == "2"
    versions = (await me.policies.ListPolicyVersions(pb.ListPolicyVersionsRequest())).versions
    assert [one.version for one in versions] == [2, 1]


async def test_versions_differ_setting_by_setting(me: Caller) -> None:
    reworded = replace(RIVALS, text="No rival is shown.")
    await create(me, Policy(model="house-model", criteria=(RIVALS,)))
    await create(me, Policy(detect_min=0.2, always_human=frozenset({Category.ALCOHOL}), criteria=(reworded,)))
    answer = await me.policies.DiffPolicyVersions(pb.DiffPolicyVersionsRequest(from_version=2, to_version=3))
    found = {one.field: (json.loads(one.before or "null"), json.loads(one.after or "null")) for one in answer.changes}
    assert list(found) == ["detect_min", "always_human", "model", "criteria.rivals"]
    assert found["detect_min"] == (0.3, 0.2)
    assert found["always_human"][1] == ["alcohol"]
    assert found["model"] == ("house-model", None)
    assert found["criteria.rivals"][1] == {"text": "No rival is shown.", "effect": "blocks"}
    from_live = await me.policies.DiffPolicyVersions(pb.DiffPolicyVersionsRequest(to_version=2))
    assert (from_live.from_version, from_live.to_version) == (1, 2)
    assert [one.field for one in from_live.changes] == ["model", "criteria.rivals"]


async def test_whether_evidence_is_reused_is_kept_whoever_changes_what(system: System, me: Caller) -> None:
    async def operate(**settings: Any) -> None:
        async with system.database.begin() as tx:
            await tenants.change_policy(tx, system.tenant_id, settings)

    async def live() -> Policy:
        async with system.database.read() as reader:
            return (await tenants.live_policy(reader, system.tenant_id)).policy

    assert (await live()).reuse_evidence
    await operate(reuse_evidence=False)
    shown = (await me.policies.GetPolicy(pb.GetPolicyRequest())).version
    assert (shown.policy.HasField("reuse_evidence"), shown.policy.reuse_evidence) == (True, False)
    diff = await me.policies.DiffPolicyVersions(pb.DiffPolicyVersionsRequest(from_version=1, to_version=2))
    assert [(one.field, one.before, one.after) for one in diff.changes] == [("reuse_evidence", "true", "false")]
    await create(me, replace(policy_from_wire(shown.policy), criteria=(RIVALS,)), activate=True, based_on_version=2)
    await operate(mode=Mode.REQUIRE_HUMAN)
    assert await live() == Policy(mode=Mode.REQUIRE_HUMAN, criteria=(RIVALS,), reuse_evidence=False)
    shown.policy.ClearField("reuse_evidence")
    await me.policies.CreatePolicyVersion(pb.CreatePolicyVersionRequest(policy=shown.policy, activate=True))
    assert await live() == Policy()


async def test_another_tenant_has_a_policy_of_its_own(system: System, me: Caller) -> None:
    await create(me, LENIENT, activate=True)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    [theirs] = (await stranger.policies.ListPolicyVersions(pb.ListPolicyVersionsRequest())).versions
    assert (theirs.version, policy_from_wire(theirs.policy)) == (1, Policy())
    assert len((await stranger.policies.ListPolicyActivations(pb.ListPolicyActivationsRequest())).activations) == 1
    for call in (
        stranger.policies.GetPolicy(pb.GetPolicyRequest(version=2)),
        stranger.policies.ActivatePolicyVersion(pb.ActivatePolicyVersionRequest(version=2)),
        stranger.policies.DiffPolicyVersions(pb.DiffPolicyVersionsRequest(from_version=2)),
        stranger.policies.PreviewPolicy(pb.PreviewPolicyRequest(version=2)),
    ):
        seen = await refusal(call)
        assert (seen.code, seen.reason) == (grpc.StatusCode.NOT_FOUND, "POLICY_VERSION_NOT_FOUND")


@on_sqlite
async def test_there_are_so_many_versions_and_no_more(me: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "MOST_VERSIONS", 2)
    await create(me, LENIENT)
    seen = await refusal(create(me, LENIENT))
    assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_POLICY_VERSIONS")


def without(name: str) -> pb.Policy:
    policy = policy_to_wire(Policy())
    policy.ClearField(name)  # type: ignore[arg-type]  # any of its fields
    return policy


def with_(**fields: Any) -> pb.Policy:
    policy = policy_to_wire(Policy())
    policy.MergeFrom(pb.Policy(**fields))
    return policy


def rule(**fields: Any) -> pb.Policy:
    usual = {"name": "rivals", "text": "No rival.", "effect": pb.CRITERION_EFFECT_BLOCKS}
    return with_(criteria=[pb.Criterion(**{**usual, **fields})])


REQUIRED = (
    "mode",
    "auto_approve_threshold",
    "auto_reject_threshold",
    "detect_min",
    "block_min",
    "always_human",
    "blocked",
)
BAD_POLICIES: list[tuple[pb.Policy, str, str]] = [
    *((without(name), name, "FIELD_REQUIRED") for name in REQUIRED),
    (with_(mode=77), "mode", "INVALID_FIELD"),
    (with_(auto_approve_threshold=1.5), "auto_approve_threshold", "INVALID_FIELD"),
    (with_(detect_min=float("nan")), "detect_min", "INVALID_FIELD"),
    (with_(auto_reject_threshold=0.9), "auto_reject_threshold", "INVALID_FIELD"),
    (with_(blocked=pb.CategoryList(categories=[77])), "blocked.categories[6]", "INVALID_FIELD"),  # type: ignore[list-item]  # to the stubs a number is no member
    (with_(blocked=pb.CategoryList(categories=[14])), "blocked.categories[6]", "INVALID_FIELD"),  # type: ignore[list-item]  # to the stubs a number is no member
    (with_(blocked=pb.CategoryList(categories=[5])), "blocked", "INVALID_FIELD"),  # type: ignore[list-item]  # alcohol
    (with_(model="m" * 201), "model", "INVALID_FIELD"),
    (with_(model="m\0"), "model", "NUL_CHARACTER"),
    (rule(name="No rivals"), "criteria[0].name", "INVALID_FIELD"),
    (rule(text=""), "criteria[0].text", "INVALID_FIELD"),
    (rule(text="\x1b[31m"), "criteria[0].text", "INVALID_FIELD"),
    (rule(effect=0), "criteria[0].effect", "INVALID_FIELD"),
    (with_(criteria=[*rule().criteria, *rule().criteria]), "criteria[1].name", "INVALID_FIELD"),
]


@on_sqlite
async def test_a_policy_that_cannot_be_is_refused_by_its_field(me: Caller) -> None:
    for policy, field, reason in BAD_POLICIES:
        for call in (
            me.policies.CreatePolicyVersion(pb.CreatePolicyVersionRequest(policy=policy)),
            me.policies.PreviewPolicy(pb.PreviewPolicyRequest(policy=policy)),
        ):
            seen = await refusal(call)
            assert (seen.reason, list(seen.violations)) == (reason, [f"policy.{field}"]), field
    assert len((await me.policies.ListPolicyVersions(pb.ListPolicyVersionsRequest())).versions) == 1


BAD_REQUESTS: list[tuple[str, Any, str, str]] = [
    ("CreatePolicyVersion", pb.CreatePolicyVersionRequest(), "policy", "FIELD_REQUIRED"),
    ("CreatePolicyVersion", pb.CreatePolicyVersionRequest(policy=with_(), note="n" * 1001), "note", "FIELD_TOO_LONG"),
    (
        "CreatePolicyVersion",
        pb.CreatePolicyVersionRequest(policy=with_(), author="a" * 201),
        "author",
        "FIELD_TOO_LONG",
    ),
    (
        "CreatePolicyVersion",
        pb.CreatePolicyVersionRequest(policy=with_(), based_on_version=-1),
        "based_on_version",
        "INVALID_FIELD",
    ),
    ("ActivatePolicyVersion", pb.ActivatePolicyVersionRequest(), "version", "FIELD_REQUIRED"),
    ("ActivatePolicyVersion", pb.ActivatePolicyVersionRequest(version=1, note="\0"), "note", "NUL_CHARACTER"),
    (
        "ActivatePolicyVersion",
        pb.ActivatePolicyVersionRequest(version=1, live_version=-1),
        "live_version",
        "INVALID_FIELD",
    ),
    ("GetPolicy", pb.GetPolicyRequest(version=-1), "version", "INVALID_FIELD"),
    ("ListPolicyVersions", pb.ListPolicyVersionsRequest(page_size=-1), "page_size", "INVALID_FIELD"),
    ("ListPolicyVersions", pb.ListPolicyVersionsRequest(page_token="x"), "page_token", "INVALID_PAGE_TOKEN"),
    ("ListPolicyActivations", pb.ListPolicyActivationsRequest(page_token="WzFd"), "page_token", "INVALID_PAGE_TOKEN"),
    ("DiffPolicyVersions", pb.DiffPolicyVersionsRequest(to_version=-2), "to_version", "INVALID_FIELD"),
    ("PreviewPolicy", pb.PreviewPolicyRequest(), "tried", "FIELD_REQUIRED"),
    ("PreviewPolicy", pb.PreviewPolicyRequest(version=0, limit=1001), "limit", "INVALID_FIELD"),
    (
        "PreviewPolicy",
        pb.PreviewPolicyRequest(version=0, created_from=Timestamp(nanos=-1)),
        "created_from",
        "INVALID_FIELD",
    ),
    ("RedecidePending", pb.RedecidePendingRequest(limit=501), "limit", "INVALID_FIELD"),
    ("RedecidePending", pb.RedecidePendingRequest(live_version=-1), "live_version", "INVALID_FIELD"),
    ("RedecidePending", pb.RedecidePendingRequest(page_token="WzFd"), "page_token", "INVALID_PAGE_TOKEN"),
]


@on_sqlite
async def test_what_cannot_be_meant_is_refused_by_its_field(me: Caller) -> None:
    for rpc, request, field, reason in BAD_REQUESTS:
        seen = await refusal(getattr(me.policies, rpc)(request))
        assert (seen.code, seen.reason, list(seen.violations)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            reason,
            [field],
        ), (rpc, field)


@on_sqlite
async def test_a_page_token_is_good_for_its_list_alone(me: Caller) -> None:
    await create(me, LENIENT, activate=True)
    page = await me.policies.ListPolicyVersions(pb.ListPolicyVersionsRequest(page_size=1))
    foreign = pb.ListPolicyActivationsRequest(page_token=page.next_page_token)
    assert (await refusal(me.policies.ListPolicyActivations(foreign))).reason == "INVALID_PAGE_TOKEN"


# --- the roll-back switch --------------------------------------------------------------------------------


async def test_an_older_version_made_live_again_holds_for_queued_and_running_jobs(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    careful = await create(me, Policy(mode=Mode.REQUIRE_HUMAN), activate=True)
    await create(me, Policy(), activate=True)
    async with system.reviewer(engine, slots=1):
        running = await me.submit("gate", "running")
        await me.until(running, RUNNING)
        queued = await me.submit(engines.REJECT, "queued")
        await activate(me, careful.version, note="Back.")
        engine.open("running")
        for job in (running, queued):
            review = (await me.until(job, AWAITING)).creative_review
            assert review.ai_review.policy_triggered == creative.POLICY_TRIGGER_HUMAN_REQUIRED
            assert review.ai_review.policy_version == careful.version


# --- decided again ---------------------------------------------------------------------------------------


async def test_what_waits_is_decided_by_the_live_policy_from_what_was_found(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    await create(me, Policy(mode=Mode.REQUIRE_HUMAN), activate=True)
    good, bad, human, refused = await reviewed(
        system, me, engines.APPROVE, engines.REJECT, engines.HUMAN, engines.REFUSE
    )
    held = (await reviewed(system, me, engines.APPROVE))[0]
    await me.reviews.ClaimReview(ClaimReviewRequest(job_id=held.id))
    await create(me, Policy(), activate=True)
    before = counted("imprimatur_jobs_redecided_total", decision="approved")
    dry = await redecide(me, dry_run=True)
    assert {(await me.get(job)).state for job in (good, bad, human, refused, held)} == {AWAITING}
    done = await redecide(me)
    for answer in (dry, done):
        assert answer.policy_version == 3
        assert (answer.held, answer.without_evidence, answer.next_page_token) == (1, 1, "")
        assert {(one.decision, one.policy_triggered, one.count) for one in answer.counts} == {
            (APPROVED, creative.POLICY_TRIGGER_AUTO_APPROVE, 1),
            (REJECTED, creative.POLICY_TRIGGER_BLOCKED_CATEGORY, 1),
            (PENDING, creative.POLICY_TRIGGER_UNCERTAIN, 1),
        }
        assert [(one.job_id, one.subject_id, one.decision) for one in answer.redecided] == [
            (good.id, good.subject_id, APPROVED),
            (bad.id, bad.subject_id, REJECTED),
        ]
    assert counted("imprimatur_jobs_redecided_total", decision="approved") == before + 1
    approved = await me.get(good)
    assert (approved.state, approved.result_count, approved.progress.percent) == (SUCCEEDED, 1, 100)
    assert approved.HasField("finish_time")
    review = approved.creative_review
    assert (review.decision, review.ai_review.decision, review.ai_review.policy_version) == (APPROVED, APPROVED, 3)
    assert review.ai_review.evidence == good.creative_review.ai_review.evidence
    assert not review.HasField("human_review")
    assert await kinds(me, good) == ["submitted", "started", "awaiting_review", "redecided"]
    last = (await me.jobs.ListJobEvents(ListJobEventsRequest(job_id=good.id))).events[-1]
    assert last.details["policy_version"] == "3"
    assert last.details["by"] == "a admin key"
    record = (await me.reviews.ListAuditEntries(ListAuditEntriesRequest(actions=[AUDIT_ACTION_REDECIDED]))).entries
    assert {(one.job_id, one.subject_id, one.person, one.key_name) for one in record} == {
        (job.id, job.subject_id, "a admin key", "a admin key") for job in (good, bad)
    }
    [entry] = [one for one in record if one.job_id == good.id]
    assert (bool(entry.key_id), entry.reason) == (True, review.ai_review.reason)
    assert dict(entry.details) == {
        **{"decision": "approved", "policy_triggered": "auto_approve", "policy_version": "3"},
        **{"decision_before": "pending", "policy_triggered_before": "human_required"},
    }
    for job in (human, refused, held):
        assert (await me.get(job)).version == job.version + (job is held)  # by being claimed
    assert not (await redecide(me)).redecided
    assert (await me.get(refused)).error.code == "refused"


@on_postgresql
async def test_an_activation_waits_for_what_is_being_decided_again(system: System, me: Caller) -> None:
    [job] = await reviewed(system, me, engines.UNSURE)
    await create(me, LENIENT, activate=True)
    async with system.database.begin() as tx:
        await tx.connection.execute(select(jobs.c.id).with_for_update())
        deciding = asyncio.create_task(redecide(me))
        await lock_waiters(system.database, 1)
        activating = asyncio.create_task(activate(me, 1))
        await lock_waiters(system.database, 2)
    assert [one.job_id for one in (await deciding).redecided] == [job.id]
    assert (await activating).live


@on_postgresql
async def test_a_claim_that_ran_out_is_on_record_before_what_it_was_for_is_decided_again(
    system: System, me: Caller
) -> None:
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    [job] = await reviewed(system, me, engines.UNSURE)
    await ada.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id))
    async with system.database.begin() as tx:
        await tx.connection.execute(update(jobs).values(held_until=clock.after(-1.0)))
    await create(me, LENIENT, activate=True)
    assert [one.job_id for one in (await redecide(me)).redecided] == [job.id]
    entries = (await me.reviews.ListAuditEntries(ListAuditEntriesRequest(job_id=job.id))).entries
    assert [(one.action, one.person) for one in entries] == [
        (AUDIT_ACTION_REDECIDED, "a admin key"),
        (AUDIT_ACTION_EXPIRED, "ada"),
        (AUDIT_ACTION_CLAIMED, "ada"),
    ]
    assert (await kinds(me, job))[-3:] == ["claimed_by_person", "claim_expired", "redecided"]


@on_postgresql
async def test_what_is_decided_again_is_found_by_the_categories_that_count_now(system: System, me: Caller) -> None:
    async def categories() -> list[str]:
        async with system.database.read() as reader:
            found: list[str] = (await reader.connection.execute(select(jobs.c.categories))).scalar_one()
        return found

    await create(me, Policy(mode=Mode.REQUIRE_HUMAN), activate=True)
    await reviewed(system, me, engines.REJECT)
    assert await categories() == ["scam"]
    await create(me, Policy(detect_min=0.995, block_min=0.999), activate=True)
    [decided] = (await redecide(me)).redecided
    assert (decided.decision, decided.policy_triggered) == (REJECTED, creative.POLICY_TRIGGER_AUTO_REJECT)
    assert await categories() == []


@on_postgresql
async def test_an_appeal_is_left_to_people_and_counted_by_no_preview(system: System, me: Caller) -> None:
    [old] = await reviewed(system, me, engines.REJECT)
    appeal = await appealed(me, system, old)
    looked = await preview(me, Policy())
    assert (looked.looked_at, len(looked.differing)) == (1, 0)
    answer = await redecide(me)
    assert (len(answer.counts), answer.held, answer.without_evidence) == (0, 0, 0)
    assert (await me.get(appeal)).state == AWAITING


async def test_it_goes_on_in_parts_and_each_job_is_looked_at_once(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await reviewed(system, me, *[engines.UNSURE] * 5)
    await create(me, LENIENT, activate=True)
    first = await redecide(me, limit=2)
    assert [one.job_id for one in first.redecided] == [job.id for job in jobs[:2]]
    assert (
        await refusal(
            me.policies.RedecidePending(pb.RedecidePendingRequest(page_token=first.next_page_token, dry_run=True))
        )
    ).reason == "INVALID_PAGE_TOKEN"
    monkeypatch.setattr(redecisions, "MOST_BYTES_AT_ONCE", 1)  # one is larger than that
    async with Client(f"127.0.0.1:{system.port}", api_key=str(me.key)) as client:
        rest = await client.policies.redecide(live=2)
    assert [one.job_id for one in rest.redecided] == [job.id for job in jobs[2:]]
    assert [(one.decision, one.count) for one in rest.counts] == [(APPROVED, 3)]


async def test_what_was_not_examined_is_not_approved_by_looking_again(system: System, me: Caller) -> None:
    [unseen, unsure] = await reviewed(system, me, engines.UNSEEN, engines.UNSURE)
    await create(me, replace(LENIENT, criteria=(RIVALS,)), activate=True)
    answer = await redecide(me)
    assert [(one.policy_triggered, one.count) for one in answer.counts] == [
        (creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED, 2)
    ]
    await create(me, LENIENT, activate=True)
    assert [one.job_id for one in (await redecide(me)).redecided] == [unsure.id]
    assert (await me.get(unseen)).state == AWAITING


async def test_what_another_model_found_decides_nothing_where_the_policy_names_one(system: System, me: Caller) -> None:
    of_house = ScriptedEngine()
    of_house.identity = replace(of_house.identity, model="house-model")
    await create(me, Policy(mode=Mode.REQUIRE_HUMAN), activate=True)
    async with system.reviewer(of_house):
        by_house = await me.until(await me.submit(engines.APPROVE), AWAITING)
    [by_none] = await reviewed(system, me, engines.APPROVE)
    named = Policy(model="house-model")
    foretold = await preview(me, named)
    assert {(one.job_id, one.after) for one in foretold.differing} == {
        (by_house.id, APPROVED),
        (by_none.id, creative.DECISION_UNSPECIFIED),
    }
    assert "nobody can say" in next(one.reason for one in foretold.differing if one.job_id == by_none.id)
    await create(me, named, activate=True)
    answer = await redecide(me)
    assert [one.job_id for one in answer.redecided] == [by_house.id]
    assert (answer.by_another_model, answer.without_evidence) == (1, 0)
    assert (await me.get(by_none)).state == AWAITING
    await create(me, replace(named, mode=Mode.AUTO_APPROVE), activate=True)
    assert [one.job_id for one in (await redecide(me)).redecided] == [by_none.id]


async def test_what_was_declared_or_cut_short_is_minded_again_and_foretold(system: System, me: Caller) -> None:
    await create(me, Policy(mode=Mode.REQUIRE_HUMAN), activate=True)
    async with system.reviewer(ScriptedEngine()):
        for submitted in (
            await me.submit(engines.APPROVE, declared=[creative.CATEGORY_ALCOHOL]),
            await me.submit(engines.TRUNCATED),
        ):
            await me.until(submitted, AWAITING)
    foretold = await preview(me, Policy())
    assert [(one.before, one.after, one.count) for one in foretold.counts] == [(PENDING, PENDING, 2)]
    await create(me, Policy(), activate=True)
    answer = await redecide(me)
    assert {(one.decision, one.policy_triggered, one.count) for one in answer.counts} == {
        (PENDING, creative.POLICY_TRIGGER_SENSITIVE_CATEGORY, 1),
        (PENDING, creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED, 1),
    }
    assert not answer.redecided


async def test_another_tenants_reviews_are_neither_decided_nor_looked_at(system: System, me: Caller) -> None:
    [job] = await reviewed(system, me, engines.UNSURE)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    await create(stranger, LENIENT, activate=True)
    answer = await redecide(stranger)
    assert (list(answer.counts), answer.held, answer.without_evidence) == ([], 0, 0)
    assert (await preview(stranger, LENIENT)).looked_at == 0
    assert (await me.get(job)).version == job.version


async def test_a_webhook_tells_of_the_referral_and_of_the_decision_each_as_it_was(system: System, me: Caller) -> None:
    async with system.reviewer(ScriptedEngine()):
        submitted = await me.submit(engines.UNSURE, "cr-1", callback_url="https://ads.example/hook")
        job = await me.until(submitted, AWAITING)
    await create(me, LENIENT, activate=True)
    await redecide(me)
    async with system.database.read() as reader:
        found = await reader.connection.execute(
            select(job_events.c.job_id, job_events.c.version).where(job_events.c.webhook_pending)
        )
        pending = await announcements.pending_events(reader, [(row.job_id, row.version) for row in found])
    referred, decided = [json.loads(body_of(one.job, one.event, one.input)) for one in pending]
    assert [one.event.kind for one in pending] == [Happening.REFERRED, Happening.REDECIDED]
    assert (referred["type"], referred["data"]["status"]) == ("job.awaiting_review", "pending")
    told = referred["data"]["creative_data"]["ai_review"]
    assert (told["decision"], told["policy_triggered"]) == ("pending", "low_confidence")
    assert told["reason"] == job.creative_review.ai_review.reason
    assert told["engine"]["name"] == "scripted"
    assert (decided["type"], decided["data"]["status"]) == ("job.succeeded", "approved")
    assert decided["data"]["creative_data"]["ai_review"]["policy_triggered"] == "auto_approve"
    assert "human_review" not in decided["data"]["creative_data"]


# --- what another policy would have decided --------------------------------------------------------------


async def test_a_preview_says_what_would_have_been_decided_and_what_people_decided(system: System, me: Caller) -> None:
    good, bad, unsure, refused = await reviewed(
        system, me, engines.APPROVE, engines.REJECT, engines.UNSURE, engines.REFUSE
    )
    await me.reviews.DecideReview(
        DecideReviewRequest(job_id=unsure.id, decision=creative.DECISION_REJECTED, reason="No.")
    )
    same = await preview(me, version=0)
    assert (same.looked_at, list(same.differing)) == (4, [])
    careful = Policy(mode=Mode.REQUIRE_HUMAN)
    answer = await preview(me, LENIENT)
    assert {(one.before, one.after, one.count) for one in answer.counts} == {
        (APPROVED, APPROVED, 1),
        (REJECTED, REJECTED, 1),
        (PENDING, APPROVED, 1),
        (PENDING, PENDING, 1),
    }
    [one] = answer.differing
    assert (one.job_id, one.subject_id, one.approval_score) == (unsure.id, unsure.subject_id, 0.6)
    assert (one.before, one.before_triggered) == (PENDING, creative.POLICY_TRIGGER_LOW_CONFIDENCE)
    assert (one.after, one.after_triggered) == (APPROVED, creative.POLICY_TRIGGER_AUTO_APPROVE)
    assert one.by_person == REJECTED
    by_people = await preview(me, careful)
    assert [one.job_id for one in by_people.differing] == [bad.id, good.id]
    assert (await me.get(good)).version == good.version
    assert len((await me.policies.ListPolicyVersions(pb.ListPolicyVersionsRequest())).versions) == 1
    assert refused.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR


async def test_where_no_engine_looked_a_preview_says_that_nobody_can_say(system: System, me: Caller) -> None:
    await create(me, Policy(mode=Mode.AUTO_APPROVE), activate=True)
    [unseen] = await reviewed(system, me, engines.REJECT)
    answer = await preview(me, version=1)
    assert [(one.before, one.after) for one in answer.counts] == [(APPROVED, creative.DECISION_UNSPECIFIED)]
    [one] = answer.differing
    assert (one.job_id, one.HasField("approval_score")) == (unseen.id, False)
    assert "nobody can say" in one.reason
    assert [(one.before, one.after) for one in (await preview(me, Policy(mode=Mode.REQUIRE_HUMAN))).counts] == [
        (APPROVED, PENDING)
    ]


async def test_a_preview_looks_at_the_newest_and_at_a_time_alone(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await reviewed(system, me, engines.UNSURE, engines.UNSURE, engines.UNSURE)

    async def seen(**more: Any) -> list[str]:
        return [one.job_id for one in (await preview(me, LENIENT, **more)).differing]

    assert await seen() == [third.id, second.id, first.id]
    assert await seen(limit=2) == [third.id, second.id]
    assert await seen(created_from=second.create_time) == [third.id, second.id]
    assert await seen(created_before=second.create_time) == [first.id]
    assert await seen(created_before=Timestamp(seconds=1)) == []
    later = Timestamp()
    later.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    assert await seen(created_from=later) == []
    monkeypatch.setattr(redecisions, "MOST_BYTES_AT_ONCE", 1)
    assert await seen() == [third.id, second.id, first.id]
    monkeypatch.setattr(redecisions, "MOST_BYTES_LOOKED_AT", 1)
    assert await seen() == [third.id]


@on_sqlite
async def test_a_preview_says_where_criteria_were_not_examined(system: System, me: Caller) -> None:
    await reviewed(system, me, engines.APPROVE, engines.REFUSE)
    answer = await preview(me, Policy(criteria=(RIVALS,)))
    assert answer.without_criteria == 1
    assert [one.after_triggered for one in answer.differing] == [creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED]


@on_sqlite
async def test_reviewers_may_look_and_not_touch(system: System, me: Caller) -> None:
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    [job] = await reviewed(system, me, engines.UNSURE)
    assert [one.job_id for one in (await preview(ada, LENIENT)).differing] == [job.id]
    assert (await ada.policies.GetPolicy(pb.GetPolicyRequest())).version.version == 1
    assert (await refusal(create(ada, LENIENT))).reason == "ROLE_NOT_ALLOWED"


# --- an engine that examines criteria --------------------------------------------------------------------


@on_postgresql
async def test_evidence_about_a_criterion_serves_a_later_policy_as_long_as_it_is_worded_so(
    system: System, me: Caller
) -> None:
    to_person = replace(RIVALS, effect=Effect.TO_PERSON)
    await create(me, Policy(criteria=(to_person,)), activate=True)
    async with system.reviewer(JudgingEngine()):
        broken = await me.until(await me.submit("approve rivals"), AWAITING)
        kept = await me.until(await me.submit("approve"), SUCCEEDED)
    assert broken.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_SENSITIVE_CRITERION
    assert kept.creative_review.ai_review.evidence.criteria[0].fingerprint == RIVALS.fingerprint
    blocking = await preview(me, Policy(criteria=(RIVALS,)))
    assert [(one.job_id, one.after) for one in blocking.differing] == [(broken.id, REJECTED)]
    reworded = await preview(me, Policy(criteria=(replace(RIVALS, text="No rival is shown."),)))
    assert [(one.job_id, one.after) for one in reworded.differing] == [(kept.id, PENDING)]
    assert reworded.without_criteria == 2


# --- the commands ----------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command in a thread of its own, as it brings a loop of its own: (exit code, output, errors)."""

    async def run_command(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main.run, ["policies", *words])
        out, err = capsys.readouterr()
        said = [line for line in out.splitlines(keepends=True) if not line.startswith("\x1b")]  # the gateway logs, too
        return code, "".join(said), err

    return run_command


@on_sqlite
async def test_the_commands_do_what_the_calls_do(
    system: System, me: Caller, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRIMATUR_TARGET", f"127.0.0.1:{system.port}")
    monkeypatch.setenv("IMPRIMATUR_API_KEY", str(me.key))
    [unsure] = await reviewed(system, me, engines.UNSURE)
    code, out, _ = await run("show", "--document")
    assert code == 0
    assert Policy.from_document(json.loads(out)) == Policy()
    file = tmp_path / "policy.json"
    rule_ = {"name": "rivals", "text": "No [bold]rival[/bold].", "effect": "blocks"}
    file.write_text(json.dumps(json.loads(out) | {"auto_approve_threshold": 0.55}))
    code, out, err = await run("preview", str(file))
    assert (code, unsure.id in out) == (0, True)
    assert "1 reviews looked at, 1 decided otherwise" in err
    code, out, err = await run("create", str(file), "--note", "Easier.", "--json")
    assert (code, json.loads(out)["version"], json.loads(out)["note"]) == (0, 2, "Easier.")
    assert "policies preview 2" in err
    assert (await run("diff", "1", "2"))[1].split()[-3:] == ["auto_approve_threshold", "0.9", "0.55"]
    code, _, err = await run("activate", "2", "--live", "7")
    assert (code, "version 1 of the policy is live, and not 7" in err) == (1, True)
    assert (await run("activate", "2", "--live", "1"))[0] == 0
    dry = json.loads((await run("redecide", "--dry-run", "--json"))[1])
    assert dry["redecided"][0]["jobId"] == unsure.id
    code, out, err = await run("redecide")
    assert (code, unsure.id in out) == (0, True)
    assert "1 decided by version 2; 0 wait on" in err
    file.write_text(json.dumps({"criteria": [rule_], "reuse_evidence": False}))
    assert (await run("create", str(file), "--activate", "--based-on", "2"))[0] == 0
    code, out, _ = await run("show", "live")
    assert "No [bold]rival[/bold]." in out
    assert "examined each" in out
    assert "examined once" in (await run("show", "1"))[1]
    assert "criteria.rivals" in (await run("diff", "2"))[1]
    listed = json.loads((await run("list", "--json"))[1])["versions"]
    assert [(one["version"], one.get("live", False)) for one in listed] == [(3, True), (2, False), (1, False)]
    record = json.loads((await run("list", "--activations", "--limit", "2", "--json"))[1])["activations"]
    assert [one["toVersion"] for one in record] == [3, 2]
    assert (await run("list"))[0] == (await run("list", "--activations"))[0] == 0


@on_sqlite
async def test_a_file_that_is_no_policy_is_one_clear_line(
    system: System, me: Caller, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRIMATUR_TARGET", f"127.0.0.1:{system.port}")
    monkeypatch.setenv("IMPRIMATUR_API_KEY", str(me.key))
    file = tmp_path / "policy.json"
    for content, said in (
        ("{", "is not JSON"),
        ("[]", "must hold one JSON object"),
        ('{"auto_aprove_threshold": 0.9}', "auto_aprove_threshold: is not a policy setting"),
        ('{"criteria": [{"name": "rivals"}]}', "criteria[0].text: must be a text"),
    ):
        file.write_text(content)
        code, out, err = await run("create", str(file))
        assert (code, out, len(err.splitlines())) == (1, "", 1), content
        assert said in err
    assert "No such file" in (await run("create", str(tmp_path / "none.json")))[2]
    assert (await run("show", "newest"))[0] == 2


# --- the record at the database --------------------------------------------------------------------------


async def test_what_an_operator_puts_at_the_database_is_in_the_record(system: System, me: Caller) -> None:
    async with system.database.begin() as tx:
        await tenants.put_policy(tx, system.tenant_id, Policy(mode=Mode.REQUIRE_HUMAN))
    [last, _] = (await me.policies.ListPolicyActivations(pb.ListPolicyActivationsRequest())).activations
    assert (last.from_version, last.to_version, last.activated_by) == (1, 2, "operator")
    made = (await me.policies.GetPolicy(pb.GetPolicyRequest())).version
    assert (made.created_by, made.key_id, made.key_name, last.key_id, last.key_name) == ("operator", "", "", "", "")


async def test_the_record_says_with_which_key_whoever_is_named(system: System, me: Caller) -> None:
    async with system.database.read() as reader:
        key = await tenants.find_key(reader, str(me.key))
    assert key is not None
    made = await create(me, LENIENT, author="ada", activate=True)
    last = made.last_activation
    assert (made.created_by, made.key_id, made.key_name) == ("ada", str(key.id), "a admin key")
    assert (last.activated_by, last.key_id, last.key_name) == ("ada", str(key.id), "a admin key")
    async with system.database.begin() as tx:
        named_so = await tenants.create_key(tx, system.tenant_id, name="Operator", role=Role.ADMIN)
    for call in (
        create(me, LENIENT, author=" OPERATOR"),
        activate(me, 1, author="operator"),
        activate(await system.holder(named_so), 1),
    ):
        seen = await refusal(call)
        assert (seen.reason, list(seen.violations)) == ("INVALID_FIELD", ["author"])
