"""The process whose streams watch jobs: `python -m benchmarks.watchers`. It opens so many, then waits for the ends."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import uvloop

from benchmarks.load import payload
from benchmarks.remote import obeyed
from benchmarks.systems.ours import request
from imprimatur.client import Client, is_terminal

_STREAMS_PER_CONNECTION = 1000
#: Not yet answered.
_OPENING_AT_ONCE = 200


class Watchers:
    """Many streams, each of one job."""

    def __init__(self) -> None:
        self._clients: list[Client] = []
        self._opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []
        self._first: list[float] = []
        self._lags: list[float] = []
        self._arrivals: list[float] = []

    async def obey(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open (`ids`, `streams`), wait for all to end (`wait_seconds`), or submit and watch (`jobs`, `per_second`)."""
        if "ids" in wanted:
            return await self._open(wanted["ids"], wanted["streams"])
        if "jobs" in wanted:
            return await self._submit_and_watch(wanted["jobs"], wanted["per_second"])
        async with asyncio.timeout(wanted["wait_seconds"]):
            await asyncio.gather(*self._tasks)
        return {"lags": self._lags, "arrivals": self._arrivals}

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(client.close() for client in self._clients))

    async def _open(self, ids: list[str], streams: int) -> Mapping[str, Any]:
        began = time.perf_counter()
        opened = []
        client = self._client()
        for number in range(streams):
            if number % _STREAMS_PER_CONNECTION == _STREAMS_PER_CONNECTION - 1:
                client = self._client()
            first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            opened.append(first)
            await self._opening.acquire()
            watching = self._watch(client, ids[number % len(ids)], first)
            self._tasks.append(asyncio.create_task(watching))
        await asyncio.gather(*opened)
        return {"seconds": time.perf_counter() - began, "first_answers": self._first}

    async def _submit_and_watch(self, jobs: int, per_second: float) -> Mapping[str, Any]:
        client, text, lags = self._client(), payload(), []

        async def one(number: int) -> None:
            job = await client.submit(request(number, text))
            lags.append(await _ends(client, job.id))

        async with asyncio.TaskGroup() as group:
            for number in range(jobs):
                group.create_task(one(number))
                await asyncio.sleep(1 / per_second)
        return {"lags": lags}

    def _client(self) -> Client:
        self._clients.append(Client(os.environ["BENCH_TARGET"], api_key=os.environ["BENCH_API_KEY"]))
        return self._clients[-1]

    async def _watch(self, client: Client, job_id: str, opened: asyncio.Future[None]) -> None:
        began = time.perf_counter()
        async with aclosing(client.watch(job_id)) as versions:
            async for job in versions:
                if not opened.done():
                    self._first.append(time.perf_counter() - began)
                    self._opening.release()
                    opened.set_result(None)
                if is_terminal(job):
                    now = time.time()
                    self._arrivals.append(now)
                    self._lags.append(now - job.finish_time.ToNanoseconds() / 1e9)


async def _ends(client: Client, job_id: str) -> float:
    """Seconds from a job's end, by the database, to its arrival here; on one machine there is one clock."""
    async with aclosing(client.watch(job_id)) as versions:
        async for job in versions:
            if is_terminal(job):
                return time.time() - job.finish_time.ToNanoseconds() / 1e9
    raise AssertionError("a watch ends with a terminal state")


async def main() -> None:
    """Serve."""
    watchers = Watchers()
    try:
        await obeyed(sys.argv[1], watchers.obey)
    finally:
        await watchers.close()


if __name__ == "__main__":
    uvloop.run(main())
