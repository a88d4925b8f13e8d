"""What each service tells its operators: /metrics, /livez and /readyz on a real port."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from deploy.local.postgres import PrivatePostgres
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import System

from imprimatur.guard import Guard
from imprimatur.process import Surroundings
from imprimatur.runtime import Check, http_port
from imprimatur.storage.database import Database
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED
from imprimatur.v1.job_service_pb2 import GetJobRequest
from notifier.service import notifier

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

        async def observe() -> None:
            await around.observe()
            if service == "notifier":
                await notifying.observe()

        async with http_port("127.0.0.1", 0, {**around.checks(), **own[service]}, observe) as port:
            yield port, engine


@pytest.mark.parametrize("service", ["gateway", "reviewer", "notifier"])
async def test_the_metrics_of_each_service_can_be_scraped_and_tell_what_happened(
    system_on_postgresql: System, service: str
) -> None:
    system = system_on_postgresql
    me = await system.caller()
    async with observed(system, service) as (port, _engine):
        before = await scraped(port)
        job = await me.until(await me.submit(engines.APPROVE), JOB_STATE_SUCCEEDED)
        with pytest.raises(Exception, match="NOT_FOUND"):
            await me.jobs.GetJob(GetJobRequest(job_id=str(uuid.uuid4())))
        after = await scraped(port)
        for name, labels in {
            "imprimatur_rpc_requests": {"rpc": "GetJob", "code": "NOT_FOUND"},
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


async def test_a_service_is_ready_while_everything_it_needs_is_there(system_on_postgresql: System) -> None:
    for service in ("gateway", "reviewer", "notifier"):
        async with observed(system_on_postgresql, service) as (port, _engine):
            assert await get(port, "/readyz") == (200, '{"status": "ready", "failing": {}}')
    await system_on_postgresql.broker.close()
    around = Surroundings(database=system_on_postgresql.database, broker=system_on_postgresql.broker)
    async with http_port("127.0.0.1", 0, around.checks()) as port:
        status, body = await get(port, "/readyz")
        assert (status, "broker" in body, "database" in body) == (503, True, False)
        assert (await get(port, "/livez"))[0] == 200


async def test_a_service_is_not_ready_without_its_database_and_lives_on(
    system_on_postgresql: System, postgresql: PrivatePostgres
) -> None:
    password = "a-password-that-nobody-may-see"
    nowhere = Database(f"postgresql://somebody:{password}@127.0.0.1:1/nothing")
    around = Surroundings(database=nowhere, broker=system_on_postgresql.broker)
    async with http_port("127.0.0.1", 0, around.checks(), around.observe) as port:
        status, body = await get(port, "/readyz")
        assert status == 503
        assert '"database"' in body
        assert password not in body
        assert (await get(port, "/livez"))[0] == 200
        assert (await get(port, "/metrics"))[0] == 200
    await nowhere.close()
