"""What 10,000 watch streams cost one gateway, and how soon watchers hear of the end. `python -m benchmarks.streams`

One gateway as a process of its own, on a private PostgreSQL and a private RabbitMQ; no reviewer and no notifier. The
watchers are further processes, which keep the bytes as they come and read them after the clock has stopped. The jobs
are ended from here, many in one transaction, as reviewers would who write together. Everything shares one machine.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from deploy.local import process as processes
from deploy.local import stack
from deploy.local.server import read_state
from deploy.local.stack import Stack

from imprimatur.broker.rabbitmq import RabbitMQBroker
from imprimatur.client import Client, submission
from imprimatur.job import Happening
from imprimatur.outbox import Outbox
from imprimatur.storage.database import Database
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import jobs
from imprimatur.storage.transitions import move
from imprimatur.v1.creative_pb2 import Creative
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import WatchJobRequest, WatchJobResponse

WATCH = "/imprimatur.v1.JobService/WatchJob"
CHANNELS_PER_PROCESS = 10
#: Nobody reviews the jobs meanwhile, and no clock moves them.
_FAR_OFF_SECONDS = 20 * 86400
_LONGEST_SECONDS = 400.0


def measure(*, streams: int = 10_000, processes_of_watchers: int = 2) -> dict[str, Any]:
    """Memory and time to open of `streams` watches, and the way of each job's end to its watchers, in milliseconds."""
    with _servers() as running:
        return asyncio.run(_measure(running, streams, processes_of_watchers))


async def _measure(running: Stack, streams: int, watchers: int) -> dict[str, Any]:
    gateway = _gateway_pid(running)
    async with _ending(running.environ) as end, Client(running.target, api_key=running.api_key) as client:
        await _fan_out(client, running, end, many=10, each=10, watchers=watchers, seconds=0.5)  # warm-up
        found: dict[str, Any] = {"streams": streams}
        for name, seconds in (("ended_in_10_s", 10.0), ("ended_at_once", 0.0)):
            ids = await _submit(client, streams)
            before = _memory_kib(gateway)
            with _watchers(running, ids, watchers) as watching:
                found.setdefault("open_seconds", round(await watching.opened(), 2))
                await asyncio.sleep(2.0)
                grown = (_memory_kib(gateway) - before) * 1024 / streams
                found.setdefault("bytes_per_stream", round(grown))
                idle = _cpu_seconds(gateway)
                await asyncio.sleep(10.0 if name == "ended_in_10_s" else 0.0)
                found.setdefault("cpu_share_while_idle", round((_cpu_seconds(gateway) - idle) / 10.0, 3))
                began, used = time.perf_counter(), _cpu_seconds(gateway)
                await _end_all(end, ids, seconds)
                written = time.perf_counter() - began
                found[name] = {"written_in_seconds": round(written, 2), **await watching.result()}
                found[name]["gateway_cpu_seconds"] = round(_cpu_seconds(gateway) - used, 2)
        used = _cpu_seconds(gateway)
        found["fan_out_100_jobs_100_watchers"] = await _fan_out(
            client, running, end, many=100, each=100, watchers=watchers, seconds=2.0
        )
        found["fan_out_100_jobs_100_watchers"]["gateway_cpu_seconds"] = round(_cpu_seconds(gateway) - used, 2)
        return found


async def _fan_out(
    client: Client, running: Stack, end: Any, *, many: int, each: int, watchers: int, seconds: float
) -> dict[str, Any]:
    ids = await _submit(client, many)
    with _watchers(running, ids * each, watchers) as watching:
        await watching.opened()
        await _end_all(end, ids, seconds)
        return await watching.result()


# --- jobs ------------------------------------------------------------------------------------------------


async def _submit(client: Client, number: int) -> list[str]:
    later = time.time() + _FAR_OFF_SECONDS
    requests = [submission(Creative(creative_id=f"stream-{one}", headline="Watch me.")) for one in range(number)]
    for request in requests:
        request.run_at.FromSeconds(int(later))
    return [job.id for job in await client.submit_batch(requests) if isinstance(job, Job)]


@asynccontextmanager
async def _ending(environ: dict[str, str]) -> AsyncIterator[Any]:
    """Ends jobs as a service does: state, event and outbox row in one transaction, published after the commit."""
    database = Database(environ["IMPRIMATUR_DATABASE_URL"])
    broker = RabbitMQBroker(environ["IMPRIMATUR_BROKER_URL"], name="benchmark")
    outbox = Outbox(database, broker)
    await broker.start()
    outbox.start()

    async def end(ids: Sequence[str]) -> None:
        async with database.begin() as tx:
            chosen = jobs.select().with_only_columns(jobs.c.id).where(jobs.c.id.in_(sorted(ids))).order_by(jobs.c.id)
            await move(tx, Happening.CANCELLED, in_locked(jobs.c.id, chosen.with_for_update()))

    try:
        yield end
    finally:
        await outbox.stop()
        await broker.close()
        await database.close()


async def _end_all(end: Any, ids: list[str], seconds: float) -> None:
    """End them evenly over so many seconds; 0: as fast as they can be written, a hundred at a time."""
    together = max(1, len(ids) // 100) if seconds else 100
    began = time.perf_counter()
    for start in range(0, len(ids), together):
        pause = began + seconds * start / len(ids) - time.perf_counter()
        await asyncio.sleep(max(0.0, pause))
        await end(ids[start : start + together])


# --- watchers --------------------------------------------------------------------------------------------


class _Watching:
    """Processes that watch."""

    def __init__(self, started: list[subprocess.Popen[str]]) -> None:
        self._started = started

    async def opened(self) -> float:
        """Seconds until the slowest had the first answer on each of its streams."""
        return max(float(json.loads(line)["open_seconds"]) for line in await self._lines())

    async def result(self) -> dict[str, Any]:
        """The distribution of the ends' ways."""
        ended: list[float] = []
        lost: list[str] = []
        for line in await self._lines():
            told = json.loads(line)
            ended += told["ended_ms"]
            lost += told["lost"]
        ordered = sorted(ended)
        return {
            "ends": len(ordered),
            "lost": len(lost),
            **({"first_loss": lost[0]} if lost else {}),
            "p50_ms": round(statistics.median_low(ordered), 1),
            "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1),
            "worst_ms": round(ordered[-1], 1),
        }

    async def _lines(self) -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(_line, one) for one in self._started))


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of watchers ended with {child.wait()}")
    return line


@contextmanager
def _watchers(running: Stack, ids: list[str], number: int) -> Iterator[_Watching]:
    """`number` processes that share the watches of `ids` among them."""
    started = []
    try:
        for place in range(number):
            order = running.folder / f"watchers-{place}.json"
            order.write_text(json.dumps({"target": running.target, "key": running.api_key, "ids": ids[place::number]}))
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.streams", str(order)],
                stdout=subprocess.PIPE,
                text=True,
                env={**running.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            started.append(child)
        yield _Watching(started)
    finally:
        for child in started:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


async def _watch(order: dict[str, Any]) -> None:
    """One process of watchers."""
    opened: list[None] = []
    ends: list[tuple[float, bytes]] = []
    lost: list[str] = []
    all_open = asyncio.Event()
    metadata = (("authorization", f"Bearer {order['key']}"),)

    def settled() -> None:
        opened.append(None)
        if len(opened) == len(order["ids"]):
            all_open.set()

    async def watch(channel: grpc.aio.Channel, job_id: str) -> None:
        call: Any = channel.unary_stream(WATCH, request_serializer=WatchJobRequest.SerializeToString)(
            WatchJobRequest(job_id=job_id), metadata=metadata
        )
        last, at = b"", 0.0
        try:
            last = await call.read()
            settled()
            while (answer := await call.read()) is not grpc.aio.EOF:
                last, at = answer, time.time()
            ends.append((at, last))
        except grpc.aio.AioRpcError as error:
            lost.append(f"{error.code().name}: {error.details()}")
            if not last:
                settled()

    channels = [
        grpc.aio.insecure_channel(order["target"], options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CHANNELS_PER_PROCESS)
    ]
    began = time.perf_counter()
    async with asyncio.timeout(_LONGEST_SECONDS), asyncio.TaskGroup() as group:
        for place, job_id in enumerate(order["ids"]):
            group.create_task(watch(channels[place % CHANNELS_PER_PROCESS], job_id))
        await all_open.wait()
        print(json.dumps({"open_seconds": time.perf_counter() - began}), flush=True)
    print(json.dumps({"ended_ms": [_way_ms(at, last) for at, last in ends], "lost": lost}), flush=True)


def _way_ms(at: float, last: bytes) -> float:
    """From the end's being written, as the database has it, to its being here; both by this machine's clock."""
    finished = WatchJobResponse.FromString(last).job.finish_time
    return (at - finished.seconds - finished.nanos / 1e9) * 1000


# --- the gateway -----------------------------------------------------------------------------------------


@contextmanager
def _servers() -> Iterator[Stack]:
    """A gateway with what it needs inside the block; afterwards all of it is gone."""
    folder = Path(tempfile.mkdtemp(prefix="imprimatur-streams-"))
    try:
        os.environ["IMPRIMATUR_STREAMS_PER_TENANT"] = "0"  # all are one tenant's
        running = stack.start(folder, die_with_parent=True)
        for name in ("reviewer", "notifier"):
            process, _ = read_state(folder / name)
            assert process is not None
            processes.end(processes.family(process))
        yield running
    finally:
        stack.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _gateway_pid(running: Stack) -> int:
    process, _ = read_state(running.folder / "gateway")
    assert process is not None
    return process.pid


def _memory_kib(pid: int) -> int:
    """What the process holds of the machine's memory (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure and print, or be one process of watchers."""
    if sys.argv[1:]:
        uvloop.run(_watch(json.loads(Path(sys.argv[1]).read_text())))
        return 0
    load = os.getloadavg()[0]
    print(
        json.dumps(
            {"load_average_before": round(load, 1), **measure()},
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
