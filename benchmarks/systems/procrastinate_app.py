"""Procrastinate, whose queue is a table of PostgreSQL: a worker with as many slots as our reviewer.

Its connection comes from the standard variables (PGHOST …).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import psycopg
from procrastinate import App, PsycopgConnector

from benchmarks.load import Loader, Submit, payload
from benchmarks.servers import Servers
from deploy.local import process as processes

_SLOTS = 64
_SCHEMA_SECONDS = 30.0

app = App(connector=PsycopgConnector(max_size=10))


@app.task
async def noop(text: str) -> None:
    """Do nothing."""


@asynccontextmanager
async def client() -> AsyncIterator[Submit]:
    """Its own client; a submit is answered once the row is committed."""
    text = payload()
    async with app.open_async():

        async def submit(number: int) -> str:
            return str(await noop.defer_async(text=text))

        yield submit


class ProcrastinatePeer:
    """One worker."""

    name = "procrastinate"

    def __init__(self, servers: Servers) -> None:
        self.fleet = servers.fleet(self.name)
        self.loader: Loader
        self._servers = servers
        self._database: psycopg.Connection

    def start(self) -> None:
        """Make the schema, start worker and client."""
        url = self._servers.postgres.create_database(self.name)
        parts = urlsplit(url)
        environ = {"PGHOST": "127.0.0.1", "PGPORT": str(parts.port), "PGUSER": "postgres", "PGDATABASE": self.name}
        self._database = psycopg.connect(url, autocommit=True)
        command = ["-m", "procrastinate", "--app", f"{__name__}.app"]
        schema = self.fleet.spawn("schema", [*command, "schema", "--apply"], environ)
        processes.wait_gone([schema], _SCHEMA_SECONDS)
        self.fleet.forget("schema")
        self.fleet.spawn("worker", [*command, "worker", "--concurrency", str(_SLOTS)], environ)
        self.loader = Loader(self.fleet, __name__, environ)

    def settings(self) -> Mapping[str, str]:
        """What it runs with."""
        return {
            "processes": f"worker with {_SLOTS} slots",
            "durability": "PostgreSQL commit before each answer",
            "settings": "defaults; 10 connections in worker and client",
        }

    def finished(self) -> int:
        """Jobs that succeeded."""
        row = self._database.execute("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'").fetchone()
        return row[0] if row else 0

    def states(self) -> str:
        """How many jobs are in which state."""
        return str(self._database.execute("SELECT status, count(*) FROM procrastinate_jobs GROUP BY status").fetchall())

    def started_at(self, ids: Sequence[str]) -> Mapping[str, float]:
        """When each was fetched."""
        rows = self._database.execute(
            "SELECT job_id, extract(epoch FROM at) FROM procrastinate_events "
            "WHERE type = 'started' AND job_id = ANY(%s)",
            [[int(job_id) for job_id in ids]],
        )
        return {str(job_id): float(at) for job_id, at in rows}

    def ready(self) -> bool:
        """Whether it runs; that it works, a warm-up shows."""
        return self.fleet.process("worker").alive()
