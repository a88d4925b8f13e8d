"""A client that submits batches of 1,000: in the place of `systems.ours.client`, so a "submit" of it is a batch."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.figures import percentile
from benchmarks.load import Loader, Submit, payload
from benchmarks.rounds import begin, turn, wait_finished
from benchmarks.servers import servers
from benchmarks.systems.ours import Ours, request
from deploy.local import process as processes
from imprimatur.client import Client, ClientError

BATCH = 1000
_BATCHES = 10
_IN_FLIGHT = 4
_MOST_SECONDS = 300.0


@asynccontextmanager
async def client() -> AsyncIterator[Submit]:
    """A batch is answered once all its jobs are durable."""
    text = payload()
    target, key = os.environ["BENCH_TARGET"], os.environ["BENCH_API_KEY"]
    async with Client(target, api_key=key, deadline_seconds=_MOST_SECONDS) as calls:

        async def submit(number: int) -> str:
            outcomes = await calls.submit_batch([request(number * BATCH + item, text) for item in range(BATCH)])
            for outcome in outcomes:
                if isinstance(outcome, ClientError):
                    raise outcome
            return ""

        yield submit


def measure() -> dict[str, Any]:
    """Accepted jobs per second, the reviewer at work meanwhile, and once more while it stands still; and how long one
    batch takes."""
    with servers() as under:
        system = Ours(under)
        begin(system)
        with turn(system):
            batches = Loader(system.fleet, __name__, system.access.environ, name="batches")
            ended = system.finished()
            batches.submit(1, in_flight=1)
            before = system.fleet.cpu_seconds()
            submits = batches.submit(_BATCHES, in_flight=_IN_FLIGHT)
            after = system.fleet.cpu_seconds()
            wait_finished(system, ended + (1 + _BATCHES) * BATCH)
            processes.suspend(system.fleet.process("reviewer"))
            alone = batches.submit(_BATCHES, in_flight=_IN_FLIGHT)
        system.fleet.end()
    cpu = {name: round((after[name] - before[name]) * 1000 / (_BATCHES * BATCH), 3) for name in before}
    return {
        **{f"batch_submit_{name}_cpu_ms_per_job": cpu[name] for name in ("gateway", "postgresql")},
        "batch_submit_jobs_per_s": round(_BATCHES * BATCH / submits.seconds, 1),
        "batch_submit_alone_jobs_per_s": round(_BATCHES * BATCH / alone.seconds, 1),
        "batch_submit_p50_ms": round(percentile(submits.latencies, 0.5) * 1000, 1),
    }
