"""Group commit in the notifier."""

import asyncio
from collections.abc import Sequence

import pytest
from notifier.batches import Batches

from imprimatur.errors import Unavailable


class Table:
    """Takes batches while `gate` is open; refuses a batch with a "bad" item whole."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reachable = True

    async def write(self, items: Sequence[str]) -> None:
        self.batches.append(list(items))
        await self.gate.wait()
        if not self.reachable:
            raise Unavailable("out of reach")
        if "bad" in items:
            raise ValueError("a bad item")


async def test_a_lone_item_is_written_at_once_and_company_that_comes_meanwhile_together() -> None:
    table = Table()
    batches = Batches("test", table.write, most=3)
    batches.start()
    table.gate.clear()
    first = asyncio.ensure_future(batches.add("first"))
    while not table.batches:  # noqa: ASYNC110  # the writer has begun
        await asyncio.sleep(0)
    others = [asyncio.ensure_future(batches.add(name)) for name in "abcd"]
    await asyncio.sleep(0)
    table.gate.set()

    await asyncio.gather(first, *others)

    assert table.batches == [["first"], ["a", "b", "c"], ["d"]]
    await batches.stop()


async def test_one_bad_item_fails_alone() -> None:
    table = Table()
    batches = Batches("test", table.write)
    adding = [asyncio.ensure_future(batches.add(name)) for name in ("good", "bad", "fine")]
    await asyncio.sleep(0)
    batches.start()

    results = await asyncio.gather(*adding, return_exceptions=True)

    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    await batches.stop()


async def test_an_unreachable_database_is_not_asked_for_each_item() -> None:
    table = Table()
    table.reachable = False
    batches = Batches("test", table.write)
    adding = [asyncio.ensure_future(batches.add(name)) for name in "abc"]
    await asyncio.sleep(0)
    batches.start()

    results = await asyncio.gather(*adding, return_exceptions=True)

    assert all(isinstance(result, Unavailable) for result in results)
    assert len(table.batches) == 1
    await batches.stop()


async def test_a_caller_that_is_cancelled_cancels_no_one_elses_item() -> None:
    table = Table()
    batches = Batches("test", table.write)
    impatient, patient = asyncio.ensure_future(batches.add("a")), asyncio.ensure_future(batches.add("b"))
    await asyncio.sleep(0)
    impatient.cancel()
    batches.start()

    await patient

    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert table.batches == [["a", "b"]]
    await batches.stop()
