"""Systems for the service tests, on each kind of database."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import structlog

from imprimatur.job import DEFAULTS, JobType
from imprimatur.retry import Backoff
from imprimatur.storage.database import Database
from tests.conftest import MakePostgresURL
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System, running_system


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
