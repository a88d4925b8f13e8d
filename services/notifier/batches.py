"""Group commit: what arrives while one batch is written is written together as the next. Nothing ever waits for
company, so a lone item is as fast as without."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from imprimatur.errors import Unavailable

_Item = TypeVar("_Item")


class Batches(Generic[_Item]):
    """Hands items to `write` in batches, one batch at a time.

    Args:
        write: all or nothing. Items of a batch that fails are written singly, so that one bad item fails alone;
            when the database is out of reach they all fail.
    """

    def __init__(self, name: str, write: Callable[[Sequence[_Item]], Awaitable[None]], *, most: int = 64) -> None:
        self._name = name
        self._write = write
        self._most = most
        self._waiting: asyncio.Queue[tuple[_Item, asyncio.Future[None]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Write what waits, then end."""
        await self._waiting.join()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def add(self, item: _Item) -> None:
        """Return when the item is written; raises what writing it raised. Cancelling the caller cancels nothing."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, done))
        await done

    async def _run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                await self._handle(batch)
            finally:
                for _ in batch:
                    self._waiting.task_done()

    async def _handle(self, batch: Sequence[tuple[_Item, "asyncio.Future[None]"]]) -> None:
        fault = await self._fault_of([item for item, _ in batch])
        if fault is None or len(batch) == 1 or isinstance(fault, Unavailable):
            for _, done in batch:
                _settle(done, fault)
            return
        for item, done in batch:
            _settle(done, await self._fault_of([item]))

    async def _fault_of(self, items: Sequence[_Item]) -> Exception | None:
        try:
            await self._write(items)
        except Exception as fault:  # noqa: BLE001  # handed to whoever added the item
            return fault
        return None


def _settle(done: "asyncio.Future[None]", fault: Exception | None) -> None:
    if done.done():
        return
    if fault is None:
        done.set_result(None)
    else:
        done.set_exception(fault)
