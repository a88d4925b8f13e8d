"""Group commit: what arrives while one batch is written is written together as the next. A lone item waits for no
company, so it is as fast as without; only while items come in company may a batch linger for those right behind."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Generic, TypeAlias, TypeVar

from imprimatur.errors import Unavailable

#: Under load, so long for those right behind: written together, they cost about half as much.
LINGER_SECONDS = 0.004

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: One answer for each item, in their order; an exception is the item's own and is raised to whoever added it.
Write: TypeAlias = Callable[[Sequence[_Item]], Awaitable[Sequence[_Result | Exception]]]


class Gathering(Generic[_Item, _Result]):
    """Hands items to `write` in batches, one batch at a time.

    Args:
        write: all or nothing. Items of a batch that raises are written singly, so that one bad item fails alone;
            when the database is out of reach they all fail.
        most: items in one batch.
        linger_seconds: how long a batch waits for more, if there was more than one item in the last.
    """

    def __init__(self, name: str, write: Write[_Item, _Result], *, most: int = 64, linger_seconds: float = 0.0) -> None:
        self._name = name
        self._write = write
        self._most = most
        self._linger_seconds = linger_seconds
        self._in_company = False  # the last item was written with others
        self._context = copy_context()  # not a caller's: what befalls a batch would be logged as the first one's
        self._waiting: deque[tuple[_Item, asyncio.Future[_Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: _Item) -> _Result:
        """Return the item's answer once it is written; raises what writing it raised.

        A caller that is cancelled before the item's turn takes it back; after that it is written all the same.
        """
        return await self.put(item)

    def put(self, item: _Item) -> "asyncio.Future[_Result]":
        """As `add`, for those who wait in their own way. Cancelling the future is taking the item back."""
        answer: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all(), name=self._name, context=self._context)
        return answer

    async def drained(self) -> None:
        """Return when nothing waits any more."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    async def _write_all(self) -> None:
        while self._waiting:
            if self._in_company and self._linger_seconds and len(self._waiting) < self._most:
                await asyncio.sleep(self._linger_seconds)
            batch: list[tuple[_Item, asyncio.Future[_Result]]] = []
            while self._waiting and len(batch) < self._most:
                item, answer = self._waiting.popleft()
                if not answer.done():
                    batch.append((item, answer))
            self._in_company = len(batch) > 1
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[tuple[_Item, "asyncio.Future[_Result]"]]) -> None:
        results = await self._results_of([item for item, _ in batch])
        if isinstance(results, Exception) and len(batch) > 1 and not isinstance(results, Unavailable):
            for one in batch:
                await self._answer([one])
            return
        for place, (_, answer) in enumerate(batch):
            _settle(answer, results if isinstance(results, Exception) else results[place])

    async def _results_of(self, items: Sequence[_Item]) -> "Sequence[_Result | Exception] | Exception":
        try:
            return await self._write(items)
        except Exception as fault:  # noqa: BLE001  # handed to whoever added the items
            return fault


def _settle(answer: "asyncio.Future[_Result]", result: "_Result | Exception") -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
