"""What one tenant, or one priority, does to the others. The engine sleeps 0.4 s: slots are scarce, not processors."""

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import uvloop

from benchmarks.figures import percentile, waits
from benchmarks.load import payload
from benchmarks.rounds import begin, turn
from benchmarks.servers import servers
from benchmarks.systems.ours import Access, Ours, request
from imprimatur.client import Client, ClientError
from imprimatur.job import Priority as Stored
from imprimatur.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Priority

NOOP_SECONDS = 0.4
BACKLOG_JOBS = 20_000
#: More tenants than slots, so that none of them has anything under way for most of the time.
MANY_TENANTS = 50
MANY_TENANTS_JOBS = 100
MANY_TENANTS_SLOTS = 32
PROBES = 50
_PROBE_EVERY_SECONDS = 0.25
#: A probe that has not started by then counts as this long.
MOST_WAIT_SECONDS = 30.0
_SHARE_SECONDS = 15.0
_HIGH_JOBS, _LOW_JOBS = 4000, 1000
_BATCH = 1000


def measure() -> dict[str, Any]:
    """All, each on an installation of its own."""
    return {**_measure_tenants(), **_measure_many_tenants(), **_measure_priorities()}


def _measure_tenants() -> dict[str, Any]:
    with servers() as under:
        system = Ours(under, noop_seconds=NOOP_SECONDS)
        begin(system)
        other = system.tenant("other")
        with turn(system):
            alone = _wait_of_probes(system, other)
            uvloop.run(_submit_many([system.access], BACKLOG_JOBS, PRIORITY_NORMAL))
            behind = _wait_of_probes(system, other)
        system.fleet.end()
    bound = 2 * percentile(alone, 0.5) + NOOP_SECONDS
    return {
        "fairness_backlog_jobs": BACKLOG_JOBS,
        "fairness_start_vs_bound": round(percentile(behind, 0.99) / bound, 3),
        "fairness_alone_start_p50_s": round(percentile(alone, 0.5), 3),
        "fairness_start_p50_s": round(percentile(behind, 0.5), 3),
        "fairness_start_p99_s": round(percentile(behind, 0.99), 3),
        "fairness_started_share": round(sum(wait < MOST_WAIT_SECONDS for wait in behind) / len(behind), 3),
    }


def _measure_many_tenants() -> dict[str, Any]:
    with servers() as under:
        system = Ours(under, noop_seconds=NOOP_SECONDS, slots=MANY_TENANTS_SLOTS)
        begin(system)
        other, *many = (system.tenant(f"tenant-{number}") for number in range(1 + MANY_TENANTS))
        with turn(system):
            uvloop.run(_submit_many(many, MANY_TENANTS_JOBS, PRIORITY_NORMAL))
            # One every quarter of a second would be more than the share of one tenant among so many.
            beside = _wait_of_probes(system, other, one_at_a_time=True)
        system.fleet.end()
    return {
        "fairness_many_tenants": MANY_TENANTS,
        "fairness_many_tenants_start_p50_s": round(percentile(beside, 0.5), 3),
        "fairness_many_tenants_start_p99_s": round(percentile(beside, 0.99), 3),
    }


def _measure_priorities() -> dict[str, Any]:
    with servers() as under:
        system = Ours(under, noop_seconds=NOOP_SECONDS)
        begin(system)
        with turn(system):
            # HIGH first, so that no LOW is on its way to the reviewer before there is any HIGH.
            uvloop.run(_submit_many([system.access], _HIGH_JOBS, PRIORITY_HIGH))
            uvloop.run(_submit_many([system.access], _LOW_JOBS, PRIORITY_LOW))
            full = system.ask("SELECT clock_timestamp()")
            time.sleep(_SHARE_SECONDS)
            low, high = (_started(system, priority, full) for priority in (Stored.LOW, Stored.HIGH))
        system.fleet.end()
    return {
        "low_share_percent": round(100 * low / max(1, low + high), 2),
        "low_started_beside_high": low,
        "high_started": high,
    }


def _started(system: Ours, priority: Stored, since: datetime) -> int:
    query = "SELECT count(*) FROM jobs WHERE priority = %s AND started_at > %s"
    return int(system.ask(query, [int(priority), since]))


def _wait_of_probes(system: Ours, access: Access, *, one_at_a_time: bool = False) -> list[float]:
    """Seconds from submit to start of each of 50 jobs, submitted at fixed times, or each after the end of the last."""
    submitted = uvloop.run(_probe(access, one_at_a_time=one_at_a_time))
    deadline = time.monotonic() + MOST_WAIT_SECONDS
    ids = [job_id for job_id, _ in submitted]
    while len(started := system.started_at(ids)) < len(ids) and time.monotonic() < deadline:
        time.sleep(0.2)
    return waits(submitted, started, most=MOST_WAIT_SECONDS)


async def _probe(access: Access, *, one_at_a_time: bool) -> list[tuple[str, float]]:
    text, submitted = payload(), []
    async with Client(access.target, api_key=access.api_key) as calls:
        for number in range(PROBES):
            began = time.time()
            job = await calls.submit(request(number, text))
            submitted.append((job.id, began))
            if one_at_a_time:
                await calls.wait(job.id)
            else:
                await asyncio.sleep(_PROBE_EVERY_SECONDS)
    return submitted


async def _submit_many(tenants: Sequence[Access], number: int, priority: Priority.ValueType) -> None:
    """So many of each tenant."""
    for access in tenants:
        await _submit_all(access, number, priority)


async def _submit_all(access: Access, number: int, priority: Priority.ValueType) -> None:
    text = payload()
    async with Client(access.target, api_key=access.api_key, deadline_seconds=300.0) as calls:
        for start in range(0, number, _BATCH):
            batch = [request(item, text) for item in range(start, min(start + _BATCH, number))]
            for one in batch:
                one.priority = priority
            for outcome in await calls.submit_batch(batch):
                if isinstance(outcome, ClientError):
                    raise outcome


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
