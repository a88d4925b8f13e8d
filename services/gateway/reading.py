"""Reads that many callers share: who asks while one statement runs is answered together by the next.

However many ask, one statement runs at a time, so that ten thousand streams that open at once take one connection
of the pool and not ten thousand turns at it. A lone question is asked at once. What cannot be read, such as a job of a
type that only a later version knows, fails alone.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Generic, TypeVar

import structlog

from gateway.rendering import Snapshot, Version
from imprimatur.errors import Unavailable
from imprimatur.storage import jobs
from imprimatur.storage.database import Database

log = structlog.get_logger(__name__)

#: Between one statement and the next, while they follow each other.
_GATHER_SECONDS = 0.005
#: Keys in one statement.
READ_AT_ONCE = 500

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class SharedReads(Generic[_Key, _Value]):
    """Answers questions by key. What is waited for is bounded by those who wait: nothing is kept.

    Args:
        read: the values of these keys; keys that stand for nothing are left out.
    """

    def __init__(self, read: Callable[[Collection[_Key]], Awaitable[Mapping[_Key, _Value]]]) -> None:
        self._read = read
        self._asked: dict[_Key, asyncio.Future[_Value | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """End what is being read; who still waits for it gets Unavailable."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def of(self, keys: Iterable[_Key]) -> dict[_Key, _Value]:
        """What the keys stand for, read after this call: whatever was committed before it is seen.

        Raises:
            Exception: what `read` raised for one of the keys alone, or Unavailable.
        """
        answers = await self._answers(keys)
        found = ((key, answer.result()) for key, answer in answers.items())
        return {key: value for key, value in found if value is not None}

    async def of_readable(self, keys: Iterable[_Key]) -> dict[_Key, _Value]:
        """The same without what cannot be read, of which the log tells.

        Raises:
            Unavailable: nothing can be read now.
        """
        found: dict[_Key, _Value] = {}
        for key, answer in (await self._answers(keys)).items():
            fault = answer.exception()
            if isinstance(fault, Unavailable):
                raise fault
            if fault is not None:
                log.error("what somebody watches cannot be read", key=str(key), exc_info=fault)
            elif (value := answer.result()) is not None:
                found[key] = value
        return found

    async def _answers(self, keys: Iterable[_Key]) -> "dict[_Key, asyncio.Future[_Value | None]]":
        asked = {key: self._ask(key) for key in keys}
        if asked:
            await asyncio.wait(set(asked.values()))  # unlike gather, it leaves them alone when one caller gives up
        return asked

    def _ask(self, key: _Key) -> "asyncio.Future[_Value | None]":
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all(), name="shared-reads")
        return answer

    async def _read_all(self) -> None:
        while self._asked:
            some = {key: self._asked.pop(key) for key in list(self._asked)[:READ_AT_ONCE]}
            try:
                await self._answer(some)
            except asyncio.CancelledError:
                _fail([*some.values(), *self._asked.values()], Unavailable("this process is stopping"))
                self._asked.clear()
                raise
            if self._asked:
                await asyncio.sleep(_GATHER_SECONDS)  # many ask: those who are about to may come along

    async def _answer(self, some: "Mapping[_Key, asyncio.Future[_Value | None]]") -> None:
        """By one statement; after a fault that is one of the keys' own, each half by another."""
        try:
            found = await self._read(some.keys())
        except Exception as fault:  # noqa: BLE001  # handed to whoever asked
            if len(some) == 1 or isinstance(fault, Unavailable):
                _fail(some.values(), fault)
                return
        else:
            for key, answer in some.items():
                answer.set_result(found.get(key))
            return
        asked = iter(some.items())
        await self._answer(dict(islice(asked, len(some) // 2)))
        await self._answer(dict(asked))


def _fail(answers: "Iterable[asyncio.Future[Any]]", fault: Exception) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(fault)
            answer.exception()  # nobody may be waiting any more


def job_reads(database: Database) -> SharedReads[uuid.UUID, Snapshot]:
    """Jobs by id, whoever owns them: whether the asker may see one is the asker's to check."""

    async def read(ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Snapshot]:
        async with database.read() as reader:
            found = await jobs.find_many(reader, ids)
        return {job_id: Snapshot(job=job, version=Version(job)) for job_id, job in found.items()}

    return SharedReads(read)
