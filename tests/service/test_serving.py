"""What `imprimatur serve` runs, in this process: all three services on one folder, and what its ports tell."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from cli import embedded
from cli.embedded import Access, serving
from imprimatur.broker.memory import MemoryBroker
from imprimatur.errors import ConfigurationError
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED
from reviewer.engines import Engine
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, submission


def no_suspects() -> AbstractAsyncContextManager[Engine]:
    raise AssertionError("no job here lost a worker")


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> list[MemoryBroker]:
    """The broker that a server makes for itself, once it runs."""
    made: list[MemoryBroker] = []

    def make() -> MemoryBroker:
        made.append(MemoryBroker())
        return made[-1]

    monkeypatch.setattr(embedded, "MemoryBroker", make)
    return made


@pytest.fixture
async def access(tmp_path: Path, brokers: list[MemoryBroker]) -> AsyncIterator[Access]:
    async with serving(
        tmp_path / "data", ScriptedEngine(), no_suspects, port=0, metrics_port=0, drain_seconds=0.1
    ) as running:
        yield running


async def ready(access: Access) -> tuple[int, dict[str, str]]:
    """The status of /readyz, and what fails."""
    url = access.metrics.replace("/metrics", "/readyz")
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, (await answer.json())["failing"]


async def test_it_serves_by_what_it_leaves_in_its_folder(access: Access, tmp_path: Path) -> None:
    left = tmp_path / "data" / "client.json"
    assert left.stat().st_mode & 0o777 == 0o600
    found = json.loads(left.read_text())
    async with grpc.aio.insecure_channel(found["target"]) as channel:
        me = Caller(channel, found["api_key"])
        await me.until(await me.submit("approve"), JOB_STATE_SUCCEEDED)
    assert await ready(access) == (200, {})


async def test_it_lets_urls_lead_where_its_guard_does(access: Access) -> None:
    async with grpc.aio.insecure_channel(access.target) as channel:
        me = Caller(channel, access.api_key)
        refused = await refusal(me.jobs.SubmitJob(submission("approve", callback_url="http://127.0.0.1:9/")))
    assert (refused.reason, [*refused.violations]) == ("INVALID_URL", ["callback_url"])


async def test_readiness_names_the_consumers_of_reviewer_and_notifier(
    access: Access, brokers: list[MemoryBroker]
) -> None:
    assert await ready(access) == (200, {})
    [broker] = brokers
    await broker.close()
    status, failing = await ready(access)
    assert (status, sorted(failing)) == (503, ["broker", "notifier", "reviewer"])
    assert "consumer" in failing["reviewer"]
    assert "consumer" in failing["notifier"]


async def test_a_taken_port_stops_all_that_was_begun(access: Access, tmp_path: Path) -> None:
    grpc_port, metrics_port = (int(address.split(":")[-1]) for address in (access.target, access.metrics[:-8]))
    for port, metrics, begun, told in (
        (0, metrics_port, False, f"cannot serve /metrics on 127.0.0.1:{metrics_port}"),  # the first to open
        (grpc_port, 0, True, f"cannot listen on 127.0.0.1:{grpc_port}"),  # the last
    ):
        engine = ScriptedEngine()
        with pytest.raises(ConfigurationError, match=told):
            async with serving(
                tmp_path / "other", engine, no_suspects, port=port, metrics_port=metrics, drain_seconds=0.1
            ):
                pass
        assert engine.closed == begun
    async with serving(
        tmp_path / "other", ScriptedEngine(), no_suspects, port=0, metrics_port=0, drain_seconds=0.1
    ) as free:
        assert await ready(free) == (200, {})  # the folder was given free
