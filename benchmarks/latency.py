"""How long a caller waits: for a submit, for a batch, for news of a change. `python -m benchmarks.latency`

Gateway, reviewer (with an engine that approves at once) and notifier as processes of their own, on a private
RabbitMQ and a private PostgreSQL with fsync on; the caller is this process. Everything shares one machine, so the
load average stands beside the figures. Prints a table and writes benchmarks/latency.json.
"""

import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from deploy.local.stack import Stack
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from benchmarks.servers import cpu_seconds, servers, watch_lag
from imprimatur.client import Client, ClientError, is_terminal, submission
from imprimatur.v1.creative_pb2 import Creative
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import JobFilter, SubmitJobRequest

RESULTS = Path(__file__).with_name("latency.json")
_END_SECONDS = 60.0
_PER_SECOND = 50
_SECONDS = 20
_IDLE_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured distribution, in milliseconds, beside what it must reach (None: no target)."""

    name: str
    samples: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    target_p50_ms: float | None = None
    target_p99_ms: float | None = None

    @property
    def reached(self) -> bool:
        """Whether no target is missed."""
        return (self.target_p50_ms is None or self.p50_ms < self.target_p50_ms) and (
            self.target_p99_ms is None or self.p99_ms < self.target_p99_ms
        )


def figure(name: str, seconds: list[float], *, p50_ms: float | None = None, p99_ms: float | None = None) -> Figure:
    """The distribution of these durations (nearest rank)."""
    ordered = sorted(value * 1000 for value in seconds)
    return Figure(
        name=name,
        samples=len(ordered),
        p50_ms=round(statistics.median_low(ordered), 2),
        p99_ms=round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        worst_ms=round(ordered[-1], 2),
        target_p50_ms=p50_ms,
        target_p99_ms=p99_ms,
    )


# --- what is measured ------------------------------------------------------------------------------------


async def open_loop(client: Client, *, per_second: int, seconds: int) -> list[Figure]:
    """Submits at fixed times, whether earlier ones are answered or not; then how the jobs went."""
    durations: list[float] = []
    late: list[float] = []
    ids: list[str] = []

    async def submit(number: int) -> None:
        began = time.perf_counter()
        job = await client.submit(request("open", number))
        durations.append(time.perf_counter() - began)
        ids.append(job.id)

    await _at_fixed_times(submit, late, per_second=per_second, number=per_second * seconds)
    jobs = [await client.wait(job_id, _END_SECONDS) for job_id in ids]
    at = f"at {per_second}/s"
    return [
        figure(f"submit {at}", durations, p50_ms=5.0, p99_ms=25.0),
        figure(f"  the caller's own lateness {at}", late),
        figure(f"submit to start {at}", [_between(job, "create_time", "start_time") for job in jobs]),
        figure(f"submit to end {at}", [_between(job, "create_time", "finish_time") for job in jobs]),
    ]


async def one_by_one(client: Client, *, number: int) -> Figure:
    """Each submit after the answer to the last."""
    durations: list[float] = []
    for item in range(number):
        began = time.perf_counter()
        await client.submit(request("one", item))
        durations.append(time.perf_counter() - began)
    return figure("submit, one after the other", durations)


async def batches(client: Client, *, size: int, times: int, p50_ms: float | None) -> Figure:
    """One batch after the other; the next when the jobs of the last one are done."""
    durations: list[float] = []
    for turn in range(times):
        wanted = [request(f"batch-{size}-{turn}", number) for number in range(size)]
        began = time.perf_counter()
        answers = await client.submit_batch(wanted)
        durations.append(time.perf_counter() - began)
        for answer in answers:
            if isinstance(answer, ClientError):
                raise answer
            await client.wait(answer.id, _END_SECONDS)
    return figure(f"batch of {size}", durations, p50_ms=p50_ms)


async def news(client: Client, *, per_second: int, number: int) -> list[Figure]:
    """From a job's end in the database to its arrival here, by a stream for each job and by one for all.

    The end is the database's clock before its commit, the arrival ours: on one machine they are the same clock.
    """
    single: list[float] = []
    together: list[float] = []
    watches: list[asyncio.Task[None]] = []

    async def watch_one(job_id: str) -> None:
        async with aclosing(client.watch(job_id)) as versions:
            async for job in versions:
                if is_terminal(job) and job.version > 1:
                    single.append(_since_end(job))

    async def watch_all() -> None:
        async with aclosing(client.watch_many(JobFilter(labels={"run": "news"}))) as changes:
            async for change in changes:
                if change.HasField("job") and is_terminal(change.job):
                    together.append(_since_end(change.job))
                    if len(together) == number:
                        return

    async def submit(item: int) -> None:
        job = await client.submit(request("news", item))
        watches.append(asyncio.create_task(watch_one(job.id)))

    following = asyncio.create_task(watch_all())
    await _at_fixed_times(submit, [], per_second=per_second, number=number)
    async with asyncio.timeout(_END_SECONDS):
        await asyncio.gather(following, *watches)
    return [
        figure(f"end to WatchJob stream at {per_second}/s", single, p50_ms=20.0),
        figure(f"end to WatchJobs stream at {per_second}/s", together, p50_ms=20.0),
    ]


async def _at_fixed_times(
    submit: Callable[[int], Coroutine[None, None, None]], late: list[float], *, per_second: int, number: int
) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for item in range(number):
            due = began + item / per_second
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            late.append(time.perf_counter() - due)
            group.create_task(submit(item))


def request(run: str, number: int) -> SubmitJobRequest:
    """A creative such as they come, without images."""
    creative = Creative(
        creative_id=f"{run}-{number}",
        name="Orchard open day",
        headline="Pick your own apples this Saturday",
        body="Forty varieties, a cider press for the children to turn, and tea in the barn until five.",
        advertiser="Hollin Bank Orchard",
        language="en-GB",
    )
    return submission(creative, labels={"run": run})


def _between(job: Job, first: str, second: str) -> float:
    ends: tuple[Timestamp, Timestamp] = (getattr(job, first), getattr(job, second))
    return (ends[1].ToNanoseconds() - ends[0].ToNanoseconds()) / 1e9


def _since_end(job: Job) -> float:
    return (time.time_ns() - job.finish_time.ToNanoseconds()) / 1e9


# --- all of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came out."""

    figures: list[Figure]
    cpu_ms_per_job: dict[str, float]  #: at the open loop's rate, what runs in the background included
    cpu_ms_per_idle_second: dict[str, float]


async def measure(running: Stack) -> Report:
    """Everything, after a short warm-up."""
    async with Client(running.target, api_key=running.api_key) as client:
        await open_loop(client, per_second=_PER_SECOND, seconds=2)
        idle = await _cpu_ms_during(running, asyncio.sleep(_IDLE_SECONDS))
        figures: list[Figure] = [await one_by_one(client, number=200)]

        async def loop() -> None:
            figures.extend(await open_loop(client, per_second=_PER_SECOND, seconds=_SECONDS))

        busy = await _cpu_ms_during(running, loop())
        figures += [
            await batches(client, size=10, times=30, p50_ms=50.0),
            await batches(client, size=100, times=10, p50_ms=None),
            *await news(client, per_second=20, number=300),
        ]
    jobs = _PER_SECOND * _SECONDS
    return Report(
        figures=figures,
        cpu_ms_per_job={name: round(spent / jobs, 2) for name, spent in busy.items()},
        cpu_ms_per_idle_second={name: round(spent / _IDLE_SECONDS, 1) for name, spent in idle.items()},
    )


async def _cpu_ms_during(running: Stack, work: Coroutine[None, None, None]) -> dict[str, float]:
    before = cpu_seconds(running)
    await work
    return {name: (spent - before[name]) * 1000 for name, spent in cpu_seconds(running).items()}


def table(figures: list[Figure]) -> Table:
    """For people."""
    made = Table("", "n", "p50 ms", "p99 ms", "worst ms", "target", "", box=None, pad_edge=False)
    for one in figures:
        targets = {"p50": one.target_p50_ms, "p99": one.target_p99_ms}
        target = ", ".join(f"{name} < {value:g}" for name, value in targets.items() if value is not None)
        verdict = ("reached" if one.reached else "MISSED") if target else ""
        made.add_row(one.name, str(one.samples), f"{one.p50_ms}", f"{one.p99_ms}", f"{one.worst_ms}", target, verdict)
    return made


def main() -> None:
    """Measure, show, write."""
    with servers() as running:
        load_before = os.getloadavg()[0]
        report = uvloop.run(measure(running))
        lag = watch_lag(running)
    load = {"before": round(load_before, 2), "after": round(os.getloadavg()[0], 2)}
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    written = {"machine": machine, "load_average_1min": load, **asdict(report), "watch_lag_share_within": lag}
    RESULTS.write_text(json.dumps(written, indent=2) + "\n")
    console = Console(highlight=False, width=120)
    console.print(table(report.figures))
    console.print("processor ms per job:", report.cpu_ms_per_job)
    console.print("processor ms per second at rest:", report.cpu_ms_per_idle_second)
    console.print(
        "hearing of a change to handing it out:", ", ".join(f"{share:.1%} in {le}" for le, share in lag.items())
    )
    console.print(f"load average {load}, {os.cpu_count()} CPUs; written to {RESULTS}")


if __name__ == "__main__":
    main()
