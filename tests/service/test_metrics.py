"""What each service tells its operators: /metrics, /livez and /readyz on a real port."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sized
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from sqlalchemy import event

from deploy.local.postgres import PrivatePostgres
from deploy.prometheus import rulebook
from gateway.statistics import show_unfinished
from gateway.watching import Watchtower
from imprimatur import metrics
from imprimatur.broker import Queue
from imprimatur.broker.memory import MemoryBroker
from imprimatur.errors import AttemptError, Unavailable, UnreviewableInput
from imprimatur.gauges import Gauges
from imprimatur.guard import Guard
from imprimatur.job import WORKERS_LOST, AttemptOutcome, Happening, JobType, Priority
from imprimatur.process import Surroundings
from imprimatur.runtime import Check, HttpPort, http_port
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.jobs import Owner
from imprimatur.tenancy import Role
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import GetJobRequest, GetStatsRequest, ListJobsRequest
from imprimatur.v1.review_service_pb2 import DecideReviewRequest, ListPendingReviewsRequest
from notifier.post import Outcome
from notifier.service import notifier
from reviewer.children import _NOT_STARTED, DIED
from reviewer.engines.llm import faults
from reviewer.images.darkroom import DECODER_DIED
from reviewer.images.fetching import UNAVAILABLE
from tests import makers
from tests.contract.polling import eventually
from tests.deploy import promql
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import System, on_postgresql

_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}|\bcr-|imp_|@|://|/[a-z]")


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def scraped(port: int) -> dict[str, Metric]:
    status, body = await get(port, "/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(body))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(family.documentation for family in families if family.name.startswith("imprimatur_"))
    return {family.name: family for family in families}


def total(families: dict[str, Metric], name: str, **labels: str) -> float:
    wanted = labels.items()
    return sum(
        one.value
        for one in families[name].samples
        if wanted <= one.labels.items() and not one.name.endswith(("_created", "_sum", "_bucket"))
    )


@asynccontextmanager
async def observed(system: System, service: str) -> AsyncIterator[tuple[int, ScriptedEngine]]:
    """The HTTP port of a service, wired as its __main__ wires it, in a system in which all three run."""
    engine = ScriptedEngine()
    around = Surroundings(database=system.database, broker=system.broker)
    guard = Guard(allow_private=True, allow_http=True)
    async with (
        system.reviewer(engine) as reviewing,
        notifier(system.database, system.broker, system.vault, guard, drain_seconds=0.1) as notifying,
    ):
        own: dict[str, dict[str, Check]] = {
            "gateway": {},
            "reviewer": {"consumers": reviewing.consuming},
            "notifier": {"consumer": notifying.consuming},
        }
        checks = {**around.checks(), **own[service]}
        async with http_port("127.0.0.1", 0) as http, http.ready(checks, around.observe):
            yield http.number, engine


@pytest.mark.parametrize("service", ["gateway", "reviewer", "notifier"])
async def test_the_metrics_of_each_service_can_be_scraped_and_tell_what_happened(
    system_on_postgresql: System, service: str
) -> None:
    system = system_on_postgresql
    me = await system.caller()
    async with observed(system, service) as (port, _engine):
        before = await scraped(port)
        job = await me.until(await me.submit(engines.APPROVE), SUCCEEDED)
        with pytest.raises(Exception, match="NOT_FOUND"):
            await me.jobs.GetJob(GetJobRequest(job_id=str(uuid.uuid4())))
        after = await scraped(port)
        for name, labels in {
            "imprimatur_rpc_requests": {"rpc": "GetJob", "code": "NOT_FOUND"},
            "imprimatur_rpc_duration_seconds": {"rpc": "GetJob", "code": "NOT_FOUND"},
            "imprimatur_jobs_submitted": {"type": "creative_review", "priority": "normal"},
            "imprimatur_jobs_finished": {"type": "creative_review", "state": "succeeded"},
            "imprimatur_claims": {"result": "claimed"},
            "imprimatur_ai_decisions": {"decision": "approved", "policy_triggered": "auto_approve"},
            "imprimatur_submit_to_start_seconds": {"type": "creative_review", "priority": "normal"},
            "imprimatur_submit_to_end_seconds": {"type": "creative_review", "priority": "normal"},
            "imprimatur_attempt_duration_seconds": {"outcome": "succeeded"},
            "imprimatur_engine_duration_seconds": {"engine": "scripted"},
            "imprimatur_broker_deliveries": {"queue": "review.normal", "redelivered": "false"},
        }.items():
            assert total(after, name, **labels) == total(before, name, **labels) + 1, name
        assert total(after, "imprimatur_broker_connected") == 1
        assert job.id not in str(after)
        for family in after.values():
            for sample in family.samples:
                strange = [value for value in sample.labels.values() if _ID.search(value)]
                assert not strange or not family.name.startswith("imprimatur_"), (sample.name, strange)
        assert "process_resident_memory_bytes" in after


async def test_the_time_of_a_call_is_counted_under_the_code_it_ends_with(system_on_postgresql: System) -> None:
    system = system_on_postgresql
    me, submitter = await system.caller(), await system.caller(Role.SUBMITTER)
    nobody = await system.holder(None)
    calls: dict[tuple[str, str], tuple[Any, Any]] = {
        ("GetStats", "OK"): (me.jobs, GetStatsRequest()),
        ("GetJob", "NOT_FOUND"): (me.jobs, GetJobRequest(job_id=str(uuid.uuid4()))),
        ("GetJob", "INVALID_ARGUMENT"): (me.jobs, GetJobRequest(job_id="none")),
        ("ListJobs", "UNAUTHENTICATED"): (nobody.jobs, ListJobsRequest()),
        ("ListPendingReviews", "PERMISSION_DENIED"): (submitter.reviews, ListPendingReviewsRequest()),
    }
    for (rpc, code), (stub, request) in calls.items():
        before = twice_counted(rpc, code)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await getattr(stub, rpc)(request)
        after = [number + 1 for number in before]  # once the gateway has done with it, a moment after its answer
        await eventually(partial(counts, rpc, code, after), f"{rpc} {code} counted")


def twice_counted(rpc: str, code: str) -> list[float]:
    return [counted(name, rpc=rpc, code=code) for name in (_RPC_REQUESTS, _RPC_SECONDS)]


def counts(rpc: str, code: str, wanted: list[float]) -> bool:
    return twice_counted(rpc, code) == wanted


_RPC_REQUESTS, _RPC_SECONDS = "imprimatur_rpc_requests_total", "imprimatur_rpc_duration_seconds_count"


def counted(name: str, **labels: str) -> float:
    """Over all series of the name that have these labels."""
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.usefixtures("short_backoff")
async def test_a_review_counts_as_one_decision_of_the_ai_whatever_it_takes(
    system_on_postgresql: System, engine: ScriptedEngine
) -> None:
    me = await system_on_postgresql.caller()
    async with system_on_postgresql.reviewer(engine):
        for headline, trigger, state in (
            ("fail 2", "auto_approve", SUCCEEDED),  # two failures, then an approval
            ("fail 9", "engine_error", AWAITING),
            (engines.HUMAN, "uncertain", AWAITING),
            (engines.UNREADABLE, "", FAILED),
        ):
            before = counted(_DECISIONS), counted(_DECISIONS, policy_triggered=trigger)
            job = await me.until(await me.submit(headline, headline), state)
            if state == AWAITING:
                await me.reviews.DecideReview(DecideReviewRequest(job_id=job.id, decision=1, reason="So."))  # type: ignore[arg-type]  # approved
            number = 1 if trigger else 0
            wanted = before[0] + number, before[1] + number
            assert (counted(_DECISIONS), counted(_DECISIONS, policy_triggered=trigger)) == wanted, headline


_DECISIONS = "imprimatur_ai_decisions_total"


@on_postgresql
async def test_only_news_counts_towards_the_lag_of_watches(database: Database) -> None:
    broker, tenant = MemoryBroker(), await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    await broker.start()
    tower = Watchtower(database, broker, reread_seconds=0.02)  # everything watched is read again and again
    await tower.start()
    before = counted(_WATCH_LAG)
    watch = tower.watch(Owner(tenant_id=tenant), claim.job_id)
    assert (await anext(watch)).number == 2
    pending = asyncio.ensure_future(anext(watch))
    statements: list[object] = []
    event.listen(database.engine.sync_engine, "after_cursor_execute", lambda *seen: statements.append(seen))
    await makers.until(lambda: _has(statements, 5))
    assert counted(_WATCH_LAG) == before
    await makers.conclude(database, claim, Happening.COMPLETED)
    assert (await pending).number == 3
    assert counted(_WATCH_LAG) == before + 1
    await tower.stop()
    await broker.close()


_WATCH_LAG = "imprimatur_watch_lag_seconds_count"


async def test_a_look_that_fails_is_counted_and_the_next_one_shows(database: Database) -> None:
    failed = REGISTRY.get_sample_value(_FAILURES, {"loop": "looking"}) or 0
    shown = asyncio.Event()

    async def look(_reader: Reader) -> None:
        if (REGISTRY.get_sample_value(_FAILURES, {"loop": "looking"}) or 0) < failed + 2:
            raise Unavailable("the database is slow")
        shown.set()

    gauges = Gauges("looking", database, look, every_seconds=0.001)
    gauges.start()
    try:
        async with asyncio.timeout(10):
            await shown.wait()
    finally:
        await gauges.stop()


_FAILURES = "imprimatur_background_failures_total"


@on_postgresql
async def test_the_gauges_tell_what_waits_and_zero_where_nothing_does(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    later = makers.new_job(tenant, run_at=datetime.now(UTC) + timedelta(hours=1))
    now = (makers.new_job(tenant), makers.new_job(tenant, priority=Priority.HIGH))
    waiting = await makers.submit(database, *now, later)
    await makers.awaiting(database, tenant, priority=Priority.LOW)
    gauges = Gauges("gauges", database, show_unfinished, every_seconds=0.02)
    gauges.start()

    async def show(**numbers: float) -> None:
        await makers.until(lambda: _async({name: counted(_JOBS, state=name) for name in numbers} == numbers))

    try:
        await show(queued=3, running=0, awaiting_review=1)
        assert counted(_JOBS, state="queued", priority="normal") == 2
        assert counted(_OLDEST, priority="high") > 0
        assert counted(_DUE, priority="high") == 1
        assert counted(_DUE, priority="normal") == 1  # the other is for later
        for job in waiting:
            await makers.cancel(database, job)
        await show(queued=0, running=0, awaiting_review=1)
    finally:
        await gauges.stop()
    shown = {tuple(sample.labels.values()): sample.value for sample in _samples(_JOBS)}
    assert len(shown) == 3 * len(JobType) * len(Priority)
    assert [sample.value for sample in _samples(_DUE)] == [0] * len(JobType) * len(Priority)
    assert {sample.labels["priority"]: sample.value for sample in _samples(_OLDEST)} == {
        "high": 0,
        "normal": 0,
        "low": 0,
    }


_JOBS, _DUE, _OLDEST = "imprimatur_jobs", "imprimatur_due_jobs", "imprimatur_oldest_due_job_age_seconds"


def _samples(name: str) -> list[Sample]:
    return [sample for family in REGISTRY.collect() for sample in family.samples if sample.name == name]


async def _async(answer: bool) -> bool:
    return answer


@on_postgresql
async def test_the_connections_in_use_are_told_beside_how_many_there_may_be(database: Database) -> None:
    around = Surroundings(database=database, broker=MemoryBroker())
    async with database.read():
        await around.observe()
        assert counted("imprimatur_database_connections_in_use") == 1
    assert counted("imprimatur_database_pool_size") == 10


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """The series of gateway, reviewer and notifier just started, in a process of their own: here everything has
    happened already."""
    folder = tmp_path_factory.mktemp("fresh")
    command = [sys.executable, "-c", _START_AND_SCRAPE, str(folder / "data"), str(folder / "scraped")]
    subprocess.run(command, capture_output=True, check=True, cwd=_ROOT)
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families((folder / "scraped").read_text())
        for sample in family.samples
    }


_ROOT = Path(__file__).parents[2]
_START_AND_SCRAPE = """
import asyncio, pathlib, sys, urllib.request
from cli.embedded import serving
from tests.service.engines import ScriptedEngine

async def main():
    data = pathlib.Path(sys.argv[1])
    async with serving(data, ScriptedEngine(), None, port=0, metrics_port=0, drain_seconds=0.1) as access:
        await asyncio.to_thread(urllib.request.urlretrieve, access.metrics, sys.argv[2])

asyncio.run(main())
"""
#: Labels that a rule need not name because it looks at all of them.
_EACH: dict[str, dict[str, Iterable[str]]] = {
    "imprimatur_rpc_requests_total": {"rpc": promql.VALUES["rpc"]},
    "imprimatur_attempt_errors_total": {"type": JobType, "error_code": metrics.ATTEMPT_ERRORS},
    "imprimatur_attempt_duration_seconds_count": {"type": JobType, "outcome": AttemptOutcome},
    "imprimatur_webhook_attempts_total": {"outcome": Outcome},
    "imprimatur_broker_messages_set_aside_total": {"queue": [queue for queue in Queue if queue is not Queue.PARKED]},
    "imprimatur_submit_to_start_seconds_count": {"type": JobType},
    "imprimatur_submit_to_start_seconds_bucket": {"type": JobType},
}
_COUNTED = re.compile(r"\b(?:rate|increase)\(([^\[\]]+)\[")


def _looked_at(expr: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every series of which a rule takes the increase, by what must be among its labels."""
    for found in _COUNTED.findall(expr):
        [selector] = promql.selectors(found)
        named = {label: value.split("|") for label, how, value in selector.matchers if how in {"=", "=~"}}
        domains = {**_EACH.get(selector.metric, {}), **named}
        for values in product(*domains.values()):
            yield selector.metric, dict(zip(domains, map(str, values), strict=True))


def test_every_series_that_alerts_count_is_there_before_anything_happens(
    fresh: set[tuple[str, frozenset[tuple[str, str]]]],
) -> None:
    """The first event would otherwise be no increase, but the birth of a series."""
    rules = [one.expr for one in rulebook.alerts()] + [one.expr for one in rulebook.recordings()]
    wanted = [one for rule in rules for one in _looked_at(rule)]
    assert len(wanted) > 100
    missing = [
        (name, labels)
        for name, labels in wanted
        if not any(name == known and labels.items() <= set(has) for known, has in fresh)
    ]
    assert not missing


def test_every_error_that_attempts_may_end_with_is_counted_from_zero_on() -> None:
    sources = "\n".join(path.read_text() for path in (_ROOT / "services" / "reviewer").rglob("*.py"))
    thrown = set(re.findall(r'code="([a-z_]+)"', sources)) | {
        DIED,
        _NOT_STARTED,
        WORKERS_LOST,
        DECODER_DIED,
        UNAVAILABLE,
    }
    thrown |= {code for _, (code, _) in (*faults._PERMANENT, *faults._TRANSIENT)}
    classes = {AttemptError.code} | {one.code for one in _descendants(AttemptError)}
    assert set(metrics.ATTEMPT_ERRORS) == (thrown | classes) - {UnreviewableInput.code}


def _descendants(root: type[AttemptError]) -> Iterator[type[AttemptError]]:
    for one in root.__subclasses__():
        yield one
        yield from _descendants(one)


async def _cancel_consumers(broker: MemoryBroker, queue: Queue) -> None:
    for consumer in list(broker._queues[queue].consumers):
        await consumer.close()


async def test_a_service_whose_consumers_the_broker_has_dropped_says_so(system_on_postgresql: System) -> None:
    def consuming() -> set[tuple[str, float]]:
        return {(sample.labels["service"], sample.value) for sample in _samples("imprimatur_broker_consuming")}

    async with observed(system_on_postgresql, "reviewer") as (port, _engine):
        assert consuming() == {("reviewer", 1), ("notifier", 1)}
        broker = system_on_postgresql.broker
        assert isinstance(broker, MemoryBroker)
        await _cancel_consumers(broker, Queue.NOTIFIER_EVENTS)
        assert consuming() == {("reviewer", 1), ("notifier", 0)}
        await _cancel_consumers(broker, Queue.REVIEW_LOW)  # one of three is enough
        assert consuming() == {("reviewer", 0), ("notifier", 0)}
        assert broker.connected
        assert (await get(port, "/readyz"))[0] == 503


async def _has(found: Sized, number: int) -> bool:
    return len(found) >= number


async def test_a_service_is_ready_while_everything_it_needs_is_there(system_on_postgresql: System) -> None:
    for service in ("gateway", "reviewer", "notifier"):
        async with observed(system_on_postgresql, service) as (port, _engine):
            assert await get(port, "/readyz") == (200, '{"status": "ready", "failing": {}}')
    await system_on_postgresql.broker.close()
    around = Surroundings(database=system_on_postgresql.database, broker=system_on_postgresql.broker)
    async with http_port("127.0.0.1", 0) as http, http.ready(around.checks()):
        status, body = await get(http.number, "/readyz")
        assert (status, "broker" in body, "database" in body) == (503, True, False)
        assert (await get(http.number, "/livez"))[0] == 200


async def test_a_process_is_ready_from_when_everything_is_up_until_it_stops() -> None:
    observed: list[str] = []

    async def seen(name: str) -> None:
        observed.append(name)

    async def told(http: HttpPort) -> list[str]:
        observed.clear()
        assert (await get(http.number, "/livez"))[0] == (await get(http.number, "/metrics"))[0] == 200
        status, body = await get(http.number, "/readyz")
        failing = json.loads(body)["failing"]
        assert status == (503 if failing else 200)
        return [*failing, *observed]

    async def fails() -> str:
        return "it is away"

    async with http_port("127.0.0.1", 0) as http:
        assert await told(http) == ["starting"]
        with http.telling({"database": fails}, partial(seen, "database")):
            assert await told(http) == ["starting", "database", "database"]
        with http.telling({}, partial(seen, "database")):
            async with http.ready({}, partial(seen, "service")):
                assert await told(http) == ["database", "service"]
            assert await told(http) == ["stopping", "database"]
        assert await told(http) == ["stopping"]


async def test_a_service_is_not_ready_without_its_database_and_lives_on(
    system_on_postgresql: System, postgresql: PrivatePostgres
) -> None:
    password = "a-password-that-nobody-may-see"
    nowhere = Database(f"postgresql://somebody:{password}@127.0.0.1:1/nothing")
    around = Surroundings(database=nowhere, broker=system_on_postgresql.broker)
    async with http_port("127.0.0.1", 0) as http, http.ready(around.checks(), around.observe):
        status, body = await get(http.number, "/readyz")
        assert status == 503
        assert '"database"' in body
        assert password not in body
        assert (await get(http.number, "/livez"))[0] == 200
        assert (await get(http.number, "/metrics"))[0] == 200
    await nowhere.close()
