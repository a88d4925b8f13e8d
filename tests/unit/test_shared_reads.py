"""Reads that many share: one statement at a time, read after the question, and one caller's end is nobody else's."""

import asyncio
from collections.abc import Collection

import pytest

from gateway.reading import READ_AT_ONCE, SharedReads
from imprimatur.errors import Unavailable


class Store:
    """Answers when its gate is open; keys are answered by their squares, but 13 by nothing."""

    def __init__(self) -> None:
        self.statements: list[list[int]] = []
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()
        self.fault: Exception | None = None
        self.damaged: set[int] = set()

    async def read(self, keys: Collection[int]) -> dict[int, int]:
        self.statements.append(sorted(keys))
        self.asked.set()
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        if self.damaged & set(keys):
            raise ValueError("this cannot be decoded")
        return {key: key * key for key in keys if key != 13}


async def test_who_asks_while_a_statement_runs_is_answered_by_the_next() -> None:
    store = Store()
    reads = SharedReads(store.read)
    first = asyncio.create_task(reads.of([1, 2]))
    await store.asked.wait()
    later = [asyncio.create_task(reads.of(keys)) for keys in ([1, 13], [3], [3, 4])]
    await asyncio.sleep(0)
    store.gate.set()
    assert await first == {1: 1, 2: 4}
    assert await asyncio.gather(*later) == [{1: 1}, {3: 9}, {3: 9, 4: 16}]
    assert store.statements == [[1, 2], [1, 3, 4, 13]]


async def test_a_question_is_never_answered_by_a_statement_that_began_before_it() -> None:
    store = Store()
    reads = SharedReads(store.read)
    before = asyncio.create_task(reads.of([1]))
    await store.asked.wait()
    after = asyncio.create_task(reads.of([1]))
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(before, after)
    assert store.statements == [[1], [1]]


async def test_a_caller_who_gives_up_takes_no_answer_from_the_others() -> None:
    store = Store()
    reads = SharedReads(store.read)
    leaving, staying = asyncio.create_task(reads.of([1])), asyncio.create_task(reads.of([1]))
    await store.asked.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    store.gate.set()
    assert await staying == {1: 1}


async def test_a_fault_reaches_everybody_who_asked_and_nobody_after() -> None:
    store = Store()
    store.fault = Unavailable("not now")
    reads = SharedReads(store.read)
    store.gate.set()
    answers = await asyncio.gather(reads.of([1]), reads.of([1, 2]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    store.fault = None
    assert await reads.of([2]) == {2: 4}


async def test_what_cannot_be_read_fails_alone_for_few_statements() -> None:
    store = Store()
    store.damaged = {77}
    reads = SharedReads(store.read)
    store.gate.set()
    readable, of_all = await asyncio.gather(
        reads.of_readable(range(READ_AT_ONCE)), reads.of(range(READ_AT_ONCE)), return_exceptions=True
    )
    assert readable == {key: key * key for key in range(READ_AT_ONCE) if key not in (13, 77)}
    assert isinstance(of_all, ValueError)
    assert len(store.statements) < 20


async def test_when_nothing_can_be_read_it_is_not_tried_again_in_parts() -> None:
    store = Store()
    store.fault = Unavailable("not now")
    store.gate.set()
    with pytest.raises(Unavailable):
        await SharedReads(store.read).of_readable([1, 2])
    assert store.statements == [[1, 2]]


async def test_a_statement_has_no_more_keys_than_it_may() -> None:
    store = Store()
    store.gate.set()
    assert len(await SharedReads(store.read).of(range(2 * READ_AT_ONCE + 1))) == 2 * READ_AT_ONCE
    assert [len(statement) for statement in store.statements] == [READ_AT_ONCE, READ_AT_ONCE, 1]


async def test_no_question_asks_nothing() -> None:
    store = Store()
    assert await SharedReads(store.read).of([]) == {}
    assert store.statements == []


async def test_who_waits_when_the_process_stops_is_told() -> None:
    store = Store()
    reads = SharedReads(store.read)
    waiting = asyncio.create_task(reads.of([1]))
    await store.asked.wait()
    next_one = asyncio.create_task(reads.of([2]))
    await asyncio.sleep(0)
    await reads.stop()
    for one in (waiting, next_one):
        with pytest.raises(Unavailable):
            await one
