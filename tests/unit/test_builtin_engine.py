"""The builtin engine as the reviewer runs it: in child processes."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from imprimatur.errors import TimedOut, UnreviewableInput
from imprimatur.evidence import Creative, Evidence, Image
from reviewer.engines import Engine
from reviewer.engines.builtin import examiner
from reviewer.engines.builtin.engine import BuiltinEngine

CREATIVE = Creative(creative_id="c1", headline="Fresh bread, every morning", body="Our bakers start at four.")


@pytest.fixture
async def engine() -> AsyncIterator[BuiltinEngine]:
    engine = BuiltinEngine(processes=2)
    yield engine
    await engine.close()


async def test_a_child_process_finds_what_this_one_finds(engine: BuiltinEngine) -> None:
    protocol: Engine = engine
    evidence: Evidence = await protocol.examine(CREATIVE)
    assert evidence == examiner.examine(CREATIVE)
    assert evidence.engine == protocol.identity


async def test_many_creatives_at_once_get_their_own_evidence(engine: BuiltinEngine) -> None:
    await engine.start()
    headlines = ["Fresh bread", "Vote for Smith", "Craft beer on tap", "Wool socks"]
    creatives = [Creative(creative_id=str(n), headline=headlines[n % 4]) for n in range(12)]
    found = await asyncio.gather(*map(engine.examine, creatives))
    assert found == [examiner.examine(creative) for creative in creatives]


async def test_a_broken_image_is_a_permanent_error_across_the_process_border(engine: BuiltinEngine) -> None:
    broken = Creative(creative_id="c1", headline="Bread", images=(Image(name="a", data=b"nonsense"),))
    with pytest.raises(UnreviewableInput, match=r"^images\[0\]: "):
        await engine.examine(broken)
    assert isinstance(await engine.examine(CREATIVE), Evidence)


async def test_an_examination_that_takes_too_long_is_given_up() -> None:
    engine = BuiltinEngine(processes=1, timeout_seconds=0.001)
    try:
        with pytest.raises(TimedOut):
            await engine.examine(Creative(creative_id="c1", body="Our boots are warm, soft and dry. " * 500))
    finally:
        await engine.close()


async def test_a_child_with_the_model_stays_small(engine: BuiltinEngine) -> None:
    await engine.examine(CREATIVE)
    status = await engine._pool.run(_own_status)
    resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident_kib < 220 * 1024


def _own_status() -> str:
    with open(f"/proc/{os.getpid()}/status") as file:
        return file.read()
