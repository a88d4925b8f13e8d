"""What one would write by hand, and nothing more: insert, publish; claim, do nothing, complete. FastStream and asyncpg.

No retries, no leases, no outbox (a job whose publish fails is lost), no tenants, no events, no webhooks, no API: the
client writes into the database itself. `python -m benchmarks.systems.handwritten` is the worker.
"""

import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # ships no types
import psycopg
import uvloop
from faststream import FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.load import Loader, Submit, payload
from benchmarks.servers import Servers

_SLOTS = 64
_CONNECTIONS = 10
_TABLE = """
CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    state text NOT NULL,
    input text NOT NULL,
    result text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz
)
"""
_INSERT = "INSERT INTO jobs (id, state, input) VALUES ($1, 'queued', $2)"
_CLAIM = """
UPDATE jobs SET state = 'running', started_at = clock_timestamp() WHERE id = $1 AND state = 'queued' RETURNING input
"""
_COMPLETE = """
UPDATE jobs SET state = 'done', result = $2, finished_at = clock_timestamp() WHERE id = $1 AND state = 'running'
"""

_QUEUE = RabbitQueue("jobs", queue_type=QueueType.QUORUM, durable=True)


@asynccontextmanager
async def client() -> AsyncIterator[Submit]:
    """A submit is answered once the row is committed and the broker has confirmed the message."""
    text = payload()
    async with (
        asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"], max_size=_CONNECTIONS) as pool,
        _broker() as broker,
    ):
        await broker.declare_queue(_QUEUE)

        async def submit(number: int) -> str:
            job_id = str(uuid.uuid4())
            await pool.execute(_INSERT, job_id, text)
            await broker.publish(job_id, queue=_QUEUE, persist=True, mandatory=True)
            return job_id

        yield submit


def _broker() -> RabbitBroker:
    return RabbitBroker(os.environ["BENCH_BROKER_URL"], default_channel=Channel(prefetch_count=_SLOTS))


async def _work() -> None:
    async with asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"], max_size=_CONNECTIONS) as pool:
        broker = _broker()

        @broker.subscriber(_QUEUE)
        async def handle(job_id: str) -> None:
            claimed: Any = await pool.fetchval(_CLAIM, job_id)
            if claimed is not None:
                await pool.execute(_COMPLETE, job_id, "nothing was looked at")

        await FastStream(broker).run()


class Handwritten:
    """One worker."""

    name = "handwritten"

    def __init__(self, servers: Servers) -> None:
        self.fleet = servers.fleet(self.name)
        self.loader: Loader
        self._servers = servers
        self._database: psycopg.Connection

    def start(self) -> None:
        """Make the table, start worker and client."""
        url = self._servers.postgres.create_database(self.name)
        environ = {"BENCH_DATABASE_URL": url, "BENCH_BROKER_URL": self._servers.rabbitmq.url}
        self._database = psycopg.connect(url, autocommit=True)
        self._database.execute(_TABLE)
        self.fleet.spawn("worker", ["-m", __name__], environ)
        self.loader = Loader(self.fleet, __name__, environ)

    def settings(self) -> Mapping[str, str]:
        """What it runs with."""
        return {
            "processes": f"worker with {_SLOTS} slots",
            "durability": "PostgreSQL commit and confirmed publish (quorum queue) before each answer; acks late",
            "settings": f"defaults; {_CONNECTIONS} connections in worker and client; uvloop",
        }

    def finished(self) -> int:
        """Jobs that are done."""
        row = self._database.execute("SELECT count(*) FROM jobs WHERE state = 'done'").fetchone()
        return row[0] if row else 0

    def states(self) -> str:
        """How many jobs are in which state."""
        return str(self._database.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def started_at(self, ids: Sequence[str]) -> Mapping[str, float]:
        """When each was claimed."""
        rows = self._database.execute(
            "SELECT id, extract(epoch FROM started_at) FROM jobs WHERE id = ANY(%s::uuid[])", [[*ids]]
        )
        return {str(job_id): float(at) for job_id, at in rows}

    def ready(self) -> bool:
        """Whether it runs; that it works, a warm-up shows."""
        return self.fleet.process("worker").alive()


if __name__ == "__main__":
    uvloop.run(_work())
