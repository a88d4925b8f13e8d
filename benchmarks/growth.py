"""What a long history costs: the same figures on an installation with a million finished and 100,000 waiting jobs.

The rows are copies of real ones, inserted by SQL under new ids and times. What waits is not due yet: due jobs would
take the reviewer from those that are measured, and are `fairness`'s subject. Both installations have their turn in
each cycle, and the ratios are medians of the cycles' ratios.
"""

import json
import sys
from collections import defaultdict
from datetime import timedelta
from typing import Any

import psycopg
import uvloop
from psycopg import sql

from benchmarks import batches, figures
from benchmarks.figures import percentile
from benchmarks.load import MOST_IN_FLIGHT, Loader, payload
from benchmarks.remote import Remote
from benchmarks.rounds import begin, calm, round_of, turn, wait_finished
from benchmarks.servers import servers
from benchmarks.systems.ours import Access, Ours, request
from imprimatur.client import Client
from imprimatur.client.times import timestamp
from imprimatur.storage.schema import metadata

FINISHED, WAITING = 1_000_000, 100_000
_CHUNK = 50_000
_LIGHT_JOBS, _LIGHT_PER_SECOND = 40, 20.0
_BATCHES, _BATCHES_IN_FLIGHT = 4, 2
#: So long is the history: the clean-up of finished jobs looks for what is older than seven days, and finds none of it.
_PAST_SECONDS = 6 * 86400.0
#: An id of a job as old as the row: version 7 begins with the milliseconds since 1970.
_NEW_ID = sql.SQL(
    "(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)"
    " || '8' || substr(md5(n::text), 4, 15))::uuid"
)


def measure(
    *, finished: int = FINISHED, waiting: int = WAITING, cycles: int = 5, seconds: float = 4.0
) -> dict[str, Any]:
    """Figures of the grown installation, and their ratio to the empty one's."""
    with servers() as under:
        empty = Ours(under, name="empty")
        grown = Ours(under, name="grown", virtual_host=True)
        for system in (empty, grown):
            begin(system)
        clients = {system.name: _Clients(system) for system in (empty, grown)}
        with turn(grown):
            _submit_scheduled(grown.access)
        fill(grown.database_url, finished=finished, waiting=waiting)
        seen: dict[str, dict[str, list[float]]] = {empty.name: defaultdict(list), grown.name: defaultdict(list)}
        rates: dict[str, float] = {}
        for cycle in range(cycles + 1):
            for system in (empty, grown):
                with turn(system):
                    shown = _figures(system, clients[system.name], int(max(100, rates.get(system.name, 0) * seconds)))
                rates[system.name] = shown["end_to_end_jobs_per_s"]
                for name, value in shown.items():
                    if cycle:  # the first only warms the caches up
                        seen[system.name][name].append(value)
        for system in (empty, grown):
            system.fleet.end()
    return {
        "growth_finished_jobs": finished,
        "growth_waiting_jobs": waiting,
        **figures.growth(seen[empty.name], seen[grown.name]),
    }


class _Clients:
    """Who submits batches, and who watches."""

    def __init__(self, system: Ours) -> None:
        self.batches = Loader(system.fleet, batches.__name__, system.access.environ, name="batches")
        self.watchers = Remote(system.fleet, "watchers", ["-m", "benchmarks.watchers"], system.access.environ)


def _figures(system: Ours, clients: _Clients, number: int) -> dict[str, float]:
    one = round_of(system, number, in_flight=MOST_IN_FLIGHT)
    light = calm(system, _LIGHT_JOBS, per_second=_LIGHT_PER_SECOND)
    lags = clients.watchers.ask({"jobs": _LIGHT_JOBS, "per_second": _LIGHT_PER_SECOND})["lags"]
    before = system.finished()
    many = clients.batches.submit(_BATCHES, in_flight=_BATCHES_IN_FLIGHT)
    wait_finished(system, before + _BATCHES * batches.BATCH)
    return {
        "batch_submit_jobs_per_s": _BATCHES * batches.BATCH / many.seconds,
        "stream_end_p50_ms": percentile(lags, 0.5) * 1000,
        "end_to_end_jobs_per_s": one.jobs_per_second,
        "submits_per_s": one.submits_per_second,
        "cpu_ms_per_job": sum(one.cpu_ms_per_job.values()),
        "submit_p50_ms": percentile(light.submits, 0.5) * 1000,
        "submit_to_start_p50_ms": percentile(light.starts, 0.5) * 1000,
    }


def _submit_scheduled(access: Access) -> None:
    """One job that is due in a month, to be copied."""

    async def submit() -> None:
        async with Client(access.target, api_key=access.api_key) as calls:
            wanted = request(0, payload())
            now = (await calls.submit(request(1, "The time now."))).create_time.ToDatetime()
            due = timestamp(now.astimezone() + timedelta(days=30))
            assert due is not None
            wanted.run_at.CopyFrom(due)
            await calls.submit(wanted)

    uvloop.run(submit())


def fill(url: str, *, finished: int, waiting: int) -> None:
    """Copy one finished and one scheduled job that often, with their events and attempts, over the last days."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")  # of this session: the rows are settled below
        for state, number in (("succeeded", finished), ("queued", waiting)):
            for first in range(0, number, _CHUNK):
                _copy(connection, state, first, min(first + _CHUNK, number))
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def _copy(connection: "psycopg.Connection[Any]", state: str, first: int, end: int) -> None:
    """Rows number `first` to `end` of such copies."""
    age = sql.SQL("make_interval(secs => 3600 + {past} * (1 - n / {most}.0))").format(
        past=sql.Literal(_PAST_SECONDS), most=sql.Literal(max(FINISHED, end))
    )
    connection.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE copies AS SELECT n, model.id AS model, {id} AS id, {age} AS age "
            "FROM generate_series({first}, {last}) AS n, "
            "(SELECT id, created_at FROM jobs WHERE state = {state} "
            "ORDER BY length(input) DESC, created_at LIMIT 1) AS model"
        ).format(
            id=_NEW_ID.format(at=sql.SQL("model.created_at - {age}").format(age=age)),
            age=age,
            first=sql.Literal(first),
            last=sql.Literal(end - 1),
            state=sql.Literal(state),
        )
    )
    for table, key in (("jobs", "id"), ("job_events", "job_id"), ("attempts", "job_id")):
        connection.execute(_copies_of(table, key))
    connection.execute("DROP TABLE copies")


def _copies_of(table: str, key: str) -> sql.Composed:
    """All columns as they are but the id, what is unique, and times of the past, which are older by `age`."""
    columns = [column.name for column in metadata.tables[table].columns]
    past = {"created_at", "updated_at", "started_at", "finished_at", "released_at", "at"}

    def value(name: str) -> sql.Composable:
        if name == key:
            return sql.SQL("copies.id")
        if name == "request_id":
            return sql.SQL("copies.id::text")
        if name == "concurrency_key":
            return sql.SQL("'creative:' || copies.id")
        if name in past:
            return sql.SQL("old.{} - copies.age").format(sql.Identifier(name))
        return sql.SQL("old.{}").format(sql.Identifier(name))

    return sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {values} FROM copies JOIN {table} old ON old.{key} = model"
    ).format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        values=sql.SQL(", ").join(map(value, columns)),
        key=sql.Identifier(key),
    )


if __name__ == "__main__":
    few = int(sys.argv[1]) if len(sys.argv) > 1 else FINISHED
    print(json.dumps(measure(finished=few, waiting=few // 10), indent=2))
