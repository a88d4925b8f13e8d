"""The whole way of a review: submitted, claimed, examined, decided by the policy that is live at that moment."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from imprimatur.errors import Unavailable
from imprimatur.policy import Mode, Policy
from imprimatur.storage import tenants
from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import job_pb2 as pb
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import ListJobEventsRequest
from tests import makers
from tests.service import engines
from tests.service.engines import SECRET, ScriptedEngine
from tests.service.systems import Caller, System, on_postgresql, on_sqlite


async def kinds(me: Caller, job: pb.Job) -> list[str]:
    answer = await me.jobs.ListJobEvents(ListJobEventsRequest(job_id=job.id))
    assert [event.version for event in answer.events] == sorted({event.version for event in answer.events})
    return [event.kind for event in answer.events]


def outcomes(job: pb.Job) -> list[str]:
    return [pb.AttemptOutcome.Name(one.outcome).removeprefix("ATTEMPT_OUTCOME_") for one in job.attempt_history]


async def put_mode(system: System, mode: Mode) -> None:
    async with system.database.begin() as tx:
        await tenants.put_policy(tx, system.tenant_id, Policy(mode=mode))


# --- what the evidence leads to --------------------------------------------------------------------------

DECISIONS = {
    engines.APPROVE: (SUCCEEDED, creative.DECISION_APPROVED, creative.POLICY_TRIGGER_AUTO_APPROVE),
    engines.REJECT: (SUCCEEDED, creative.DECISION_REJECTED, creative.POLICY_TRIGGER_BLOCKED_CATEGORY),
    engines.HUMAN: (AWAITING, creative.DECISION_PENDING, creative.POLICY_TRIGGER_UNCERTAIN),
    engines.UNSURE: (AWAITING, creative.DECISION_PENDING, creative.POLICY_TRIGGER_LOW_CONFIDENCE),
    engines.UNSEEN: (AWAITING, creative.DECISION_PENDING, creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED),
    engines.NONSENSE: (AWAITING, creative.DECISION_PENDING, creative.POLICY_TRIGGER_ENGINE_ERROR),
}


async def test_the_policy_decides_by_what_the_engine_found(system: System, me: Caller, engine: ScriptedEngine) -> None:
    submitted = {headline: await me.submit(headline) for headline in DECISIONS}
    async with system.reviewer(engine):
        for headline, (state, decision, trigger) in DECISIONS.items():
            done = await me.until(submitted[headline], state)
            assert done.creative_review.decision == decision, headline
            assert done.creative_review.ai_review.policy_triggered == trigger, headline
            assert done.result_count == (1 if state == SUCCEEDED else 0)


async def test_a_review_leaves_its_whole_story(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit(engines.APPROVE, "cr-7", labels={"team": "a"})
    async with system.reviewer(engine):
        done = await me.until(job, SUCCEEDED)
    assert await kinds(me, job) == ["submitted", "started", "succeeded"]
    [attempt] = done.attempt_history
    assert (attempt.claim_no, attempt.outcome, attempt.engine) == (1, pb.ATTEMPT_OUTCOME_SUCCEEDED, "scripted")
    assert (attempt.input_tokens, attempt.output_tokens, attempt.cost_micros) == (1000, 100, 7)
    assert not attempt.HasField("error")
    assert done.creative_review.ai_review.evidence.engine.name == "scripted"
    assert done.creative_review.ai_review.policy_version == 1
    assert done.creative_review.ai_review.confidence == creative.CONFIDENCE_HIGH
    assert (done.version, done.attempts, done.progress.percent) == (3, 1, 100)
    assert done.subject_id == "cr-7"
    assert done.create_time.ToDatetime() <= done.start_time.ToDatetime() <= done.finish_time.ToDatetime()
    assert not done.HasField("error")
    assert engine.closed


# --- errors of the engine --------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_backoff")
async def test_a_failed_attempt_is_followed_by_another(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit("fail 1")
    async with system.reviewer(engine):
        done = await me.until(job, SUCCEEDED)
    assert (outcomes(done), done.attempts) == (["FAILED", "SUCCEEDED"], 2)
    error = done.attempt_history[0].error
    assert (error.code, error.stage, error.retryable) == ("provider_error", "examining", True)
    assert await kinds(me, job) == ["submitted", "started", "retry_scheduled", "started", "succeeded"]
    assert not done.HasField("error")  # it is gone once the job succeeds


@pytest.mark.usefixtures("short_backoff")
async def test_when_all_attempts_are_spent_a_person_decides(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit("fail 9", max_attempts=2)
    async with system.reviewer(engine):
        done = await me.until(job, AWAITING)
    assert (outcomes(done), done.attempts, len(engine.seen)) == (["FAILED", "FAILED"], 2, 2)
    assert done.error.code == "provider_error"
    assert done.creative_review.decision == creative.DECISION_PENDING
    assert done.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR
    assert done.creative_review.ai_review.HasField("reviewed_at")
    assert "503" in done.creative_review.ai_review.reason


@on_sqlite
async def test_an_attempt_that_takes_too_long_is_aborted(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit("slow 60", "cr-1", max_attempts=1, timeout=Duration(seconds=1))
    async with system.reviewer(engine):
        done = await me.until(job, AWAITING)
        assert engine.aborted["cr-1"] == 1
    assert (outcomes(done), done.error.code, done.error.retryable) == (["TIMED_OUT"], "timed_out", True)
    assert done.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR


async def test_a_permanent_error_is_not_tried_again(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit(engines.REFUSE, "cr-1")
    async with system.reviewer(engine):
        done = await me.until(job, AWAITING)
    assert (outcomes(done), done.attempts, engine.seen) == (["FAILED"], 1, ["cr-1"])
    assert (done.error.code, done.error.retryable) == ("refused", False)
    assert done.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR


async def test_an_input_that_cannot_be_reviewed_fails(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit(engines.UNREADABLE)
    async with system.reviewer(engine):
        done = await me.until(job, FAILED)
    assert (done.error.code, done.error.retryable, done.attempts) == ("unreviewable_input", False, 1)
    assert "images[0]" in done.error.message
    assert done.HasField("finish_time")


@pytest.mark.usefixtures("short_backoff")
@on_sqlite
async def test_a_rate_limit_spends_no_attempt(system: System, me: Caller, engine: ScriptedEngine) -> None:
    job = await me.submit("limited 2", max_attempts=1)
    async with system.reviewer(engine):
        done = await me.until(job, SUCCEEDED)
    assert (outcomes(done), done.attempts) == (["FAILED", "FAILED", "SUCCEEDED"], 1)
    assert done.attempt_history[0].error.code == "rate_limited"


@pytest.mark.usefixtures("short_backoff")
@on_postgresql
async def test_what_an_engine_must_not_raise_is_retried_and_not_shown(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit(engines.BREAK, max_attempts=2)
    async with system.reviewer(engine):
        done = await me.until(job, AWAITING)
        after = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)  # the worker lives
    assert (outcomes(done), done.error.code) == (["FAILED", "FAILED"], "internal")
    history = await me.jobs.ListJobEvents(ListJobEventsRequest(job_id=job.id))
    for shown in (str(done), str(history)):
        assert SECRET not in shown
        assert "RuntimeError" not in shown
    assert after.attempts == 1


@on_postgresql
async def test_an_error_close_to_the_deadline_goes_to_a_person_as_that_error(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    job = await me.submit("slow 60", timeout=Duration(seconds=1), deadline=Duration(seconds=1, nanos=50_000_000))
    async with system.reviewer(engine):
        done = await me.until(job, AWAITING)
    assert (done.error.code, outcomes(done)) == ("timed_out", ["TIMED_OUT"])


# --- the roll-back switch --------------------------------------------------------------------------------


async def test_require_human_holds_for_queued_and_running_jobs(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine, slots=1):
        running = await me.submit("gate", "running")
        await me.until(running, RUNNING)
        queued = await me.submit(engines.REJECT, "queued")
        await put_mode(system, Mode.REQUIRE_HUMAN)
        engine.open("running")
        for job in (running, queued):
            review = (await me.until(job, AWAITING)).creative_review
            assert review.decision == creative.DECISION_PENDING
            assert review.ai_review.policy_triggered == creative.POLICY_TRIGGER_HUMAN_REQUIRED
            assert review.ai_review.policy_version == 2
            assert review.ai_review.HasField("evidence")  # as advice


async def test_an_engine_that_fails_approves_nothing_though_none_would_be_asked_by_now(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        job = await me.submit(engines.GATE_THEN_REFUSE, "cr-1")
        await me.until(job, RUNNING)
        await put_mode(system, Mode.AUTO_APPROVE)
        engine.open("cr-1")
        done = await me.until(job, AWAITING)
    assert done.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR
    assert done.creative_review.decision == creative.DECISION_PENDING


async def test_auto_approve_runs_no_engine(system: System, me: Caller, engine: ScriptedEngine) -> None:
    await put_mode(system, Mode.AUTO_APPROVE)
    async with system.reviewer(engine):
        done = await me.until(await me.submit(engines.REJECT), SUCCEEDED)
    assert done.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_AUTO_APPROVE_MODE
    assert done.creative_review.decision == creative.DECISION_APPROVED
    assert (engine.seen, done.attempt_history[0].engine) == ([], "")


async def test_a_policy_put_while_a_review_is_being_concluded_counts(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        job = await me.submit("gate", "cr-1")
        await me.until(job, RUNNING)
        async with system.database.begin() as tx:
            await tenants.put_policy(tx, system.tenant_id, Policy(mode=Mode.REQUIRE_HUMAN))
            engine.open("cr-1")
            await makers.until(lambda: _is_idle(engine))
            await asyncio.sleep(0.2)  # the conclusion waits for this transaction now
        done = await me.until(job, AWAITING)
    assert (outcomes(done), engine.seen) == (["SUCCEEDED"], ["cr-1"])
    assert done.creative_review.ai_review.policy_version == 2
    assert done.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_HUMAN_REQUIRED


async def _is_idle(engine: ScriptedEngine) -> bool:
    return engine.running == 0


# --- when the database is away ---------------------------------------------------------------------------


@on_sqlite
async def test_an_attempt_without_its_database_is_handed_back_and_not_charged(
    system: System, me: Caller, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = tenants.live_policy

    async def away_at_first(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Unavailable("the database is out of reach")
        return await read(*args, **options)

    monkeypatch.setattr(tenants, "live_policy", away_at_first)
    async with system.reviewer(engine):
        done = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
    assert (outcomes(done), done.attempts) == (["HANDED_BACK", "SUCCEEDED"], 1)
    assert await kinds(me, done) == ["submitted", "started", "handed_back", "started", "succeeded"]
