"""Equal creatives cost one look: at the same time, and later; and nothing that is not equal inherits anything."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image as Pillow
from sqlalchemy import update

from gateway import evidence as gateway_evidence
from imprimatur import metrics
from imprimatur.budgets import Budget
from imprimatur.client import Client
from imprimatur.criteria import Criterion, Effect
from imprimatur.guard import Guard
from imprimatur.identity import new_id
from imprimatur.policy import Mode, Policy
from imprimatur.storage import clock, schema, tenants
from imprimatur.tenancy import Role
from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.admin_service_pb2 import (
    ForgetEvidenceRequest,
    ForgetEvidenceResponse,
    GetEvidenceStatsRequest,
    GetEvidenceStatsResponse,
)
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import (
    CancelJobRequest,
    ListJobEventsRequest,
    ReviewJobsAgainRequest,
    SubmitJobRequest,
)
from reviewer.engines import Engine
from reviewer.service import Reviewer
from reviewer.terms import Terms
from tests import makers
from tests.contract.polling import eventually
from tests.service import engines
from tests.service.engines import JudgingEngine, ScriptedEngine
from tests.service.listening import listening
from tests.service.provider import answer, fails, gives, providing, slow
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_postgresql, on_sqlite
from tests.service.test_assets import upload
from tests.service.test_cli import Ran, run
from tests.service.test_llm_reviewing import opened
from tests.service.test_reviewing import kinds, outcomes
from tests.unit.test_builtin_images import encoded, picture

HOUR = 3600.0
PNG = encoded([picture()], "PNG")


class GatedEngine(ScriptedEngine):
    """Every call waits until the gate is open, whatever the creative's id."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def examine(self, creative: Any) -> Any:
        self.seen.append(creative.creative_id)
        self.running += 1
        try:
            await self.gate.wait()
            found = await self._play(creative)
        finally:
            self.running -= 1
        return replace(found, engine=self.identity, input_tokens=1000, output_tokens=100, cost_micros=7)


@pytest.fixture
def gated() -> GatedEngine:
    return GatedEngine()


@asynccontextmanager
async def sharing(system: System, engine: Engine, **options: Any) -> AsyncIterator[Reviewer]:
    async with system.reviewer(engine, reuse_seconds=HOUR, **options) as running:
        yield running


def lookups(outcome: str) -> float:
    return float(metrics.evidence_lookups.labels(outcome)._value.get())


async def submit(me: Caller, *images: creative.CreativeImage, headline: str = engines.APPROVE, **more: Any) -> pb.Job:
    shown = creative.Creative(creative_id=f"cr-{new_id()}", headline=headline, images=images)
    request = SubmitJobRequest(creative_review=creative.CreativeReviewTask(creative=shown), **more)
    return (await me.jobs.SubmitJob(request)).job


async def waiting(me: Caller, jobs: list[pb.Job]) -> list[pb.Job]:
    """Those of the jobs that wait for another's evidence now."""
    now = [await me.get(job) for job in jobs]
    return [job for job in now if job.state == QUEUED and outcomes(job)[-1:] == ["WAITING_FOR_TWIN"]]


async def all_but_one_wait(me: Caller, jobs: list[pb.Job]) -> None:
    async def wait() -> bool:
        return len(await waiting(me, jobs)) == len(jobs) - 1

    await makers.until(wait)


# --- at the same time --------------------------------------------------------------------------------------


async def test_sixteen_equal_creatives_at_two_reviewers_cost_one_look(
    system: System, me: Caller, gated: GatedEngine
) -> None:
    before = {outcome: lookups(outcome) for outcome in ("hit", "miss", "wait")}
    async with sharing(system, gated), sharing(system, gated):
        jobs = [await me.submit(engines.APPROVE) for _ in range(16)]
        await all_but_one_wait(me, jobs)
        assert len(gated.seen) == 1
        gated.gate.set()
        done = [await me.until(job, SUCCEEDED) for job in jobs]
    assert len(gated.seen) == 1
    [leader] = [job for job in done if not job.creative_review.ai_review.HasField("reused")]
    for job in done:
        assert job.creative_review.decision == creative.DECISION_APPROVED
        assert job.creative_review.ai_review.evidence.engine.name == "scripted"
        assert job.attempts == 1, "to wait spends no attempt"
    for job in (one for one in done if one is not leader):
        assert job.creative_review.ai_review.reused.job_id == leader.id
        last = job.attempt_history[-1]
        assert (last.reused_from, last.engine, last.input_tokens, last.cost_micros) == (leader.id, "scripted", 0, 0)
        assert outcomes(job) == ["WAITING_FOR_TWIN", "SUCCEEDED"]
        waited = ["submitted", "started", "waiting_for_twin", "started", "succeeded"]
        assert await kinds(me, job) == waited
    assert leader.attempt_history[-1].reused_from == ""
    counted = {outcome: lookups(outcome) - number for outcome, number in before.items()}
    assert counted == {"hit": 15, "miss": 1, "wait": 15}


async def test_one_who_waits_takes_the_place_of_a_leader_that_is_cancelled(
    system: System, me: Caller, gated: GatedEngine
) -> None:
    async with sharing(system, gated):
        first = await me.submit(engines.APPROVE)
        await me.until(first, pb.JOB_STATE_RUNNING)
        others = [await me.submit(engines.APPROVE) for _ in range(2)]
        await all_but_one_wait(me, [first, *others])
        await me.jobs.CancelJob(CancelJobRequest(job_id=first.id))
        await eventually(lambda: len(gated.seen) == 2, "the next look")
        gated.gate.set()
        done = [await me.until(job, SUCCEEDED) for job in others]
    assert len(gated.seen) == 2
    assert sum(job.creative_review.ai_review.HasField("reused") for job in done) == 1


async def test_a_leader_that_fails_for_good_leaves_the_others_to_look_for_themselves(
    system: System, me: Caller, gated: GatedEngine
) -> None:
    async with sharing(system, gated):
        jobs = [await me.submit(engines.REFUSE) for _ in range(3)]
        await all_but_one_wait(me, jobs)
        gated.gate.set()
        done = [await me.until(job, AWAITING) for job in jobs]
    assert len(gated.seen) == 3, "an error is nobody's to inherit"
    assert {job.creative_review.ai_review.policy_triggered for job in done} == {creative.POLICY_TRIGGER_ENGINE_ERROR}


async def test_who_waits_keeps_its_own_deadline_and_can_be_cancelled(
    system: System, me: Caller, gated: GatedEngine
) -> None:
    async with sharing(system, gated):
        first = await me.submit(engines.APPROVE)
        await me.until(first, pb.JOB_STATE_RUNNING)
        late = await me.submit(engines.APPROVE, deadline=Duration(seconds=1))
        unwanted = await me.submit(engines.APPROVE)
        await makers.until(lambda: waits(me, unwanted))
        await me.jobs.CancelJob(CancelJobRequest(job_id=unwanted.id))
        given_up = await me.until(late, AWAITING)
        assert given_up.error.code == "deadline_passed"
        gated.gate.set()
        await me.until(first, SUCCEEDED)
    assert len(gated.seen) == 1


async def waits(me: Caller, job: pb.Job) -> bool:
    return bool(await waiting(me, [job]))


@on_postgresql
async def test_a_leader_that_stops_comes_back_and_brings_the_others_what_it_finds(
    system: System, me: Caller, gated: GatedEngine
) -> None:
    async with sharing(system, gated):
        jobs = [await me.submit(engines.APPROVE) for _ in range(3)]
        await all_but_one_wait(me, jobs)
    gated.gate.set()
    async with sharing(system, gated):
        done = [await me.until(job, SUCCEEDED) for job in jobs]
    assert len(gated.seen) == 2, "one that was cut short, and one"
    assert sum(job.creative_review.ai_review.HasField("reused") for job in done) == 2


# --- later -------------------------------------------------------------------------------------------------


async def test_evidence_is_decided_on_anew_by_the_policy_of_the_moment(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with sharing(system, engine):
        first = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        await put(system, Policy(mode=Mode.REQUIRE_HUMAN))
        second = await me.until(await me.submit(engines.APPROVE), AWAITING)
    assert len(engine.seen) == 1
    review = second.creative_review.ai_review
    assert (review.policy_triggered, review.policy_version) == (creative.POLICY_TRIGGER_HUMAN_REQUIRED, 2)
    assert review.evidence == first.creative_review.ai_review.evidence
    assert review.reused.job_id == first.id
    assert first.create_time.ToDatetime() < review.reused.made_at.ToDatetime() < second.create_time.ToDatetime()


async def test_users_share_evidence_and_learn_nothing_of_each_other_by_it(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    alice, bob = [await system.caller(Role.SUBMITTER, user_id=name) for name in ("alice", "bob")]
    async with sharing(system, engine):
        hers = await alice.until(await alice.submit(engines.APPROVE), SUCCEEDED)
        done = {who: await who.until(await who.submit(engines.APPROVE), SUCCEEDED) for who in (alice, bob, me)}
    assert len(engine.seen) == 1
    for who, told in ((alice, hers.id), (bob, ""), (me, hers.id)):
        reused = done[who].creative_review.ai_review.reused
        assert done[who].creative_review.ai_review.HasField("reused")
        assert (reused.job_id, reused.HasField("made_at")) == (told, bool(told))
        assert done[who].attempt_history[-1].reused_from == told
        request = ListJobEventsRequest(job_id=done[who].id)
        last = (await who.jobs.ListJobEvents(request)).events[-1]
        assert last.details["decision"] == "approved"
        assert last.details.get("reused_from", "") == told
    seen = await me.get(done[bob])  # who sees all of the tenant's can have it forgotten
    assert (seen.attempt_history[-1].reused_from, seen.creative_review.ai_review.reused.job_id) == (hers.id, "")


async def put(system: System, policy: Policy) -> None:
    async with system.database.begin() as tx:
        await tenants.put_policy(tx, system.tenant_id, policy)


async def test_other_words_another_tenant_and_another_engine_look_for_themselves(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    other = await system.caller(tenant_id=await makers.make_tenant(system.database))
    newer = ScriptedEngine("newer")
    async with sharing(system, engine):
        await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        await me.until(await me.submit(f"{engines.APPROVE} "), SUCCEEDED)
        await other.until(await other.submit(engines.APPROVE), SUCCEEDED)
    assert len(engine.seen) == 3
    async with sharing(system, newer):
        await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    assert len(newer.seen) == 1


@on_sqlite
@pytest.mark.parametrize("why", ["the setting", "the policy"])
async def test_where_reuse_is_off_each_looks_for_itself(
    system: System, me: Caller, engine: ScriptedEngine, why: str
) -> None:
    if why == "the policy":
        await put(system, Policy(reuse_evidence=False))
    async with system.reviewer(engine, reuse_seconds=0.0 if why == "the setting" else HOUR):
        for _ in range(2):
            done = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
            assert not done.creative_review.ai_review.HasField("reused")
    assert len(engine.seen) == 2


@on_sqlite
async def test_what_the_seller_declares_is_minded_of_evidence_that_is_taken(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with sharing(system, engine):
        for _ in range(2):
            job = await me.submit(engines.APPROVE, declared=[creative.CATEGORY_ALCOHOL])
            review = (await me.until(job, AWAITING)).creative_review.ai_review
            assert review.policy_triggered == creative.POLICY_TRIGGER_SENSITIVE_CATEGORY
    assert review.HasField("reused")


@on_sqlite
@pytest.mark.parametrize("how", [engines.UNSEEN, engines.TRUNCATED])
async def test_what_was_not_wholly_examined_is_looked_at_again(
    system: System, me: Caller, gated: GatedEngine, how: str
) -> None:
    async with sharing(system, gated):
        jobs = [await me.submit(how) for _ in range(3)]
        await all_but_one_wait(me, jobs)
        gated.gate.set()
        for job in jobs:
            await me.until(job, AWAITING)
        await me.until(await me.submit(how), AWAITING)
    assert len(gated.seen) == 4


@on_sqlite
async def test_appeals_and_suspects_neither_take_nor_give(system: System, me: Caller, engine: ScriptedEngine) -> None:
    special = [("appeal_of", new_id(), AWAITING), ("losses", 2, SUCCEEDED)]  # an appeal is a person's in any case
    for column, value, end in special:
        job = await me.submit(engines.APPROVE, column)
        async with system.database.begin() as tx:
            chosen = update(schema.jobs).where(schema.jobs.c.id == uuid.UUID(job.id))
            await tx.connection.execute(chosen.values({column: value}))
        async with sharing(system, engine):
            done = await me.until(job, end)
        assert not done.creative_review.ai_review.HasField("reused")
    async with sharing(system, engine):
        await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    assert len(engine.seen) == 3


async def test_fresh_work_takes_nothing_from_before_and_replaces_it(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with sharing(system, engine):
        first = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        anew = await me.until(await me.submit(engines.APPROVE, fresh=True), SUCCEEDED)
        last = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    assert len(engine.seen) == 2
    assert not first.creative_review.ai_review.HasField("reused")
    assert not anew.creative_review.ai_review.HasField("reused")
    assert last.creative_review.ai_review.reused.job_id == anew.id


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_review_again_takes_earlier_evidence_unless_it_is_to_be_fresh(
    system: System, me: Caller, engine: ScriptedEngine, fresh: bool
) -> None:
    async with sharing(system, engine):
        await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        jobs = [await me.submit(engines.APPROVE, run_at=far_ahead()) for _ in range(2)]
        await give_up(system, jobs)
        request = ReviewJobsAgainRequest(job_ids=[job.id for job in jobs], fresh=fresh)
        assert len((await me.jobs.ReviewJobsAgain(request)).job_ids) == 2
        done = [await me.until(job, SUCCEEDED) for job in jobs]
    assert len(engine.seen) == 1 + int(fresh), "of several that are to be fresh one looks"
    assert sum(job.creative_review.ai_review.HasField("reused") for job in done) == 2 - int(fresh)


def far_ahead() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    stamp.seconds += 3600
    return stamp


async def give_up(system: System, jobs: list[pb.Job]) -> None:
    """Their deadlines pass, so that they go to people for the engine's sake."""
    async with system.database.begin() as tx:
        chosen = update(schema.jobs).where(schema.jobs.c.id.in_([uuid.UUID(job.id) for job in jobs]))
        await tx.connection.execute(chosen.values(deadline_at=clock.now()))
    me = await system.caller()
    for job in jobs:
        await me.until(job, AWAITING)


# --- images ------------------------------------------------------------------------------------------------


def one_pixel_apart() -> bytes:
    other = picture().copy()
    assert isinstance(other, Pillow.Image)
    colour = other.convert("RGB").getpixel((0, 0))
    assert isinstance(colour, tuple)
    other = other.convert("RGB")
    other.putpixel((0, 0), (colour[0] ^ 1, *colour[1:]))
    return encoded([other], "PNG")


async def test_images_count_by_their_bytes_and_one_that_is_merely_similar_inherits_no_approval(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    inline = creative.CreativeImage(data=PNG)
    uploaded = creative.CreativeImage(asset_id=(await upload(me, PNG)).asset_id)
    similar = creative.CreativeImage(data=one_pixel_apart())
    async with sharing(system, engine):
        first = await me.until(await submit(me, inline), SUCCEEDED)
        same = await me.until(await submit(me, uploaded), SUCCEEDED)
        other = await me.until(await submit(me, similar), SUCCEEDED)
    assert same.creative_review.ai_review.reused.job_id == first.id
    assert not other.creative_review.ai_review.HasField("reused")
    assert len(engine.seen) == 2


@on_sqlite
async def test_of_an_image_at_a_url_the_bytes_count_that_are_there_now(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    served = {"image": PNG}

    async def give(_request: web.Request) -> web.Response:
        return web.Response(body=served["image"], content_type="image/png")

    system.guard = Guard(allow_private=True, allow_http=True)
    async with listening(give) as at, sharing(system, engine), system.gateway() as port:
        mine = await system.holder(me.key, port=port)
        image = creative.CreativeImage(url=f"http://127.0.0.1:{at}/image")
        first = await mine.until(await submit(mine, image), SUCCEEDED)
        again = await mine.until(await submit(mine, image), SUCCEEDED)
        served["image"] = one_pixel_apart()
        changed = await mine.until(await submit(mine, image), SUCCEEDED)
    assert again.creative_review.ai_review.reused.job_id == first.id
    assert not changed.creative_review.ai_review.HasField("reused")
    assert len(engine.seen) == 2


@on_sqlite
async def test_an_image_that_was_seen_in_full_is_looked_at_again_by_who_sees_less_and_a_mere_text_is_not(
    system: System, me: Caller
) -> None:
    image = creative.CreativeImage(data=PNG)  # 300 px wide
    async with providing(gives(answer())) as provider:
        async with sharing(system, opened(provider, llm_image_side_px=300)):
            await me.until(await submit(me, image), SUCCEEDED)
            text = await me.until(await submit(me), SUCCEEDED)
        async with sharing(system, opened(provider, llm_image_side_px=299)):
            seen = await me.until(await submit(me, image), AWAITING)
            again = await me.until(await submit(me), SUCCEEDED)
        assert len(provider.calls) == 3
    review = seen.creative_review.ai_review
    assert (review.policy_triggered, list(review.evidence.unexamined)) == (
        creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED,
        [creative.PART_IMAGE],
    )
    assert not review.HasField("reused")
    assert again.creative_review.ai_review.reused.job_id == text.id


# --- a tenant's criteria -----------------------------------------------------------------------------------

RIVALS = Criterion(name="rivals", text="No rival is named.", effect=Effect.BLOCKS)
REWORDED = replace(RIVALS, text="No rival is named or shown.")
SHOWN = replace(REWORDED, name="rivals-shown")


class GatedJudge(JudgingEngine, GatedEngine):
    """Examines criteria, too, once the gate is open."""


def examined(job: pb.Job) -> list[str]:
    """The criteria of its evidence."""
    return [one.fingerprint for one in job.creative_review.ai_review.evidence.criteria]


async def review(system: System, me: Caller, engine: ScriptedEngine, policy: Policy, *states: Any) -> pb.Job:
    """By a reviewer that remembers no other policy."""
    await put(system, policy)
    async with sharing(system, engine):
        return await me.until(await me.submit("approve"), *states)


async def test_evidence_serves_for_the_criteria_that_it_was_asked_about(system: System, me: Caller) -> None:
    engine = JudgingEngine()
    first = await review(system, me, engine, Policy(criteria=(RIVALS,)), SUCCEEDED)
    lenient = Policy(criteria=(replace(RIVALS, effect=Effect.TO_PERSON),), detect_min=0.2)
    again = await review(system, me, engine, lenient, SUCCEEDED)
    assert again.creative_review.ai_review.reused.job_id == first.id
    assert (examined(first), examined(again)) == ([RIVALS.fingerprint], [RIVALS.fingerprint])
    for looks, policy in ((2, Policy(criteria=(REWORDED,))), (3, Policy()), (4, Policy(criteria=(RIVALS, SHOWN)))):
        other = await review(system, me, engine, policy, SUCCEEDED)
        assert examined(other) == [one.fingerprint for one in policy.criteria]
        assert len(engine.seen) == looks


@on_sqlite
async def test_an_engine_that_examines_no_criteria_looks_once_whatever_they_are(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    first = await review(system, me, engine, Policy(), SUCCEEDED)
    again = await review(system, me, engine, Policy(criteria=(RIVALS,)), AWAITING)
    assert again.creative_review.ai_review.reused.job_id == first.id
    assert again.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED
    assert len(engine.seen) == 1


async def test_criteria_that_come_while_one_looks_are_examined_for_all_and_nothing_is_kept_under_a_wrong_key(
    system: System, me: Caller
) -> None:
    engine = GatedJudge()
    async with sharing(system, engine):
        jobs = [await me.submit(engines.APPROVE) for _ in range(3)]
        await all_but_one_wait(me, jobs)
        await put(system, Policy(criteria=(RIVALS,)))
        engine.gate.set()
        done = [await me.until(job, SUCCEEDED) for job in jobs]
    assert [examined(job) for job in done] == [[RIVALS.fingerprint]] * 3
    assert len(engine.seen) == 3, "two of the first, one for all others"
    assert sum(job.creative_review.ai_review.HasField("reused") for job in done) == 1
    before = await review(system, me, engine, Policy(), SUCCEEDED)
    assert (examined(before), len(engine.seen)) == ([], 3)
    assert before.creative_review.ai_review.HasField("reused")


# --- what is paid for --------------------------------------------------------------------------------------


@on_sqlite
async def test_a_hit_costs_neither_budget_nor_turn_and_needs_no_provider(system: System, me: Caller) -> None:
    async with providing(gives(answer())) as provider:
        engine = opened(provider, llm_breaker_failures=1)
        terms = Terms(budget=Budget(daily_tokens=1))
        async with system.reviewer(engine, reuse_seconds=HOUR, terms=terms):
            await me.until(await me.submit("New running shoes"), SUCCEEDED)
            again = await me.until(await me.submit("New running shoes"), SUCCEEDED)
            other = await me.until(await me.submit("Other running shoes"), AWAITING)
            assert len(provider.calls) == 1
    assert again.creative_review.ai_review.HasField("reused")
    assert other.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_BUDGET_EXHAUSTED


@on_sqlite
async def test_a_provider_that_fails_once_is_asked_by_the_next_of_those_who_wait(
    system: System, me: Caller, short_backoff: None
) -> None:
    async with providing(slow(fails(503)), gives(answer())) as provider:
        async with system.reviewer(opened(provider), reuse_seconds=HOUR):
            jobs = [await me.submit("New running shoes") for _ in range(4)]
            await all_but_one_wait(me, jobs)
            provider.released.set()
            done = [await me.until(job, SUCCEEDED) for job in jobs]
        assert len(provider.calls) == 2
    assert sum(job.creative_review.ai_review.HasField("reused") for job in done) == 3


# --- administration ----------------------------------------------------------------------------------------


async def stats(who: Caller) -> GetEvidenceStatsResponse:
    answered: GetEvidenceStatsResponse = await who.admin.GetEvidenceStats(GetEvidenceStatsRequest())
    return answered


async def forget(who: Caller, **which: Any) -> ForgetEvidenceResponse:
    answered: ForgetEvidenceResponse = await who.admin.ForgetEvidence(ForgetEvidenceRequest(**which))
    return answered


async def test_an_administrator_sees_what_reuse_saved_and_has_evidence_forgotten(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    other = await system.caller(tenant_id=await makers.make_tenant(system.database))
    async with sharing(system, engine):
        first = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        for _ in range(3):
            await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        seen = await stats(me)
        [use] = seen.engines
        assert (use.engine.name, use.entries, use.hits, use.hit_rate) == ("scripted", 1, 3, 0.75)
        assert (use.tokens_saved, use.cost_micros_saved) == (3300, 21)
        assert (seen.total.hits, seen.total.HasField("engine")) == (3, False)
        assert (await stats(other)).total.entries == 0
        assert (await forget(other, everything=True)).forgotten == 0
        assert (await forget(other, job_id=first.id)).forgotten == 0
        assert (
            await forget(me, engine=creative.EngineIdentity(name="scripted", version="2")) == ForgetEvidenceResponse()
        )
        assert await forget(me, policy_version=1) == ForgetEvidenceResponse(forgotten=1)
        anew = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    assert not anew.creative_review.ai_review.HasField("reused")
    assert (await forget(me, job_id=anew.id)).forgotten == 1


@on_sqlite
@pytest.mark.parametrize(
    ("which", "field"),
    [
        ({}, "which"),
        ({"everything": False}, "everything"),
        ({"engine": creative.EngineIdentity(version="1")}, "engine.name"),
        ({"engine": creative.EngineIdentity(name="n" * 201)}, "engine.name"),
        ({"engine": creative.EngineIdentity(name="n", model="m" * 201)}, "engine.model"),
        ({"engine": creative.EngineIdentity(name="a\0b")}, "engine.name"),
        ({"policy_version": 0}, "policy_version"),
        ({"policy_version": -1}, "policy_version"),
        ({"job_id": "no"}, "job_id"),
    ],
)
async def test_what_names_no_evidence_is_refused_by_its_field(me: Caller, which: dict[str, Any], field: str) -> None:
    refused = await refusal(forget(me, **which))
    assert (refused.code, refused.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


@on_sqlite
async def test_the_commands_show_what_reuse_saved_and_forget_evidence(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    variables = {"IMPRIMATUR_TARGET": f"127.0.0.1:{system.port}", "IMPRIMATUR_API_KEY": str(me.key)}

    async def imprimatur(*words: str, **changes: str) -> Ran:
        return await run("evidence", *words, cwd=None, **variables | changes)

    async with sharing(system, engine):
        for _ in range(2):
            done = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    shown, parsed = await asyncio.gather(imprimatur("stats"), imprimatur("stats", "--json"))
    assert [line.split() for line in shown.out.splitlines()][1:] == [
        ["scripted", "1", "1", "1", "50.0%", "1,100", "$0.00"],
        ["all", "1", "1", "50.0%", "1,100", "$0.00"],
    ]
    assert parsed.json["total"] == {
        "entries": "1",
        "hits": "1",
        "hitRate": 0.5,
        "tokensSaved": "1100",
        "costMicrosSaved": "7",
    }
    wrong = (["forget"], ["forget", "--all", "--job", done.id], ["forget", "--all", "--model", "m"])
    for words in wrong:
        assert (await imprimatur(*words)).code == 2
    submitter = await system.key(Role.SUBMITTER)
    refused, nothing, forgotten = [
        await imprimatur("forget", "--all", IMPRIMATUR_API_KEY=submitter),
        await imprimatur("forget", "--engine", "scripted", "--model", "m"),
        await imprimatur("forget", "--policy-version", "1", "--json"),
    ]
    assert (refused.code, "may not call ForgetEvidence" in refused.err) == (1, True)
    assert nothing.out == "0 forgotten\n"
    assert forgotten.json == {"forgotten": "1"}


@on_sqlite
async def test_the_client_goes_on_forgetting_until_nothing_is_left(
    system: System, me: Caller, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_evidence, "_AT_ONCE", 1)
    monkeypatch.setattr(gateway_evidence, "forget", partial(gateway_evidence.forget, seconds=0.0))
    async with sharing(system, engine):
        for number in range(3):
            await me.until(await me.submit(f"{engines.APPROVE} {number}"), SUCCEEDED)
    assert (await forget(me, everything=True)).more
    async with Client(f"127.0.0.1:{system.port}", api_key=str(me.key)) as client:
        assert (await client.evidence_stats()).total.entries == 2
        assert await client.forget_evidence(ForgetEvidenceRequest(everything=True)) == 2
