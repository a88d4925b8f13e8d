"""What a long history costs: everyday statements and clean-up with an empty database and with a million finished jobs.

`python -m benchmarks.history [--jobs N]` prints a table in milliseconds. PostgreSQL alone, without services: what is
measured is the database's share. No figure is asserted anywhere.
"""

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.local.postgres import PrivatePostgres
from sqlalchemy import text
from tests import makers

from imprimatur.identity import first_id_at
from imprimatur.job import Happening, JobType, State
from imprimatur.retention import Retention
from imprimatur.storage import clock, dispatch, jobs, migrations, retention
from imprimatur.storage import statistics as counts
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.retention import Place

TENANTS = 10
DAYS = 30  #: over which the jobs have ended
CHUNK = 50_000
REPEATS = 30
STEPS = 100

#: `number` jobs that ended one after the other, from the `:first`-th of all `:total` on, with an id made as they were.
_JOBS = """
INSERT INTO jobs (id, tenant_id, type, state, user_id, priority, version, request_id, content_hash, subject_id, labels,
  parameters, input, callback_url, max_attempts, attempts, losses, timeout_seconds, deadline_seconds, run_at,
  deadline_at, release_no, reissue_after_seconds, claim_no, progress_percent, progress_stage, progress_message,
  decision, policy_triggered, result, result_count, held_by, created_at, updated_at, started_at, finished_at)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3) || '8'
    || substr(hash, 4, 15))::uuid,
  (CAST(:tenants AS uuid[]))[1 + i % :tenant_count], 'creative_review',
  CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'succeeded' END, '', 2, 3, 'request-' || i, decode(hash || hash, 'hex'),
  'creative-' || i % 100000, '{}', '{}', convert_to(repeat(hash, 20), 'UTF8'), '', 3, 1, 0, 120, 86400, at,
  at + interval '1 day', 1, 10, 1, 100, '', '', 'approved', 'auto_approve', convert_to(repeat(hash, 20), 'UTF8'), 1, '',
  at, at + interval '4 s', at + interval '1 s', at + interval '4 s'
FROM (SELECT i, md5(i::text) AS hash, clock_timestamp() - (1 - i::float8 / :total) * interval '1 day' * :days AS at
  FROM generate_series(CAST(:first AS int), CAST(:first AS int) + CAST(:number AS int) - 1) AS i) AS made
RETURNING 1
"""
_MADE = "FROM jobs WHERE request_id IS NOT NULL"
_REST = (
    *(
        f"INSERT INTO job_events SELECT id, {version}, '{kind}', '{state}', created_at, '{{}}', false {_MADE}"
        for version, kind, state in (
            (1, "submitted", "queued"),
            (2, "claimed", "running"),
            (3, "completed", "succeeded"),
        )
    ),
    "INSERT INTO attempts (job_id, claim_no, worker, started_at, finished_at, outcome, engine, input_tokens,"
    " output_tokens, cost_micros)"
    f" SELECT id, 1, 'reviewer', started_at, finished_at, 'succeeded', 'test', 0, 0, 0 {_MADE}",
    "INSERT INTO webhook_messages SELECT gen_random_uuid(), tenant_id, id, 3, 'creative.reviewed', input, finished_at"
    f" {_MADE}",
    "INSERT INTO webhook_deliveries SELECT gen_random_uuid(), id, NULL, 'https://example.org/', 'lane', 'delivered', 1,"
    " created_at, NULL, created_at FROM webhook_messages",
    "INSERT INTO webhook_attempts (delivery_id, id, at, status_code, error, duration_ms)"
    " SELECT id, gen_random_uuid(), finished_at, 200, '', 12 FROM webhook_deliveries",
)


async def fill(database: Database, tenants: list[uuid.UUID], total: int) -> None:
    """Finished jobs, each with three events, an attempt and a webhook, and what PostgreSQL keeps of all that."""
    limits = "SET LOCAL statement_timeout = 0"
    for first in range(0, total, CHUNK):
        async with database.begin() as tx:
            await tx.connection.execute(text(limits))
            values = {"first": first, "number": min(CHUNK, total - first), "total": total, "days": DAYS}
            await tx.connection.execute(text(_JOBS), values | {"tenants": tenants, "tenant_count": len(tenants)})
    for statement in (*_REST, "ANALYZE"):
        async with database.begin() as tx:
            await tx.connection.execute(text(limits))
            await tx.connection.execute(text(statement))


async def everyday(database: Database, tenants: list[uuid.UUID]) -> dict[str, float]:
    """The median milliseconds of what is done all the time, and of what people look at."""
    owner = Owner(tenant_id=tenants[0])
    now = datetime.now(UTC)
    a_day = (owner, now - timedelta(days=1), now)

    async def turn() -> None:
        claim = await makers.running(database, tenants[0])
        await makers.conclude(database, claim, Happening.COMPLETED)

    async def dispatcher() -> None:
        async with database.read() as reader:
            await dispatch.backlog(reader, silent_seconds=5.0)
        async with database.begin() as tx:
            await dispatch.release_due(tx, room=10)

    async def listed(wanted: Filter, days_ago: float = 0.0) -> None:
        before = first_id_at(now - timedelta(days=days_ago)) if days_ago else None
        async with database.read() as reader:
            await jobs.list_newest(reader, owner, wanted, before=before, limit=51)

    async def snapshot() -> None:
        async with database.read() as reader:
            await jobs.unfinished_versions(reader, owner, Filter(), limit=20_001)

    async def gauges() -> None:
        async with database.read() as reader:
            await counts.unfinished(reader)

    async def stats() -> None:
        async with database.read() as reader:
            await counts.type_stats(reader, *a_day)
            await counts.error_counts(reader, *a_day)

    async def estimate() -> None:
        async with database.read() as reader:
            await counts.recent_mean_seconds(reader, tenants[0], JobType.CREATIVE_REVIEW)

    failed = Filter(states=frozenset({State.FAILED}))
    return {
        "submit, claim, complete": await median(turn),
        "a pass of the dispatcher": await median(dispatcher),
        "ListJobs, first page": await median(lambda: listed(Filter())),
        "ListJobs, a page of 20 days ago": await median(lambda: listed(Filter(), 20)),
        "ListJobs, one creative": await median(lambda: listed(Filter(subject_id="creative-10"))),
        "ListJobs, the failed": await median(lambda: listed(failed)),
        "WatchJobs, its snapshot": await median(snapshot),
        "the gauges": await median(gauges),
        "GetStats, a day": await median(stats),
        "the expected duration": await median(estimate),
    }


async def median(work: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds of one run, of many after a first."""
    await work()
    return statistics.median([await milliseconds(work) for _ in range(REPEATS)])


async def milliseconds(work: Callable[[], Awaitable[None]]) -> float:
    """Of one run."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def clean(database: Database) -> tuple[list[float], int]:
    """The milliseconds of the first steps of a pass, and how many rows they removed."""
    taken: list[float] = []
    removed = 0
    place: Place | None = Place()
    async with database.read() as reader:
        now = await clock.present(reader)

    async def step() -> None:
        nonlocal place, removed
        assert place is not None
        async with database.begin() as tx:
            done = await retention.clean_some(tx, Retention(), place, now=now)
        removed += sum(done.rows.values())
        place = done.following

    while place is not None and len(taken) < STEPS:
        taken.append(await milliseconds(step))
    return taken, removed


async def measure(url: str, total: int) -> None:
    """Print the table."""
    database = Database(url, command_timeout_seconds=600.0)
    try:
        await migrations.upgrade(database)
        tenants = [await makers.make_tenant(database) for _ in range(TENANTS)]
        without = await everyday(database, tenants)
        await fill(database, tenants, total)
        with_history = await everyday(database, tenants)
        print(f"{'milliseconds, median of ' + str(REPEATS):40}{'empty':>10}{f'{total:,} finished':>22}")
        for name, taken in without.items():
            print(f"{name:40}{taken:10.2f}{with_history[name]:22.2f}", flush=True)
        steps, removed = await clean(database)
        print(
            f"clean-up, {len(steps)} steps of {retention.STEP} jobs: median {statistics.median(steps):.1f} ms, "
            f"slowest {max(steps):.1f} ms, {removed:,} rows removed"
        )
    finally:
        await database.close()


def main() -> None:
    """On a private PostgreSQL, which is gone afterwards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="finished jobs (default: a million)")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="imprimatur-history-"))
    try:
        with PrivatePostgres.start(folder, fsync=True) as server:
            asyncio.run(measure(server.create_database("history"), chosen.jobs))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
