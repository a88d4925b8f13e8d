"""Traces, from the caller's own span to the webhook, as a real collector receives them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import structlog
from google.protobuf.duration_pb2 import Duration
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY
from sqlalchemy import select, update
from structlog.testing import capture_logs

from imprimatur import tracing, webhooks
from imprimatur.client import Client
from imprimatur.guard import Guard
from imprimatur.storage import jobs as stored
from imprimatur.storage.database import Database
from imprimatur.storage.schema import jobs
from imprimatur.tenancy import Role
from imprimatur.tracing import otlp
from imprimatur.v1.creative_pb2 import Creative
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW, JOB_STATE_CANCELLED, JOB_STATE_SUCCEEDED, Job
from imprimatur.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    JobFilter,
    RetryJobRequest,
    RetryJobsRequest,
    ReviewJobsAgainRequest,
)
from notifier.deliverer import Pace
from notifier.service import notifier
from reviewer.engines.registry import open_engine
from reviewer.settings import EngineName, EngineSettings
from tests.contract.polling import eventually
from tests.patience import PATIENCE_SECONDS
from tests.service import engines
from tests.service import provider as scripted
from tests.service.collector import Answer, Collector, Seen, collecting, frozen, refusing
from tests.service.engines import ScriptedEngine
from tests.service.provider import answer, gives, providing
from tests.service.receiver import Receiver, receiving, with_status
from tests.service.systems import Caller, System, on_postgresql, running_system, submission

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SUBMIT, GET, WATCH = (f"imprimatur.v1.JobService/{rpc}" for rpc in ("SubmitJob", "GetJob", "WatchJob"))
RETRY, RETRY_MANY = (f"imprimatur.v1.JobService/{rpc}" for rpc in ("RetryJob", "RetryJobs"))
QUICK = Pace(lease_seconds=5.0, pauses_seconds=(0.05, 0.05, 0.05), poll_seconds=0.02)


def on(collector: Collector, *, ratio: float = 1.0) -> AbstractAsyncContextManager[None]:
    """Inside the block this process records, as a service does with IMPRIMATUR_OTLP_ENDPOINT."""
    return tracing.exporting(collector.endpoint, service="imprimatur-test", instance="here", sample_ratio=ratio)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_TOGETHER_MS", 20.0)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as running:
        yield running


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@asynccontextmanager
async def telling(system: System, receiver: Receiver) -> AsyncIterator[None]:
    """A notifier with an endpoint of the tenant's; its URL holds a secret, as many do."""
    async with system.database.begin() as tx:
        url = receiver.url("/hook/a-token-in-the-path")
        await webhooks.create_endpoint(tx, system.vault, system.tenant_id, url=url)
    guard = Guard(allow_private=True, allow_http=True)
    async with notifier(system.database, system.broker, system.vault, guard, pace=QUICK, drain_seconds=0.5):
        yield


async def ended(me: Caller, headline: str, creative_id: str | None = None, **fields: Any) -> Job:
    """Submitted, and the machine's part done."""
    job = await me.submit(headline, creative_id, **fields)
    return await me.until(job, JOB_STATE_SUCCEEDED, JOB_STATE_AWAITING_REVIEW)


async def submit_with(me: Caller, *headers: tuple[str, str]) -> Job:
    """Submit with these headers beside the key."""
    metadata = (("authorization", f"Bearer {me.key}"), *headers)
    return (await me.jobs.SubmitJob(submission(), metadata=metadata)).job


async def kept(system: System, job_id: str) -> str | None:
    """The trace context that is kept with a job."""
    async with system.database.read() as reader:
        found = select(jobs.c.traceparent).where(jobs.c.id == uuid.UUID(job_id))
        traceparent: str | None = (await reader.connection.execute(found)).scalar_one()
        return traceparent


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("imprimatur_spans_dropped_total", {"reason": reason}) or 0.0


# --- one trace -------------------------------------------------------------------------------------------


async def test_one_trace_leads_from_the_callers_span_to_the_webhook(
    system: System, engine: ScriptedEngine, collector: Collector, receiver: Receiver
) -> None:
    key = await system.key(Role.ADMIN)
    theirs = TracerProvider().get_tracer("the caller's program")
    async with on(collector), system.reviewer(engine), telling(system, receiver):
        async with Client(f"127.0.0.1:{system.port}", api_key=key) as client:
            with theirs.start_as_current_span("publish the ad") as their_span:
                job = await client.submit(creative=Creative(creative_id="cr-1", headline="approve"))
                await client.wait(job.id, 15)
            await client.get(job.id)
        submit, watch, review, engine_call, conclude, webhook = await collector.until(
            SUBMIT, WATCH, "review", "engine", "conclude", "webhook"
        )
        [get] = await collector.until(GET)
    mine = their_span.get_span_context()
    trace_id = f"{mine.trace_id:032x}"
    assert {one.trace_id for one in (submit, review, engine_call, conclude, webhook)} == {trace_id}
    assert submit.parent_id == watch.parent_id == f"{mine.span_id:016x}"
    assert (watch.trace_id, get.parent_id) == (trace_id, "")  # the last call was made outside their span
    assert (review.parent_id, webhook.parent_id) == (submit.span_id, submit.span_id)
    assert (engine_call.parent_id, conclude.parent_id) == (review.span_id, review.span_id)
    assert await kept(system, job.id) == f"00-{trace_id}-{submit.span_id}-03"
    assert [one.kind for one in (submit, review, webhook)] == ["server", "consumer", "client"]
    assert not any(one.error for one in collector.spans)
    about = {"imprimatur.job.id": job.id, "imprimatur.tenant.id": str(system.tenant_id)}
    for one in (submit, review, webhook):
        assert one.attributes.items() >= about.items(), one.name
    assert submit.attributes == about | {
        "rpc.system.name": "grpc",
        "rpc.method": SUBMIT,
        "rpc.response.status_code": "OK",
    }
    assert review.attributes == about | {
        "imprimatur.job.type": "creative_review",
        "imprimatur.claim_no": 1,
        "imprimatur.attempt": 1,
        "imprimatur.losses": 0,
        "imprimatur.outcome": "succeeded",
        "imprimatur.event": "succeeded",
        "imprimatur.decision": "approved",
        "imprimatur.policy_triggered": "auto_approve",
    }
    assert engine_call.attributes == {
        "imprimatur.engine.name": "scripted",
        "imprimatur.engine.model": "",
        "imprimatur.engine.input_tokens": 1000,
        "imprimatur.engine.output_tokens": 100,
        "imprimatur.engine.cost_micros": 7,
    }
    assert webhook.attributes == about | {
        "http.request.method": "POST",
        "http.response.status_code": 204,
        "server.address": "127.0.0.1",
        "imprimatur.webhook.id": receiver.posts[0].id,
        "imprimatur.attempt": 1,
        "imprimatur.outcome": "delivered",
    }


@on_postgresql
async def test_nothing_of_a_creative_a_person_or_a_secret_is_in_a_trace(
    system: System, me: Caller, engine: ScriptedEngine, collector: Collector, receiver: Receiver
) -> None:
    theirs: dict[str, Any] = {"labels": {"label-private": "label-private"}, "user_id": "user-private"}
    async with on(collector), system.reviewer(engine), telling(system, receiver):
        for headline in ("approve headline-private", "break headline-private", "refuse headline-private"):
            await ended(me, headline, "cr-private", max_attempts=1, **theirs)
        await collector.until(*["webhook"] * 3)
    assert collector.raw
    for text in ("private", me.key, engines.SECRET, "a-token-in-the-path", "whsec_", "refuses to look"):
        assert str(text).encode() not in collector.raw, text
    assert {one.error for one in collector.named("review")} == {"", "internal", "refused"}


@on_postgresql
async def test_a_question_to_a_provider_is_a_span_of_its_own_of_which_the_provider_hears_nothing(
    system: System, me: Caller, collector: Collector
) -> None:
    async with providing(scripted.says("no"), gives(answer())) as provider:
        settings = EngineSettings(engine=EngineName.LLM, llm_model="house-model", llm_base_url=provider.base_url)
        async with on(collector), system.reviewer(open_engine(settings)):
            await ended(me, "New running shoes")
            call, *asked = await collector.until("engine", "provider", "provider")
    assert {one.parent_id for one in asked} == {call.span_id}
    assert [one.attributes["gen_ai.request.model"] for one in asked] == ["house-model"] * 2
    assert [one.attributes["gen_ai.usage.input_tokens"] for one in asked] == [scripted.INPUT_TOKENS] * 2
    assert not [name for one in provider.calls for name in one.headers if name.lower().startswith("trace")]


async def test_the_receiver_of_a_webhook_is_told_nothing_of_the_trace(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector, receiver: Receiver
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector), system_on_postgresql.reviewer(engine), telling(system_on_postgresql, receiver):
        job = await ended(me, "approve")
        await collector.until("webhook")
    [post] = receiver.posts
    assert not [name for name in post.headers if name.lower().startswith("trace")]
    assert (await kept(system_on_postgresql, job.id) or "-").split("-")[1].encode() not in post.body


# --- what fails, and what is done again -------------------------------------------------------------------


@pytest.mark.usefixtures("short_backoff")
async def test_each_attempt_is_a_span_with_its_own_end(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector), system_on_postgresql.reviewer(engine):
        await ended(me, "fail 2")
        submit, *reviews = await collector.until(SUBMIT, "review", "review", "review")
        calls = await collector.until("engine", "engine", "engine")
    assert {one.parent_id for one in reviews} == {submit.span_id}
    assert [one.error for one in reviews] == ["provider_error", "provider_error", ""]
    assert [one.error for one in calls] == ["provider_error", "provider_error", ""]
    assert [one.attributes.get("error.type") for one in reviews] == ["provider_error", "provider_error", None]
    assert [one.attributes["imprimatur.outcome"] for one in reviews] == ["failed", "failed", "succeeded"]
    assert [one.attributes["imprimatur.event"] for one in reviews] == ["retry_scheduled"] * 2 + ["succeeded"]
    assert [one.attributes["imprimatur.attempt"] for one in reviews] == [1, 2, 3]


async def test_an_attempt_that_takes_too_long_says_so(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector), system_on_postgresql.reviewer(engine):
        await ended(me, engines.GATE, timeout=Duration(seconds=1), max_attempts=1)
        review, call = await collector.until("review", "engine")
    assert (review.error, review.attributes["imprimatur.outcome"]) == ("timed_out", "timed_out")
    assert review.attributes["imprimatur.policy_triggered"] == "engine_error"
    assert call.error == "cancelled"


async def test_an_attempt_whose_job_is_cancelled_says_so(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector, receiver: Receiver
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector), system_on_postgresql.reviewer(engine), telling(system_on_postgresql, receiver):
        job = await me.submit(engines.GATE)
        await eventually(lambda: engine.running)
        await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
        submit, review, call, webhook = await collector.until(SUBMIT, "review", "engine", "webhook")
    assert (review.error, call.error) == ("taken", "cancelled")
    assert "imprimatur.outcome" not in review.attributes
    assert webhook.parent_id == submit.span_id
    assert not collector.named("conclude")


async def test_a_result_that_is_fenced_off_says_so(
    postgresql_database: Database, engine: ScriptedEngine, collector: Collector
) -> None:
    async with running_system(postgresql_database, lease_seconds=60.0) as system:  # nobody notices before the end
        me = await system.caller()
        async with on(collector), system.reviewer(engine):
            job = await me.submit(engines.GATE, "cr-1")
            await eventually(lambda: engine.running)
            async with system.database.begin() as tx:
                taken_over = update(jobs).where(jobs.c.id == uuid.UUID(job.id)).values(claim_no=jobs.c.claim_no + 1)
                await tx.connection.execute(taken_over)
            engine.open("cr-1")
            review, conclude = await collector.until("review", "conclude")
    assert (review.error, conclude.error) == ("fenced", "fenced")


async def test_each_post_is_a_span_with_what_came_of_it(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector, receiver: Receiver
) -> None:
    me = await system_on_postgresql.caller()
    receiver.answer = with_status(503, 204)
    async with on(collector), system_on_postgresql.reviewer(engine), telling(system_on_postgresql, receiver):
        await ended(me, "approve")
        submit, *posts = await collector.until(SUBMIT, "webhook", "webhook")
    assert {one.parent_id for one in posts} == {submit.span_id}
    assert [one.error for one in posts] == ["503", ""]
    assert [one.attributes["imprimatur.outcome"] for one in posts] == ["refused", "delivered"]
    assert [one.attributes["http.response.status_code"] for one in posts] == [503, 204]
    assert [one.attributes["imprimatur.attempt"] for one in posts] == [1, 2]


async def test_a_call_that_is_refused_says_its_code_and_is_no_failure_of_ours(
    system_on_postgresql: System, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector):
        with pytest.raises(Exception, match="NOT_FOUND"):
            await me.jobs.GetJob(GetJobRequest(job_id=TRACE))
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            await (await system_on_postgresql.holder(None)).jobs.GetJob(GetJobRequest(job_id=TRACE))
        monkeypatch.setattr(stored, "find", None)  # a defect of ours
        with pytest.raises(Exception, match="INTERNAL"):
            await me.jobs.GetJob(GetJobRequest(job_id=TRACE))
        spans = await collector.until(GET, GET, GET)
    codes = ["NOT_FOUND", "UNAUTHENTICATED", "INTERNAL"]
    assert [one.attributes["rpc.response.status_code"] for one in spans] == codes
    assert [one.error for one in spans] == ["", "", "INTERNAL"]
    assert ["imprimatur.tenant.id" in one.attributes for one in spans] == [True, False, True]


async def test_a_watch_is_one_span_as_long_as_it_is_open(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector), system_on_postgresql.reviewer(engine):
        job = await me.submit(engines.GATE)
        watching = asyncio.create_task(me.until(job, JOB_STATE_CANCELLED))
        await eventually(lambda: engine.running)
        await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
        await watching
        [watch] = await collector.until(WATCH)
    assert watch.attributes["imprimatur.job.id"] == job.id
    assert watch.attributes["rpc.response.status_code"] == "OK"
    assert not watch.error


async def test_a_retry_is_in_the_trace_of_its_own_call_which_points_at_the_old_one(
    system: System, me: Caller, collector: Collector
) -> None:
    async with on(collector):
        first, second = await me.submit(engines.APPROVE), await me.submit(engines.APPROVE, "cr-2")
        for job in (first, second):
            await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
        one = (await me.jobs.RetryJob(RetryJobRequest(job_id=first.id))).job
        [other] = (await me.jobs.RetryJobs(RetryJobsRequest(filter=JobFilter(states=[JOB_STATE_CANCELLED])))).retried
        submit, retry, retry_many = await collector.until(SUBMIT, RETRY, RETRY_MANY)
    assert retry.links == [(submit.trace_id, submit.span_id)]
    assert (await kept(system, one.id) or "").startswith(retry.traceparent)
    assert (await kept(system, other.job_id) or "").startswith(retry_many.traceparent)
    assert len({submit.trace_id, retry.trace_id, retry_many.trace_id}) == 3


async def test_a_review_again_goes_on_in_the_trace_of_its_job(
    system: System, me: Caller, engine: ScriptedEngine, collector: Collector
) -> None:
    async with on(collector), system.reviewer(engine):
        job = await ended(me, "fail 1", max_attempts=1)
        await me.jobs.ReviewJobsAgain(ReviewJobsAgainRequest(job_ids=[job.id]))
        submit, *reviews = await collector.until(SUBMIT, "review", "review")
    assert {one.parent_id for one in reviews} == {submit.span_id}


async def test_a_submit_that_is_repeated_leaves_the_job_in_its_first_trace(system: System, me: Caller) -> None:
    job = await submit_with(me, ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    before = await kept(system, job.id)
    request = submission(request_id="again")
    metadata = (("authorization", f"Bearer {me.key}"), ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    first = await me.jobs.SubmitJob(request, metadata=metadata)
    again = await me.jobs.SubmitJob(request)
    assert again.already_accepted
    assert before == await kept(system, first.job.id) == f"00-{TRACE}-{SPAN}-01"


# --- off, and sampled -------------------------------------------------------------------------------------


async def test_without_tracing_a_job_keeps_what_its_caller_sent_and_nothing_else(system: System, me: Caller) -> None:
    header = f"00-{TRACE}-{SPAN}-01"
    assert await kept(system, (await me.submit(engines.APPROVE)).id) is None
    assert await kept(system, (await submit_with(me, ("traceparent", header))).id) == header
    assert tracing.span("anything") is tracing.NOTHING
    assert tracing.continued("anything", None) is tracing.NOTHING


async def test_a_service_that_traces_goes_on_where_one_that_does_not_has_kept_the_callers_context(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    job = await submit_with(me, ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    async with on(collector), system_on_postgresql.reviewer(engine):
        [review] = await collector.until("review")
    assert (review.trace_id, review.parent_id) == (TRACE, SPAN)
    assert review.attributes["imprimatur.job.id"] == job.id


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", "x" * 5000]
)
async def test_a_malformed_context_fails_no_call_and_is_as_none(
    system_on_postgresql: System, collector: Collector, header: str
) -> None:
    me = await system_on_postgresql.caller()
    headers = [("traceparent", header), ("tracestate", "?" * 1000)]
    assert await kept(system_on_postgresql, (await submit_with(me, *headers)).id) is None
    async with on(collector):
        await submit_with(me, *headers)
        [submit] = await collector.until(SUBMIT)
    assert submit.parent_id == ""
    assert submit.trace_id != TRACE


async def test_a_share_of_nothing_records_nothing_but_what_a_caller_has_chosen(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector, ratio=0.0), system_on_postgresql.reviewer(engine):
        unsampled = await ended(me, "approve")
        await submit_with(me, ("traceparent", f"00-{TRACE}-{SPAN}-01"))
        await collector.until("review")
    assert {one.trace_id for one in collector.spans} == {TRACE}
    assert (await kept(system_on_postgresql, unsampled.id) or "").endswith(("-00", "-02"))


async def test_the_standards_own_switch_turns_recording_off(
    system_on_postgresql: System, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = await system_on_postgresql.caller()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    header = f"00-{TRACE}-{SPAN}-01"
    async with on(collector):
        assert await kept(system_on_postgresql, (await me.submit(engines.APPROVE)).id) is None
        assert await kept(system_on_postgresql, (await submit_with(me, ("traceparent", header))).id) == header
    assert not collector.requests


# --- a collector in trouble ------------------------------------------------------------------------------


async def test_a_collector_that_takes_nothing_hurts_no_job_is_told_of_once_and_counted(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    collector.answer = refusing(400)
    before = dropped("not_sent")

    async def review_until_it_was_asked(times: int) -> None:
        while collector.requests < times:
            await ended(me, "approve")

    with capture_logs() as lines:
        async with on(collector), system_on_postgresql.reviewer(engine):
            await review_until_it_was_asked(3)
    assert dropped("not_sent") >= before + 3
    told = [line for line in lines if "spans" in line["event"]]
    assert [line["event"] for line in told] == ["spans cannot be sent; they are dropped meanwhile"]
    assert "400" in told[0]["reason"]


async def test_a_collector_that_is_not_there_hurts_no_job(
    system_on_postgresql: System, engine: ScriptedEngine, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    before = dropped("not_sent")
    nowhere = tracing.exporting("http://127.0.0.1:1", service="imprimatur-test", instance="here")
    async with nowhere, system_on_postgresql.reviewer(engine):
        await ended(me, "approve")
    await eventually(lambda: dropped("not_sent") > before)


@pytest.mark.parametrize("trouble", [frozen(), refusing(503)])
async def test_a_collector_in_trouble_holds_up_neither_jobs_nor_the_end_and_what_waits_for_it_is_bounded(
    system_on_postgresql: System,
    engine: ScriptedEngine,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Answer,
) -> None:
    monkeypatch.setattr(otlp, "_MOST_WAITING", 8)
    monkeypatch.setattr(otlp, "_MOST_TOGETHER", 4)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    me = await system_on_postgresql.caller()
    collector.answer = trouble
    before = dropped("queue_full")
    async with asyncio.timeout(PATIENCE_SECONDS), on(collector), system_on_postgresql.reviewer(engine):
        for number in range(4):
            await ended(me, "approve", f"cr-{number}")
        assert collector.requests
    assert dropped("queue_full") > before


async def test_a_collector_that_comes_back_is_told_what_happens_from_then_on(
    system_on_postgresql: System, collector: Collector
) -> None:
    me = await system_on_postgresql.caller()
    collector.answer = refusing(400)
    with capture_logs() as lines:
        async with on(collector):
            await me.submit(engines.APPROVE)
            await eventually(lambda: any("cannot be sent" in line["event"] for line in lines))
            collector.answer = None
            await me.submit(engines.APPROVE)
            await collector.until(SUBMIT)
    assert "spans are sent again" in [line["event"] for line in lines]


async def test_the_last_spans_are_sent_when_a_process_stops(
    system_on_postgresql: System, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_TOGETHER_MS", 3_600_000.0)
    me = await system_on_postgresql.caller()
    async with on(collector):
        await me.submit(engines.APPROVE)
        assert not collector.spans
    assert [one.name for one in collector.spans] == [SUBMIT]


async def test_the_collectors_headers_come_from_the_standard_variable_and_a_bad_one_is_not_quoted(
    system_on_postgresql: System, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = await system_on_postgresql.caller()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours,a-secret-that-nobody-may-see")
    with capture_logs() as lines:
        async with on(collector):
            await me.submit(engines.APPROVE)
            await collector.until(SUBMIT)
    assert collector.headers["x-tenant"] == "ours"
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["OpenTelemetry complains"]
    assert "secret" not in str(lines)


# --- log lines -------------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged, with what a service's own lines have."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars, tracing.add_ids]) as captured:
        yield captured


async def test_log_lines_say_which_job_and_which_span(
    system_on_postgresql: System,
    engine: ScriptedEngine,
    collector: Collector,
    receiver: Receiver,
    lines: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    me = await system_on_postgresql.caller()
    async with on(collector), system_on_postgresql.reviewer(engine), telling(system_on_postgresql, receiver):
        job = await ended(me, engines.REFUSE)
        review, webhook = await collector.until("review", "webhook")
        monkeypatch.setattr(stored, "find", None)  # a defect of ours
        with pytest.raises(Exception, match="INTERNAL"):
            await me.jobs.GetJob(GetJobRequest(job_id=job.id))
        [*_, call] = await collector.until(GET, GET)

    def said(event: str) -> Any:
        [line] = [line for line in lines if line["event"] == event]
        return line

    places: list[tuple[str, Seen]] = [
        ("an attempt failed", review),
        ("a webhook was delivered", webhook),
        ("a call failed unexpectedly", call),
    ]
    for event, span in places:
        line = said(event)
        assert (line["job_id"], line["trace_id"], line["span_id"]) == (job.id, span.trace_id, span.span_id), event


async def test_log_lines_say_the_callers_trace_where_nothing_is_recorded(
    system_on_postgresql: System, engine: ScriptedEngine, lines: list[Any]
) -> None:
    me = await system_on_postgresql.caller()
    async with system_on_postgresql.reviewer(engine):
        for metadata in ((), (("traceparent", f"00-{TRACE}-{SPAN}-01"),)):
            request = submission(engines.REFUSE)
            with_key = (("authorization", f"Bearer {me.key}"), *metadata)
            job = (await me.jobs.SubmitJob(request, metadata=with_key)).job
            await me.until(job, JOB_STATE_AWAITING_REVIEW)
    plain, theirs = [line for line in lines if line["event"] == "an attempt failed"]
    assert "trace_id" not in plain
    assert (theirs["trace_id"], theirs["span_id"]) == (TRACE, SPAN)
