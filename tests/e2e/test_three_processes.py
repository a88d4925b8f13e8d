"""Gateway, reviewer and notifier as three processes, on RabbitMQ and PostgreSQL of their own."""

import asyncio
import json
import signal
import sys
from collections import Counter
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from deploy.local import stack
from deploy.local.postgres_exporter import PrivatePostgresExporter
from deploy.local.prometheus import PrivatePrometheus
from deploy.local.server import ServerDidNotStart
from imprimatur.client import Client, is_settled, submission
from imprimatur.identity import new_id
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, Creative
from imprimatur.v1.job_pb2 import (
    ATTEMPT_OUTCOME_LOST,
    ATTEMPT_OUTCOME_SUCCEEDED,
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_QUEUED,
    Job,
    JobState,
)
from imprimatur.v1.job_service_pb2 import JobFilter
from tests.contract.polling import eventually
from tests.e2e import jobs
from tests.e2e.conftest import Receive
from tests.e2e.processes import STOP_SECONDS, Samples, Trio, family, get, is_ready, scrape
from tests.e2e.test_suspects import examined_apart
from tests.service.collector import collecting
from tests.service.provider import answer, gives, providing, slow

_PAUSE_SECONDS = 0.1


async def test_a_batch_is_reviewed_watched_told_by_webhooks_and_counted(trio: Trio, receive: Receive) -> None:
    receiver = receive(trio.stack.webhook_secret)
    before = {name: scrape(port) for name, port in trio.http_ports.items()}
    async with trio.client() as client:
        ids = await jobs.submit_all(client, jobs.requests(jobs.examples(), receiver.url))
        ended = await jobs.settled(client, ids)
        waiting, *_ = [job for job in ended.values() if job.state == JOB_STATE_AWAITING_REVIEW]
        decided = await client.decide(waiting.id, DECISION_APPROVED, "seen, and fine", reviewer="ann")
        status = await client.status()
    told = jobs.outcomes(ended.values()) | jobs.outcomes([decided])
    await eventually(lambda: set(receiver.told()) == told, "a webhook of each outcome")
    assert set(receiver.told().values()) == {1}
    assert status.database.up
    assert status.broker.up
    assert all(map(is_ready, trio.http_ports.values()))

    def counted(service: str, name: str, **labels: str) -> float:
        return _sum(scrape(trio.http_ports[service]), name, labels) - _sum(before[service], name, labels)

    number = len(ids)
    assert counted("gateway", "imprimatur_jobs_submitted_total", type="creative_review") == number
    assert counted("gateway", "imprimatur_rpc_requests_total", code="OK") >= 3
    assert counted("gateway", "imprimatur_human_decisions_total", decision="approved") == 1
    assert counted("reviewer", "imprimatur_claims_total", result="claimed") == number
    assert counted("reviewer", "imprimatur_jobs_finished_total") == number
    assert counted("reviewer", "imprimatur_ai_decisions_total") == number
    assert counted("reviewer", "imprimatur_submit_to_end_seconds_count") == number
    assert counted("reviewer", "imprimatur_fenced_writes_total") == 0
    await eventually(
        lambda: counted("notifier", "imprimatur_webhook_attempts_total", outcome="delivered") == number + 1,
        "all posts counted",
    )
    for service, port in trio.http_ports.items():
        samples = scrape(port)
        assert _sum(samples, "imprimatur_broker_connected", {}) == 1, service
        assert _sum(samples, "process_resident_memory_bytes", {}) > 0, service


async def test_a_job_submitted_at_one_gateway_is_watched_at_another(trio: Trio) -> None:
    other = trio.start("gateway")
    label = {"test": "two gateways"}
    async with trio.client() as one, trio.client(other.target) as two:
        async with aclosing(two.watch_many(JobFilter(labels=label))) as changes:
            assert (await anext(changes)).snapshot_complete
            job = await one.submit(creative=jobs.plain_creative(1), labels=label)
            single = asyncio.create_task(two.wait(job.id, jobs.SETTLE_SECONDS, until_terminal=False))
            seen: list[Job] = []
            while not seen or not is_settled(seen[-1]):
                seen.append((await anext(changes)).job)
        versions = [one.version for one in seen]
        assert {one.id for one in seen} == {job.id}
        assert versions == sorted(set(versions))
        assert (await single).version == versions[-1]
    assert other.terminate() == 0


def test_a_folder_in_which_a_stack_runs_is_not_used_twice(trio: Trio) -> None:
    with pytest.raises(ServerDidNotStart, match="already"):
        stack.start(trio.stack.folder)
    assert all(map(is_ready, trio.http_ports.values()))


def test_up_starts_an_observer_that_died_and_leaves_the_rest(
    trio: Trio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trio.stack.folder
    monkeypatch.setattr(sys, "argv", ["stack", "up", "--folder", str(folder)])
    services = stack.running(folder)
    try:
        assert stack.main() == 0
        prometheus = PrivatePrometheus.attach(folder / "prometheus")
        exporter = PrivatePostgresExporter.attach(folder / "postgresql-exporter")
        assert exporter.address in prometheus.settings.config
        prometheus.kill()
        assert stack.main() == 0
        again = PrivatePrometheus.attach(folder / "prometheus")
        assert (again.alive(), again.url) == (True, prometheus.url)
        assert PrivatePostgresExporter.attach(exporter.folder).pids() == exporter.pids()
        assert set(stack.running(folder)) == {*services, "prometheus", "postgresql-exporter"}
        assert f"metrics   {again.url} " in capsys.readouterr().out
    finally:
        for name in set(stack.running(folder)) - set(services):
            stack._SERVERS[name].attach(folder / name).stop()


def test_stopping_where_nothing_runs_stops_nothing(tmp_path: Path) -> None:
    assert stack.stop(tmp_path) == []


async def test_the_jobs_of_a_killed_reviewer_run_again_elsewhere(trio: Trio, receive: Receive) -> None:
    receiver = receive(trio.stack.webhook_secret)
    successor = trio.start("reviewer")
    successor.send(signal.SIGSTOP)
    try:
        async with trio.client() as client:
            ids = await jobs.submit_all(client, jobs.requests(jobs.plain_creatives(60), receiver.url))
            await client.wait(ids[0], jobs.SETTLE_SECONDS, until_terminal=False)
            trio.remove("reviewer", signal.SIGKILL, successor=successor)
            successor.send(signal.SIGCONT)
            ended = await jobs.settled(client, ids)
            histories = [(await client.get(job_id)).attempt_history for job_id in ids]
    finally:
        successor.send(signal.SIGCONT)
    assert any(ATTEMPT_OUTCOME_LOST in [one.outcome for one in history] for history in histories)
    assert all(history[-1].outcome == ATTEMPT_OUTCOME_SUCCEEDED for history in histories)
    told = jobs.outcomes(ended.values())
    await eventually(lambda: set(receiver.told()) == told, "a webhook of each outcome")
    assert set(receiver.told().values()) == {1}


async def test_a_suspect_is_examined_apart_by_a_reviewer(trio: Trio) -> None:
    fresh = await asyncio.to_thread(trio.start, "reviewer")  # no job has started its engine's children yet
    await asyncio.to_thread(trio.remove, "reviewer", signal.SIGTERM, successor=fresh)
    async with trio.client() as client:
        await examined_apart(client, trio.stack.environ["IMPRIMATUR_DATABASE_URL"])
    assert family(fresh.pid) == [fresh.pid]


async def test_replacing_each_service_in_turn_while_jobs_are_submitted_loses_nothing(
    trio: Trio, receive: Receive
) -> None:
    receiver = receive(trio.stack.webhook_secret)
    gateway = trio.start("gateway")
    stopped = asyncio.Event()
    async with trio.client(*trio.targets, gateway.target) as client:
        submitting = asyncio.create_task(_submit_until(stopped, client, receiver.url))
        for name in ("reviewer", "notifier"):
            successor = await asyncio.to_thread(trio.start, name)
            await asyncio.to_thread(trio.remove, name, signal.SIGTERM, successor=successor)
        await asyncio.to_thread(trio.remove, "gateway", signal.SIGTERM, successor=gateway)
        stopped.set()
        ended = await submitting
    assert len(ended) > 10
    assert all(map(is_settled, ended))
    told = jobs.outcomes(ended)
    await eventually(lambda: set(receiver.told()) == told, "a webhook of each outcome")
    assert set(receiver.told().values()) == {1}


async def test_one_trace_leads_through_all_three_processes_and_their_log_lines(trio: Trio, receive: Receive) -> None:
    receiver = receive(trio.stack.webhook_secret)
    async with collecting() as collector:
        traced = {
            name: await asyncio.to_thread(trio.start, name, IMPRIMATUR_OTLP_ENDPOINT=collector.endpoint)
            for name in ("gateway", "reviewer", "notifier")
        }
        for name, successor in traced.items():
            await asyncio.to_thread(trio.remove, name, signal.SIGTERM, successor=successor)
        async with trio.client() as client:
            with TracerProvider().get_tracer("the caller").start_as_current_span("publish") as theirs:
                job = await client.submit(creative=jobs.plain_creative(1), callback_url=receiver.url)
        submit, *others = await collector.until(
            "imprimatur.v1.JobService/SubmitJob", "review", "engine", "conclude", "webhook"
        )
    review, engine, conclude, webhook = others
    context = theirs.get_span_context()
    assert {one.trace_id for one in (submit, *others)} == {f"{context.trace_id:032x}"}
    assert submit.parent_id == f"{context.span_id:016x}"
    assert {review.parent_id, webhook.parent_id} == {submit.span_id}
    assert {engine.parent_id, conclude.parent_id} == {review.span_id}
    assert [one.service for one in (submit, review, webhook)] == [f"imprimatur-{name}" for name in traced]
    lines = [json.loads(line) for line in traced["notifier"].output.splitlines()]
    [told] = [line for line in lines if line["event"] == "a webhook was delivered"]
    assert (told["job_id"], told["trace_id"], told["span_id"]) == (job.id, webhook.trace_id, webhook.span_id)


async def test_a_reviewer_that_finishes_its_last_job_tells_so_and_is_observed_until_its_end(trio: Trio) -> None:
    async with providing(slow(gives(answer()))) as provider, trio.client() as client:
        draining = await asyncio.to_thread(
            trio.start,
            "reviewer",
            IMPRIMATUR_ENGINE="llm",
            IMPRIMATUR_LLM_MODEL="scripted",
            IMPRIMATUR_LLM_BASE_URL=provider.base_url,
        )
        await asyncio.to_thread(trio.remove, "reviewer", signal.SIGTERM, successor=draining)
        job = await client.submit(creative=jobs.plain_creative(1))
        async with asyncio.timeout(jobs.SETTLE_SECONDS):
            await provider.asked.wait()
        assert await asyncio.to_thread(is_ready, draining.http_port)
        draining.send(signal.SIGTERM)
        await eventually(lambda: not is_ready(draining.http_port), "the reviewer not ready")
        status, body = await asyncio.to_thread(get, draining.http_port, "/readyz")
        assert (status, "stopping" in json.loads(body)["failing"]) == (503, True)
        assert (await asyncio.to_thread(get, draining.http_port, "/livez"))[0] == 200
        samples = await asyncio.to_thread(scrape, draining.http_port)
        assert _sum(samples, "imprimatur_worker_slots_in_use", {}) == 1
        provider.released.set()
        await client.wait(job.id, jobs.SETTLE_SECONDS)
        assert await asyncio.to_thread(draining.wait, STOP_SECONDS) == 0
        history = (await client.get(job.id)).attempt_history
        assert [attempt.outcome for attempt in history] == [ATTEMPT_OUTCOME_SUCCEEDED]
        successor = await asyncio.to_thread(trio.start, "reviewer")
        await asyncio.to_thread(trio.remove, "reviewer", signal.SIGTERM, successor=successor)


async def test_sixteen_equal_creatives_cost_one_look_and_two_when_the_reviewer_that_looks_is_killed(trio: Trio) -> None:
    async with providing(slow(gives(answer()))) as provider, trio.client() as client:
        settings = {
            "IMPRIMATUR_ENGINE": "llm",
            "IMPRIMATUR_LLM_MODEL": "scripted",
            "IMPRIMATUR_LLM_BASE_URL": provider.base_url,
        }
        both = [await asyncio.to_thread(partial(trio.start, "reviewer", **settings)) for _ in range(2)]
        await asyncio.to_thread(trio.remove, "reviewer", signal.SIGTERM, successor=both[0])
        ids = await _equal(client, "Figs from the tree", 16)
        await _waiting_for_one(client, ids)
        provider.released.set()
        assert sum(job.creative_review.ai_review.HasField("reused") for job in await _approved(client, ids)) == 15
        assert len(provider.calls) == 1

        provider.follow(slow(gives(answer())))
        provider.released.clear()
        ids = await _equal(client, "Plums from the tree", 16)
        await _waiting_for_one(client, ids)
        [struck] = [one for one in both if _sum(scrape(one.http_port), "imprimatur_worker_slots_in_use", {}) == 1]
        await asyncio.to_thread(struck.kill)
        await eventually(lambda: len(provider.calls) == 2, "somebody else's look")
        provider.released.set()
        assert sum(job.creative_review.ai_review.HasField("reused") for job in await _approved(client, ids)) == 15
        assert len(provider.calls) == 2
        [left] = [one for one in both if one is not struck]
        trio.current["reviewer"] = left
        successor = await asyncio.to_thread(trio.start, "reviewer")
        await asyncio.to_thread(trio.remove, "reviewer", signal.SIGTERM, successor=successor)


async def _equal(client: Client, headline: str, number: int) -> list[str]:
    """The ids of so many jobs about the same, which their sellers know by names of their own."""
    creatives = [Creative(creative_id=f"cr-{number}-{new_id()}", headline=headline) for number in range(number)]
    return await jobs.submit_all(client, jobs.requests(creatives, ""))


async def _waiting_for_one(client: Client, ids: list[str]) -> None:
    """Return when all but one of the jobs wait for that one."""
    async with asyncio.timeout(jobs.SETTLE_SECONDS):
        while True:
            states = Counter([JobState.Name((await client.get(job_id)).state) for job_id in ids])
            waiting = [job async for job in client.list(JobFilter(states=[JOB_STATE_QUEUED]))]
            events = [{event.kind async for event in client.events(job.id)} for job in waiting]
            if (
                states["JOB_STATE_RUNNING"] == 1
                and sum("waiting_for_twin" in kinds for kinds in events) == len(ids) - 1
            ):
                return
            await asyncio.sleep(_PAUSE_SECONDS)


async def _approved(client: Client, ids: list[str]) -> list[Job]:
    ended = list((await jobs.settled(client, ids)).values())
    assert {job.creative_review.decision for job in ended} == {DECISION_APPROVED}
    return ended


async def _submit_until(stopped: asyncio.Event, client: Client, callback_url: str) -> list[Job]:
    """Submit one after the other and watch each; the jobs as they came to rest."""
    watches: list[asyncio.Task[Job]] = []
    while not stopped.is_set():
        request = submission(jobs.plain_creative(len(watches)), callback_url=callback_url)
        job = await client.submit(request)
        watch = client.wait(job.id, jobs.SETTLE_SECONDS, until_terminal=False)
        watches.append(asyncio.create_task(watch))
        await asyncio.sleep(_PAUSE_SECONDS)
    return await asyncio.gather(*watches)


def _sum(samples: Samples, name: str, labels: dict[str, str]) -> float:
    """Over all series of the name that have these labels."""
    return sum(value for (one, has), value in samples.items() if one == name and labels.items() <= dict(has).items())
