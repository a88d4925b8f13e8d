"""Attempts with the llm engine, by the production reviewer: what a provider does to a job."""

from collections.abc import AsyncIterator

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.patience import happens
from tests.service import provider as scripted
from tests.service.provider import INPUT_TOKENS, OUTPUT_TOKENS, Provider, answer, fails, gives, providing, says
from tests.service.systems import Caller, System

from imprimatur.v1 import creative_pb2 as creative
from imprimatur.v1 import job_pb2 as job
from imprimatur.v1.job_service_pb2 import CancelJobRequest
from reviewer.engines import Engine
from reviewer.engines.registry import open_engine
from reviewer.settings import EngineName, EngineSettings


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with providing(gives(answer())) as running:
        yield running


@pytest.fixture
def llm(provider: Provider) -> Engine:
    """Closed by the reviewer that it is given to."""
    return open_engine(
        EngineSettings(
            engine=EngineName.LLM,
            llm_model="house-model",
            llm_base_url=provider.base_url,
            llm_price_input=1.0,
            llm_price_output=1.0,
        )
    )


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


async def test_a_time_out_closes_the_providers_socket_and_leaves_the_creative_with_a_person(
    system: System, me: Caller, llm: Engine, provider: Provider
) -> None:
    provider.follow(scripted.hangs)
    async with system.reviewer(llm):
        submitted = await me.submit("New running shoes", timeout=Duration(seconds=3), max_attempts=1)
        await happens(provider.asked)
        seen = await me.until(submitted, job.JOB_STATE_AWAITING_REVIEW)
        await happens(provider.left)
    assert seen.creative_review.ai_review.policy_triggered == creative.POLICY_TRIGGER_ENGINE_ERROR
    assert seen.attempt_history[0].outcome == job.ATTEMPT_OUTCOME_TIMED_OUT


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
