"""Systems for the service tests, on each kind of database."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from zlib import crc32

import pytest
import structlog

from imprimatur.job import DEFAULTS, JobType
from imprimatur.retry import Backoff
from imprimatur.storage.database import Database
from tests.conftest import MakePostgresURL
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System, running_system

_DATABASE = re.compile(r"(?<=[\[-])(sqlite|postgresql)(?=[\]-])")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test on both kinds of database one is kept for the soak, now this, now that: what the kind changes is in
    storage, whose tests in tests/contract run on both."""
    alike: dict[str, list[pytest.Item]] = {}
    for item in items:
        alike.setdefault(_DATABASE.sub("", item.nodeid), []).append(item)
    for name, both in alike.items():
        if len(both) > 1:
            both[crc32(name.encode()) % 2].add_marker(pytest.mark.soak)


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """Drawing traces for a terminal takes longer than most tests."""
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])


@pytest.fixture
async def system(database: Database) -> AsyncIterator[System]:
    """A gateway without a reviewer, on each kind of database."""
    async with running_system(database) as running:
        yield running


@pytest.fixture
async def postgresql_database(postgresql_url: MakePostgresURL) -> AsyncIterator[Database]:
    """An empty PostgreSQL database, for what does not depend on the kind."""
    opened = Database(postgresql_url())
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def system_on_postgresql(postgresql_database: Database) -> AsyncIterator[System]:
    """A gateway without a reviewer, on PostgreSQL."""
    async with running_system(postgresql_database) as running:
        yield running


@pytest.fixture
async def me(system: System) -> Caller:
    """The holder of an admin key."""
    return await system.caller()


@pytest.fixture
def engine() -> ScriptedEngine:
    """An engine that does what the headlines say."""
    return ScriptedEngine()


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    usual = DEFAULTS[JobType.CREATIVE_REVIEW]
    short = replace(usual, backoff=Backoff(first_seconds=0.05, cap_seconds=0.1))
    monkeypatch.setitem(DEFAULTS, JobType.CREATIVE_REVIEW, short)
