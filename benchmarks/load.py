"""The process in which a system's own client submits: `python -m benchmarks.load MODULE`; and how it is commanded.

Two patterns, the same for every system: so many submits *in flight*, each followed at once by the next when it is
answered; or so many *per second*, at fixed times. A payload is 2 kB.
"""

import asyncio
import importlib
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import uvloop

from benchmarks.fleet import Fleet
from benchmarks.remote import Remote, obeyed

PAYLOAD_BYTES = 2000
#: Of any sweep.
MOST_IN_FLIGHT = 100

#: Submits the job of that number; returns its id once it is accepted.
Submit = Callable[[int], Awaitable[str]]
BlockingSubmit = Callable[[int], str]


class Module(Protocol):
    """What a module of `systems` has for this process."""

    client: Callable[[], AbstractAsyncContextManager[Submit]]


class BlockingModule(Protocol):
    """What it has instead, if its client blocks."""

    blocking_client: Callable[[], BlockingSubmit]


@dataclass(frozen=True, kw_only=True)
class Submits:
    """What became of a load: `seconds` from the first submit to the last answer; then one entry for each job."""

    seconds: float
    ids: list[str]
    began_at: list[float]  #: seconds of the machine's clock
    latencies: list[float]  #: seconds


def payload() -> str:
    """Words of no meaning, always the same, PAYLOAD_BYTES long."""
    source = random.Random(7)
    words = ("orchard", "cider", "apples", "Saturday", "barn", "varieties", "press", "children", "until", "five")
    text = ""
    while len(text) < PAYLOAD_BYTES:
        text += source.choice(words) + " "
    return text[:PAYLOAD_BYTES]


# --- in the client's process ---------------------------------------------------------------------------------


class _Record:
    """Collects; every submit writes its own place."""

    def __init__(self, number: int) -> None:
        self.ids = [""] * number
        self.began_at = [0.0] * number
        self.latencies = [0.0] * number
        self._began = time.perf_counter()

    def end(self) -> Submits:
        seconds = time.perf_counter() - self._began
        return Submits(seconds=seconds, ids=self.ids, began_at=self.began_at, latencies=self.latencies)

    def begin(self, item: int) -> float:
        self.began_at[item] = time.time()
        return time.perf_counter()

    def answered(self, item: int, began: float, job_id: str) -> None:
        self.latencies[item] = time.perf_counter() - began
        self.ids[item] = job_id


async def in_flight(submit: Submit, number: int, at_once: int) -> Submits:
    """`number` submits, `at_once` of them under way all the time."""
    record, numbers = _Record(number), iter(range(number))

    async def one_after_the_other() -> None:
        for item in numbers:
            began = record.begin(item)
            record.answered(item, began, await submit(item))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_the_other())
    return record.end()


async def per_second(submit: Submit, number: int, rate: float) -> Submits:
    """`number` submits at fixed times, whether the earlier ones are answered or not."""
    record, began_all = _Record(number), time.perf_counter()

    async def one(item: int) -> None:
        began = record.begin(item)
        record.answered(item, began, await submit(item))

    async with asyncio.TaskGroup() as group:
        for item in range(number):
            await asyncio.sleep(max(0.0, began_all + item / rate - time.perf_counter()))
            group.create_task(one(item))
    return record.end()


def in_flight_by_threads(submit: BlockingSubmit, number: int, at_once: int, threads: Executor) -> Submits:
    """The same for a client that blocks: a thread for each submit under way."""
    record, numbers, lock = _Record(number), iter(range(number)), threading.Lock()

    def one_after_the_other() -> None:
        while True:
            with lock:
                item = next(numbers, None)
            if item is None:
                return
            began = record.begin(item)
            record.answered(item, began, submit(item))

    for done in [threads.submit(one_after_the_other) for _ in range(at_once)]:
        done.result()
    return record.end()


async def _serve(module: Module, path: str) -> None:
    async with module.client() as submit:

        async def obey(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
            if rate := wanted.get("per_second"):
                return asdict(await per_second(submit, wanted["number"], rate))
            return asdict(await in_flight(submit, wanted["number"], wanted["in_flight"]))

        await obeyed(path, obey)


async def _serve_blocking(module: BlockingModule, path: str) -> None:
    # They last: what a client keeps for each thread, such as connections, is made once.
    with ThreadPoolExecutor(MOST_IN_FLIGHT) as threads:
        submit = module.blocking_client()

        async def submit_apart(number: int) -> str:
            return await asyncio.get_running_loop().run_in_executor(threads, submit, number)

        async def obey(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
            if rate := wanted.get("per_second"):
                return asdict(await per_second(submit_apart, wanted["number"], rate))
            flight = (wanted["number"], wanted["in_flight"])
            return asdict(await asyncio.to_thread(in_flight_by_threads, submit, *flight, threads))

        await obeyed(path, obey)


# --- in the measuring process --------------------------------------------------------------------------------


class Loader:
    """Commands one such process, which counts as the fleet's `name`."""

    def __init__(self, fleet: Fleet, module: str, environ: Mapping[str, str], *, name: str = "client") -> None:
        self._remote = Remote(fleet, name, ["-m", "benchmarks.load", module], environ)

    def submit(self, number: int, *, in_flight: int) -> Submits:
        """`number` submits, so many of them under way all the time."""
        return Submits(**self._remote.ask({"number": number, "in_flight": in_flight}))

    def submit_at(self, number: int, *, per_second: float) -> Submits:
        """`number` submits at fixed times."""
        return Submits(**self._remote.ask({"number": number, "per_second": per_second}))


def main() -> None:
    """Serve with the client of the named module."""
    name, path = sys.argv[1:]
    module: Any = importlib.import_module(name)
    uvloop.run(_serve_blocking(module, path) if hasattr(module, "blocking_client") else _serve(module, path))


if __name__ == "__main__":
    main()
