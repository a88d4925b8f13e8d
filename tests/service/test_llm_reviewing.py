"""Attempts with the llm engine, by the production reviewer: what a provider does to a job."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from imprimatur.budgets import Budget, Used
from imprimatur.criteria import Criterion, Effect
from imprimatur.job import JobType
from imprimatur.policy import Mode, Policy
from imprimatur.storage import spending, tenants
from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import job_pb2 as job
from imprimatur.v1.job_service_pb2 import CancelJobRequest, GetStatsRequest, JobFilter, ReviewJobsAgainRequest
from reviewer.admission import HOLD_SECONDS
from reviewer.engines import Engine
from reviewer.engines.llm.breaker import Breaker, Circuit
from reviewer.engines.llm.engine import LLMEngine
from reviewer.engines.llm.model import open_model
from reviewer.engines.registry import open_engine
from reviewer.settings import EngineName, EngineSettings, Price
from reviewer.terms import Terms
from tests.contract.polling import eventually
from tests.makers import until
from tests.patience import happens
from tests.service import provider as scripted
from tests.service.engines import ScriptedEngine
from tests.service.provider import INPUT_TOKENS, OUTPUT_TOKENS, Provider, answer, fails, gives, judged, providing, says
from tests.service.systems import Caller, System, on_postgresql, on_sqlite


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with providing(gives(answer())) as running:
        yield running


#: What one answer costs at a price of one, in tokens and in millionths of a dollar.
PER_CALL = INPUT_TOKENS + OUTPUT_TOKENS


@pytest.fixture
def llm(provider: Provider) -> Engine:
    """Closed by the reviewer that it is given to."""
    return opened(provider)


def opened(provider: Provider, **changes: Any) -> Engine:
    """An engine as the settings open it."""
    return open_engine(
        EngineSettings(
            engine=EngineName.LLM,
            llm_model="house-model",
            llm_base_url=provider.base_url,
            llm_prices={"house-model": Price(input=1, output=1)},
            **changes,
        )
    )


def one_model(provider: Provider, breaker: Breaker) -> Engine:
    """An engine with a breaker of the test's own."""
    settings = EngineSettings(llm_model="house-model", llm_base_url=provider.base_url)
    return LLMEngine(open_model(settings, "house-model"), model_name="house-model", breaker=breaker)


async def test_a_review_is_decided_by_the_policy_and_books_its_tokens(system: System, me: Caller, llm: Engine) -> None:
    async with system.reviewer(llm):
        seen = await me.until(await me.submit("New running shoes"), job.JOB_STATE_SUCCEEDED)
    assert seen.creative_review.decision == creative.DECISION_APPROVED
    assert seen.creative_review.ai_review.evidence.engine.model == "house-model"
    [attempt] = seen.attempt_history
    assert (attempt.engine, attempt.input_tokens, attempt.output_tokens) == ("llm", INPUT_TOKENS, OUTPUT_TOKENS)
    assert attempt.cost_micros == INPUT_TOKENS + OUTPUT_TOKENS


async def test_cancelling_a_running_job_closes_the_providers_socket(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(scripted.hangs)
    async with system.reviewer(llm):
        submitted = await me.submit("New running shoes")
        await happens(provider.asked)
        await me.jobs.CancelJob(CancelJobRequest(job_id=submitted.id))
        # A renewal each second tells the worker; the socket then closes at once.
        await happens(provider.left)
        assert (await me.get(submitted)).state == job.JOB_STATE_CANCELLED


async def test_a_time_out_closes_the_providers_socket_books_its_answers_and_leaves_the_creative_with_a_person(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(says("no"), scripted.hangs)
    async with system.reviewer(llm):
        submitted = await me.submit("New running shoes", timeout=Duration(seconds=3), max_attempts=1)
        await eventually(lambda: len(provider.calls) == 2, "the second question")
        seen = await me.until(submitted, job.JOB_STATE_AWAITING_REVIEW)
        await happens(provider.left)
    assert seen.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR
    [attempt] = seen.attempt_history
    assert attempt.outcome == job.ATTEMPT_OUTCOME_TIMED_OUT
    assert booked(attempt) == ("llm", INPUT_TOKENS, OUTPUT_TOKENS, PER_CALL)


async def test_a_failed_attempt_books_what_it_cost(
    system: System, me: Caller, llm: Engine, provider: Provider, short_backoff: None
) -> None:
    provider.follow(says("no"), says("no"), gives(answer()))
    async with system.reviewer(llm):
        seen = await me.until(await me.submit("New running shoes"), job.JOB_STATE_SUCCEEDED)
    failed, done = seen.attempt_history
    assert failed.error.code == "invalid_answer"
    assert (failed.engine, failed.input_tokens, failed.output_tokens) == ("llm", 2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS)
    assert failed.cost_micros == 2 * (INPUT_TOKENS + OUTPUT_TOKENS)
    assert done.input_tokens == INPUT_TOKENS


async def test_a_rate_limit_spends_no_attempt(
    system: System, me: Caller, llm: Engine, provider: Provider, short_backoff: None
) -> None:
    limited = fails(429, "rate_limit_exceeded", retry_after_ms="10")
    provider.follow(limited, limited, limited, gives(answer()))
    async with system.reviewer(llm):
        seen = await me.until(await me.submit("New running shoes", max_attempts=1), job.JOB_STATE_SUCCEEDED)
    assert [attempt.error.code for attempt in seen.attempt_history] == ["rate_limited"] * 3 + [""]


async def test_an_outage_is_ridden_out(
    system: System, me: Caller, llm: Engine, provider: Provider, short_backoff: None
) -> None:
    provider.follow(fails(500), scripted.breaks_off, gives(answer()))
    async with system.reviewer(llm):
        seen = await me.until(await me.submit("New running shoes"), job.JOB_STATE_SUCCEEDED)
    assert [item.error.code for item in seen.attempt_history] == ["provider_error", "provider_unreachable", ""]


@pytest.mark.parametrize("step", [fails(401), says("", refusal="I will not look at this.")])
async def test_a_permanent_fault_leaves_the_creative_with_a_person_after_one_attempt(
    system: System, me: Caller, llm: Engine, provider: Provider, step: scripted.Step
) -> None:
    provider.follow(step)
    async with system.reviewer(llm):
        seen = await me.until(await me.submit("New running shoes"), job.JOB_STATE_AWAITING_REVIEW)
    assert len(seen.attempt_history) == 1
    assert seen.creative_review.decision == creative.DECISION_PENDING
    assert seen.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR


# --- what was answered before the end --------------------------------------------------------------------


@on_postgresql
async def test_what_was_answered_before_a_cancellation_is_booked(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(says("no"), scripted.hangs)
    async with system.reviewer(llm):
        submitted = await me.submit("New running shoes")
        await eventually(lambda: len(provider.calls) == 2, "the second question")
        await me.jobs.CancelJob(CancelJobRequest(job_id=submitted.id))

        async def is_booked() -> bool:
            [attempt] = (await me.get(submitted)).attempt_history
            return booked(attempt) == ("llm", INPUT_TOKENS, OUTPUT_TOKENS, PER_CALL)

        await until(is_booked)


@on_sqlite
async def test_what_was_answered_before_a_stop_is_booked_and_the_job_goes_on_elsewhere(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(says("no"), scripted.hangs)
    async with system.reviewer(llm):
        submitted = await me.submit("New running shoes", max_attempts=1)
        await eventually(lambda: len(provider.calls) == 2, "the second question")
    seen = await me.get(submitted)
    assert (seen.state, seen.attempts) == (job.JOB_STATE_QUEUED, 0)
    assert booked(seen.attempt_history[0]) == ("llm", INPUT_TOKENS, OUTPUT_TOKENS, PER_CALL)


def booked(attempt: job.Attempt) -> tuple[str, int, int, int]:
    return attempt.engine, attempt.input_tokens, attempt.output_tokens, attempt.cost_micros


# --- budgets ---------------------------------------------------------------------------------------------


async def used(system: System) -> Used:
    async with system.database.read() as reader:
        return (await spending.of_tenant(reader, system.tenant_id))[1]


@pytest.mark.parametrize(
    "budget", [Budget(daily_tokens=2 * PER_CALL), Budget(daily_cost_micros=2 * PER_CALL)], ids=["tokens", "cost"]
)
async def test_beyond_its_daily_budget_a_tenants_creatives_go_to_a_person_unasked_until_there_is_room_again(
    system: System, me: Caller, llm: Engine, provider: Provider, budget: Budget
) -> None:
    async with system.reviewer(llm, terms=Terms(budget=budget)):
        for number in range(2):
            await me.until(await me.submit("Shoes", f"cr-{number}"), job.JOB_STATE_SUCCEEDED)
        poor = await me.until(await me.submit("Shoes", "cr-2"), job.JOB_STATE_AWAITING_REVIEW)
        assert len(provider.calls) == 2
        assert await used(system) == Used(tokens=2 * PER_CALL, cost_micros=2 * PER_CALL)
        review = poor.creative_review
        assert review.decision == creative.DECISION_PENDING
        assert review.ai_review.policy_triggered == creative.POLICY_TRIGGER_BUDGET_EXHAUSTED
        assert "budget" in review.ai_review.reason
        assert poor.error.code == "budget_exhausted"
        async with system.database.begin() as tx:
            [tenant] = await tenants.list_tenants(tx)
            await spending.put_budget(tx, tenant.name, Budget(daily_tokens=0, daily_cost_micros=0))
        again = JobFilter(policy_triggered=[creative.POLICY_TRIGGER_BUDGET_EXHAUSTED])
        await me.jobs.ReviewJobsAgain(ReviewJobsAgainRequest(filter=again))
        assert (await me.until(poor, job.JOB_STATE_SUCCEEDED)).creative_review.decision == creative.DECISION_APPROVED


@on_sqlite
async def test_failed_attempts_count_towards_the_budget_and_no_further_one_begins(
    system: System, me: Caller, llm: Engine, provider: Provider, short_backoff: None
) -> None:
    provider.follow(says("no"))
    async with system.reviewer(llm, terms=Terms(budget=Budget(daily_tokens=1))):
        seen = await me.until(await me.submit("Shoes"), job.JOB_STATE_AWAITING_REVIEW)
    assert [attempt.error.code for attempt in seen.attempt_history] == ["invalid_answer", "budget_exhausted"]
    assert await used(system) == Used(tokens=2 * PER_CALL, cost_micros=2 * PER_CALL)


@on_postgresql
async def test_several_reviewers_count_towards_one_budget(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    async with system.reviewer(llm, slots=2), system.reviewer(opened(provider), slots=2):
        jobs = [await me.submit("Shoes", f"cr-{number}") for number in range(12)]
        for one in jobs:
            await me.until(one, job.JOB_STATE_SUCCEEDED)
        [stats] = (await me.jobs.GetStats(GetStatsRequest())).types
    assert await used(system) == Used(tokens=12 * PER_CALL, cost_micros=12 * PER_CALL)
    assert (stats.input_tokens, stats.output_tokens) == (12 * INPUT_TOKENS, 12 * OUTPUT_TOKENS)
    assert stats.cost_micros == 12 * PER_CALL


@on_sqlite
async def test_what_the_builtin_engine_reads_costs_no_provider_and_counts_towards_no_budget(
    system: System, me: Caller
) -> None:
    async with system.reviewer(open_engine(EngineSettings(engine=EngineName.BUILTIN, engine_processes=1))):
        done = await me.until(await me.submit("New running shoes"), job.JOB_STATE_SUCCEEDED)
    assert booked(done.attempt_history[0]) == ("builtin", 0, 0, 0)
    assert await used(system) == Used()


@on_sqlite
async def test_who_approves_everything_spends_nothing_and_is_stopped_by_no_budget(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    await put_policy(system, Policy(mode=Mode.AUTO_APPROVE))
    async with system.database.begin() as tx:
        [tenant] = await tenants.list_tenants(tx)
        await spending.put_budget(tx, tenant.name, Budget(daily_tokens=1))
    async with system.reviewer(llm):
        await me.until(await me.submit("Shoes"), job.JOB_STATE_SUCCEEDED)
    assert provider.calls == []


# --- turns -----------------------------------------------------------------------------------------------


@on_postgresql
async def test_jobs_wait_for_their_turns_outside_the_slots_and_spend_no_attempt(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    terms = Terms(interval_seconds={JobType.CREATIVE_REVIEW: 3 * HOLD_SECONDS})
    async with system.reviewer(llm, terms=terms, slots=1):
        jobs = [await me.submit("Shoes", f"cr-{number}", max_attempts=1) for number in range(2)]
        done = [await me.until(one, job.JOB_STATE_SUCCEEDED) for one in jobs]
    assert len(provider.calls) == 2
    outcomes = sorted([attempt.outcome for attempt in one.attempt_history] for one in done)
    assert outcomes[0] == [job.ATTEMPT_OUTCOME_SUCCEEDED]
    assert outcomes[1][0] == job.ATTEMPT_OUTCOME_HANDED_BACK
    assert outcomes[1][-1] == job.ATTEMPT_OUTCOME_SUCCEEDED
    assert [one.attempts for one in done] == [1, 1]
    assert not any(attempt.error.code for one in done for attempt in one.attempt_history)


@on_sqlite
async def test_a_job_whose_turn_comes_only_after_its_deadline_goes_to_a_person(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    async with system.reviewer(llm, terms=Terms(interval_seconds={JobType.CREATIVE_REVIEW: 3600.0})):
        first = await me.submit("Shoes", "cr-1", deadline=Duration(seconds=60))
        await me.until(first, job.JOB_STATE_SUCCEEDED)
        second = await me.submit("Shoes", "cr-2", deadline=Duration(seconds=60))
        seen = await me.until(second, job.JOB_STATE_AWAITING_REVIEW)
    assert len(provider.calls) == 1
    assert seen.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR
    assert seen.error.code == "turn_awaited"


# --- the circuit breaker ---------------------------------------------------------------------------------


@on_postgresql
async def test_while_a_provider_is_left_alone_jobs_wait_unspent_and_nothing_is_approved(
    system: System, me: Caller, provider: Provider, short_backoff: None
) -> None:
    seconds = [0.0]
    breaker = Breaker("test", failures=2, pause_seconds=0.2, clock=lambda: seconds[0])
    provider.follow(fails(503))
    async with system.reviewer(one_model(provider, breaker), slots=1):
        jobs = [await me.submit("Shoes", f"cr-{number}") for number in range(4)]

        async def all_wait() -> bool:
            return all([_outcomes(await me.get(one)).count(HANDED_BACK) > 1 for one in jobs])

        await until(all_wait)
        assert len(provider.calls) == 2
        now = [await me.get(one) for one in jobs]
        assert sum(one.attempts for one in now) == 2
        assert not any(one.creative_review.decision == creative.DECISION_APPROVED for one in now)
        provider.follow(gives(answer()))
        seconds[0] += 1
        done = [await me.until(one, job.JOB_STATE_SUCCEEDED) for one in jobs]
    assert breaker.state is Circuit.CLOSED
    assert len(provider.calls) == 4
    assert sum(_outcomes(one).count(job.ATTEMPT_OUTCOME_FAILED) for one in done) == 2


@on_sqlite
async def test_a_provider_that_hangs_until_jobs_time_out_is_left_alone(
    system: System, me: Caller, provider: Provider
) -> None:
    breaker = Breaker("test", failures=2, pause_seconds=600.0)
    provider.follow(scripted.hangs)
    async with system.reviewer(one_model(provider, breaker)):
        asked = [
            await me.submit("Shoes", f"cr-{number}", timeout=Duration(seconds=2), max_attempts=1) for number in range(2)
        ]
        for one in asked:
            seen = await me.until(one, job.JOB_STATE_AWAITING_REVIEW)
            assert seen.error.code == "timed_out"
        assert breaker.state is Circuit.OPEN
        spared = await me.submit("Shoes", "cr-2", max_attempts=1)

        async def waits() -> bool:
            return HANDED_BACK in _outcomes(await me.get(spared))

        await until(waits)
        assert (await me.get(spared)).attempts == 0
    assert len(provider.calls) == 2


HANDED_BACK = job.ATTEMPT_OUTCOME_HANDED_BACK


def _outcomes(seen: job.Job) -> list[job.AttemptOutcome.ValueType]:
    return [attempt.outcome for attempt in seen.attempt_history]


# --- the policy's model ----------------------------------------------------------------------------------


async def put_policy(system: System, policy: Policy) -> None:
    async with system.database.begin() as tx:
        await tenants.put_policy(tx, system.tenant_id, policy)


@on_sqlite
async def test_the_policy_may_name_another_model_of_the_settings(
    system: System, me: Caller, provider: Provider
) -> None:
    await put_policy(system, Policy(model="other-model"))
    async with system.reviewer(opened(provider, llm_models=("other-model",))):
        seen = await me.until(await me.submit("Shoes"), job.JOB_STATE_SUCCEEDED)
    assert provider.calls[0].body["model"] == "other-model"
    assert seen.creative_review.ai_review.evidence.engine.model == "other-model"


@on_postgresql
async def test_nothing_stands_in_for_a_model_that_is_not_to_be_had(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    await put_policy(system, Policy(model="other-model"))
    async with system.reviewer(llm):
        seen = await me.until(await me.submit("Shoes"), job.JOB_STATE_AWAITING_REVIEW)
    assert provider.calls == []
    assert seen.error.code == "provider_model"
    assert "other-model" in seen.error.message
    assert seen.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR


@on_sqlite
async def test_an_engine_without_models_does_not_examine_in_place_of_one(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    await put_policy(system, Policy(model="other-model"))
    async with system.reviewer(engine):
        seen = await me.until(await me.submit("approve"), job.JOB_STATE_AWAITING_REVIEW)
    assert engine.seen == []
    assert seen.error.code == "provider_model"


# --- the policy's criteria -------------------------------------------------------------------------------

RIVALS = Criterion(name="rivals", text="No rival is named.", effect=Effect.BLOCKS)


async def test_a_broken_criterion_decides_as_the_policy_says(system: System, me: Caller, provider: Provider) -> None:
    await put_policy(system, Policy(criteria=(RIVALS,)))
    provider.follow(gives(answer(criteria=judged(0.95))), gives(answer(criteria=judged(0.5))))
    provider.steps.append(gives(answer(criteria=judged(0.01))))
    async with system.reviewer(opened(provider)):
        broken = await me.until(await me.submit("Shoes"), job.JOB_STATE_SUCCEEDED)
        perhaps = await me.until(await me.submit("Boots"), job.JOB_STATE_AWAITING_REVIEW)
        kept = await me.until(await me.submit("Hats"), job.JOB_STATE_SUCCEEDED)
    reviews = [one.creative_review.ai_review for one in (broken, perhaps, kept)]
    assert [(review.decision, review.policy_triggered) for review in reviews] == [
        (creative.DECISION_REJECTED, creative.POLICY_TRIGGER_BLOCKED_CRITERION),
        (creative.DECISION_PENDING, creative.POLICY_TRIGGER_POSSIBLE_BLOCKED),
        (creative.DECISION_APPROVED, creative.POLICY_TRIGGER_AUTO_APPROVE),
    ]
    [seen] = reviews[0].evidence.criteria
    assert (seen.name, seen.fingerprint, seen.score) == ("rivals", RIVALS.fingerprint, 0.95)
    assert "rivals" in reviews[0].reason


async def test_a_criterion_that_comes_while_the_engine_looks_is_examined_and_both_looks_are_booked(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(scripted.slow(gives(answer())), gives(answer(criteria=judged(0.95))))
    async with system.reviewer(llm):
        submitted = await me.submit("Shoes")
        await happens(provider.asked)
        await put_policy(system, Policy(criteria=(RIVALS,)))
        provider.released.set()
        seen = await me.until(submitted, job.JOB_STATE_SUCCEEDED)
    assert seen.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_BLOCKED_CRITERION
    assert [call.criteria is None for call in provider.calls] == [True, False]
    [attempt] = seen.attempt_history
    assert booked(attempt) == ("llm", 2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS, 2 * PER_CALL)


@on_sqlite
async def test_when_the_second_look_fails_the_first_one_is_booked_too(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(scripted.slow(gives(answer())), fails(401))
    async with system.reviewer(llm):
        submitted = await me.submit("Shoes")
        await happens(provider.asked)
        await put_policy(system, Policy(criteria=(RIVALS,)))
        provider.released.set()
        seen = await me.until(submitted, job.JOB_STATE_AWAITING_REVIEW)
    [attempt] = seen.attempt_history
    assert attempt.error.code == "provider_credentials"
    assert booked(attempt) == ("llm", INPUT_TOKENS, OUTPUT_TOKENS, PER_CALL)


async def test_an_engine_that_examines_no_criteria_approves_nothing_and_is_asked_once(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    await put_policy(system, Policy(criteria=(RIVALS,)))
    async with system.reviewer(engine):
        seen = await me.until(await me.submit("approve"), job.JOB_STATE_AWAITING_REVIEW)
    review = seen.creative_review.ai_review
    assert review.policy_triggered == creative.POLICY_TRIGGER_NOT_FULLY_EXAMINED
    assert "the criterion rivals" in review.reason
    assert len(engine.seen) == 1
    assert not review.evidence.criteria
