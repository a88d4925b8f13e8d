"""Waiting for the broker: never for ever, and never with another error than BrokerError.

aio-pika answers a lost connection with its own errors, with RuntimeError, with a bare Exception, and with a
CancelledError that nobody asked for. All of that is told apart here from our own cancellation, once.
"""

import asyncio
import random
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from imprimatur.errors import BrokerError, ImprimaturError

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.1

#: What is lost sooner than this was no success.
HOLDS_SECONDS = 1.0

_abandoned: set[asyncio.Task[Any]] = set()


class Faults:
    """`with Faults("publishing"):` turns whatever the client library raises into BrokerError.

    Passes on our own errors and a cancellation of the task it stands in.
    """

    __slots__ = ("_cancellations", "_doing", "_task")

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancellations = self._task.cancelling() if self._task else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if fault is None or isinstance(fault, ImprimaturError):
            return
        if isinstance(fault, asyncio.CancelledError):
            if self._task is None or self._task.cancelling() > self._cancellations:
                return
        elif not isinstance(fault, Exception):
            return
        raise BrokerError(f"{self._doing}: {_describe(fault)}") from fault


def _describe(fault: BaseException) -> str:
    if isinstance(fault, TimeoutError):
        return "no answer in time"
    if isinstance(fault, asyncio.CancelledError):
        return "the connection was lost"
    return str(fault) or type(fault).__name__


async def bounded(call: Coroutine[Any, Any, T], seconds: float, doing: str) -> T:
    """Run `call` in a task of its own, for at most `seconds`. Raises BrokerError.

    A call that does not end then is cancelled and left behind, not waited for: inside aio-pika a cancellation
    may itself wait for a broker that does not read.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            _abandon(task)
    with Faults(doing):
        if not task.done():
            raise TimeoutError
        return task.result()


async def stop(task: asyncio.Task[None], seconds: float) -> None:
    """Cancel a task of ours and wait for its end; after `seconds` go without it."""
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        _abandon(task)


def _abandon(task: asyncio.Task[Any]) -> None:
    def forget(ended: asyncio.Task[Any]) -> None:
        _abandoned.discard(ended)
        if not ended.cancelled():
            ended.exception()

    _abandoned.add(task)
    task.add_done_callback(forget)
    task.cancel()


class Backoff:
    """Pauses between attempts: doubling, capped, with jitter; short again after a success that lasted."""

    def __init__(self, cap_seconds: float) -> None:
        self._cap = cap_seconds
        self._failures = 0
        self._holds_since: float | None = None

    def succeeded(self) -> None:
        """From now on the attempt holds."""
        self._holds_since = asyncio.get_running_loop().time()

    async def pause(self) -> None:
        """It failed or ended: wait before the next."""
        now = asyncio.get_running_loop().time()
        if self._holds_since is not None and now - self._holds_since > HOLDS_SECONDS:
            self._failures = 0
        self._holds_since = None
        seconds = min(self._cap, FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 16))
        self._failures += 1
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
