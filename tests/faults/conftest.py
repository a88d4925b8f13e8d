"""Worlds for the fault suite, one of each surface at a time, and the report of what struck them."""

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.faults import report
from tests.faults.rows import Row
from tests.faults.world import Surface, World, a_world

#: How often each fault strikes in a soak.
INJECTIONS = int(os.environ.get("SOAK_INJECTIONS", "20"))
#: What a storm draws from; set STORM_SEED to the number that a failure printed to draw the same again.
STORM_SEED = int(os.environ.get("STORM_SEED") or secrets.randbits(32))

Worlds = Callable[[Surface], Awaitable[World]]
_rows: list[Row] = []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worlds]:
    """Gives the world of a surface, and ends the one before: two do not fit on a small machine. One in which an
    attack broke off is not used again."""
    present: dict[Surface, World] = {}
    async with AsyncExitStack() as stack:

        async def world_of(surface: Surface) -> World:
            if surface not in present or not present[surface].sound:
                present.clear()
                await stack.aclose()
                folder = tmp_path_factory.mktemp("world")
                present[surface] = await stack.enter_async_context(a_world(folder, surface))
            return present[surface]

        yield world_of


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """What was found, row by row."""
    return _rows


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if _rows:
        terminalreporter.section("faults")
        terminalreporter.write(report.printed(_rows))
