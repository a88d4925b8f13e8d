"""Group commit: what arrives while one batch is written is written together as the next. A lone item waits for no
company, so it is as fast as without; only while items come in company may a batch linger for those right behind.

No item holds up those that came with it, nor those behind it: a batch that raises, or that waits for what others have
locked, is given up, and its items are written one by one, beside the batches that follow."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Generic, TypeAlias, TypeVar

import structlog

from imprimatur.errors import Locked, Unavailable

log = structlog.get_logger(__name__)

#: Under load, so long for those right behind: written together, they cost about half as much.
LINGER_SECONDS = 0.004
#: The more come, the longer a batch is worth waiting for, where it may: so long for each item of the last one.
_LINGER_SECONDS_EACH = 0.001

#: How long a batch waits for a lock: longer than others take to commit. While items wait for one already, those that
#: follow are likely to want the same.
_LOCK_SECONDS = 0.2
_LOCK_SECONDS_IN_TROUBLE = 0.02

#: One by one, items are first only looked at, so that those which wait for no lock are soon told from those which do;
#: so many at a time. Each takes a connection, and so does each that waits.
_LOOK_SECONDS = 0.005
_LOOKS_AT_ONCE = 2
_WAITS_AT_ONCE = 2
#: As when the database ends the wait of one that has a place.
_HELD_UP = "DATABASE_UNAVAILABLE"
#: Whoever found no place to wait for so long is looked at once more, and that is that.
_LONGEST_WITHOUT_PLACE_SECONDS = 4.0

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: One answer for each item, in their order; an exception is the item's own and is raised to whoever added it. Besides
#: the items it is told how many seconds to wait for a lock (None: as long as a statement may take), and raises Locked
#: when it has.
Write: TypeAlias = Callable[[Sequence[_Item], float | None], Awaitable[Sequence[_Result | Exception]]]


class Gathering(Generic[_Item, _Result]):
    """Hands items to `write` in batches, one batch at a time.

    Args:
        write: all or nothing. Items of a batch that raises are written singly, so that one bad item fails alone, and
            one that others keep locked waits alone; when the database is out of reach they all fail.
        most: items in one batch.
        linger_seconds: how long a batch waits for more, if there was more than one item in the last.
        longest_linger_seconds: how long it waits at most, if there were many.
    """

    def __init__(
        self,
        name: str,
        write: Write[_Item, _Result],
        *,
        most: int = 64,
        linger_seconds: float = 0.0,
        longest_linger_seconds: float = 0.0,
    ) -> None:
        self._name = name
        self._write = write
        self._most = most
        self._linger_seconds = linger_seconds
        self._longest_linger_seconds = longest_linger_seconds
        self._last = 0  # so many were written together
        self._context = copy_context()  # not a caller's: what befalls a batch would be logged as the first one's
        self._waiting: deque[tuple[_Item, asyncio.Future[_Result]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._singles: set[asyncio.Task[None]] = set()
        self._looks = asyncio.Semaphore(_LOOKS_AT_ONCE)
        self._waits = asyncio.Semaphore(_WAITS_AT_ONCE)

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
        while under_way := {task for task in (self._task, *self._singles) if task is not None and not task.done()}:
            await asyncio.wait(under_way)

    async def _write_all(self) -> None:
        while self._waiting:
            if self._last > 1 and self._linger_seconds and len(self._waiting) < self._most:
                await asyncio.sleep(self._lingering_seconds())
            batch: list[tuple[_Item, asyncio.Future[_Result]]] = []
            while self._waiting and len(batch) < self._most:
                item, answer = self._waiting.popleft()
                if not answer.done():
                    batch.append((item, answer))
            self._last = len(batch)
            if batch:
                await self._answer(batch)

    def _lingering_seconds(self) -> float:
        by_the_last = self._last * _LINGER_SECONDS_EACH
        return max(self._linger_seconds, min(by_the_last, self._longest_linger_seconds))

    async def _answer(self, batch: Sequence[tuple[_Item, "asyncio.Future[_Result]"]]) -> None:
        lock_seconds = _LOCK_SECONDS_IN_TROUBLE if self._singles else _LOCK_SECONDS
        results = await self._results_of([item for item, _ in batch], lock_seconds)
        if isinstance(results, Locked):
            log.warning("a batch waits for what others have locked; one by one", batch=self._name, items=len(batch))
        elif not isinstance(results, Exception) or len(batch) == 1 or isinstance(results, Unavailable):
            for place, (_, answer) in enumerate(batch):
                _settle(answer, results if isinstance(results, Exception) else results[place])
            return
        for item, answer in batch:
            task = asyncio.create_task(self._write_alone(item, answer), name=self._name, context=self._context)
            self._singles.add(task)
            task.add_done_callback(self._singles.discard)

    async def _write_alone(self, item: _Item, answer: "asyncio.Future[_Result]") -> None:
        now = asyncio.get_running_loop().time
        late_at = now() + _LONGEST_WITHOUT_PLACE_SECONDS
        for places in (self._looks, self._waits):
            async with places:
                if answer.done():
                    return
                patient = places is self._waits and now() < late_at
                results = await self._results_of([item], None if patient else _LOOK_SECONDS)
            if not isinstance(results, Locked):
                break
        if isinstance(results, Locked):
            results = Unavailable("others keep locked what this needs; try again shortly", reason=_HELD_UP)
        _settle(answer, results if isinstance(results, Exception) else results[0])

    async def _results_of(
        self, items: Sequence[_Item], lock_seconds: float | None
    ) -> "Sequence[_Result | Exception] | Exception":
        try:
            return await self._write(items, lock_seconds)
        except Exception as fault:  # noqa: BLE001  # handed to whoever added the items
            return fault


def _settle(answer: "asyncio.Future[_Result]", result: "_Result | Exception") -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
