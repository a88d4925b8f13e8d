"""Imprimatur as on a machine of two cores: a gateway, a reviewer whose engine approves at once, a notifier."""

import os
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from benchmarks.load import Loader, Submit, payload
from benchmarks.servers import Servers
from cli.operation import Operation
from deploy.local import process as processes
from deploy.local.ports import free_port
from deploy.local.process import Process
from imprimatur.client import Client, submission
from imprimatur.identity import new_id
from imprimatur.v1.creative_pb2 import Creative
from imprimatur.v1.job_service_pb2 import SubmitJobRequest
from imprimatur.vault import new_key

#: Service, and the variable that names its HTTP port.
_SERVICES = {
    "gateway": "IMPRIMATUR_GATEWAY_HTTP_PORT",
    "reviewer": "IMPRIMATUR_REVIEWER_HTTP_PORT",
    "notifier": "IMPRIMATUR_NOTIFIER_HTTP_PORT",
}
#: Limits of a tenant are for several, and not for the one that measures: they are kept, and never come to.
_LIMITS = {"SUBMITS_PER_SECOND": "1000000", "OPEN_JOBS": "100000000", "STREAMS_PER_TENANT": "100000"}
_SCRAPE_SECONDS = 5.0
_READY_SECONDS = 240.0


# --- in the client's process ---------------------------------------------------------------------------------


@asynccontextmanager
async def client() -> AsyncIterator[Submit]:
    """Imprimatur's own client; a submit is answered once the job is durable."""
    text = payload()
    async with Client(os.environ["BENCH_TARGET"], api_key=os.environ["BENCH_API_KEY"]) as calls:

        async def submit(number: int) -> str:
            return (await calls.submit(request(number, text))).id

        yield submit


def request(number: int, text: str) -> SubmitJobRequest:
    """A creative without images, and one that nobody else submits."""
    creative = Creative(creative_id=f"creative-{number}-{new_id()}", headline="Apples", body=text, language="en-GB")
    return submission(creative)


# --- in the measuring process --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a client of one tenant reaches it."""

    target: str
    api_key: str = field(repr=False)

    @property
    def environ(self) -> dict[str, str]:
        """For a process in which a client runs."""
        return {"BENCH_TARGET": self.target, "BENCH_API_KEY": self.api_key}


class Ours:
    """One whole installation; several may share the servers.

    Args:
        name: of its database.
        virtual_host: take a part of the broker of its own: for a second one on the same servers.
        noop_seconds: how long the engine takes (asleep).
        slots: of the reviewer.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        name: str = "imprimatur",
        virtual_host: bool = False,
        noop_seconds: float = 0.0,
        slots: int = 64,
    ) -> None:
        self.name = name
        self.fleet = servers.fleet(name)
        self.access: Access
        self.loader: Loader
        self._servers = servers
        self._broker_url = servers.virtual_host(name) if virtual_host else servers.rabbitmq.url
        self._noop_seconds = noop_seconds
        self._slots = slots
        self._ports = {service: free_port() for service in (*_SERVICES, "grpc")}
        self._environ: dict[str, str] = {}
        self._database: psycopg.Connection
        self._mine: list[object] = []

    def start(self) -> None:
        """Start everything; returns when it can work."""
        self._environ = self._new_environ()
        Operation(self.database_url, self.fleet.folder).migrate(lambda _: None)
        self.access = self.tenant("default")
        for service in _SERVICES:
            module = "benchmarks.noop" if service == "reviewer" else "cli"
            self.fleet.spawn(service, ["-m", module, service], self._environ)
        if not processes.wait_until(self.ready, _READY_SECONDS):
            raise RuntimeError(f"not ready: see {self.fleet.folder}\n{self._logs()}")
        self._database = psycopg.connect(self.database_url, autocommit=True)
        self._mine = [self.ask("SELECT id FROM tenants"), self.ask("SELECT clock_timestamp()")]
        self.loader = Loader(self.fleet, __name__, self.access.environ)
        urls = [f"http://127.0.0.1:{self._ports[service]}/metrics" for service in _SERVICES]
        threading.Thread(target=_scrape, args=(urls, self.fleet.process("gateway")), daemon=True).start()

    @property
    def database_url(self) -> str:
        """Its database."""
        return self._environ["IMPRIMATUR_DATABASE_URL"]

    def settings(self) -> Mapping[str, str]:
        """What it runs with."""
        return {
            "processes": f"gateway, reviewer ({self._slots} slots), notifier",
            "durability": "PostgreSQL commit before each answer; quorum queues, confirms; /metrics read every 5 s",
            "settings": "defaults, but for a tenant's limits: out of reach",
        }

    def finished(self) -> int:
        """Jobs of the first tenant that reached a terminal state since the start."""
        return int(self.ask("SELECT count(*) FROM jobs WHERE tenant_id = %s AND finished_at > %s", self._mine))

    def states(self) -> str:
        """How many jobs are in which state."""
        return str(self._database.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def started_at(self, ids: Sequence[str]) -> Mapping[str, float]:
        """When each was claimed."""
        rows = self._database.execute(
            "SELECT id, extract(epoch FROM started_at) FROM jobs WHERE id = ANY(%s) AND started_at IS NOT NULL",
            [[UUID(job_id) for job_id in ids]],
        )
        return {str(job_id): float(at) for job_id, at in rows}

    def ready(self) -> bool:
        """Whether all three say so."""
        return all(answers(f"http://127.0.0.1:{self._ports[service]}/readyz") for service in _SERVICES)

    def tenant(self, name: str) -> Access:
        """A new tenant's first key."""
        _, key = Operation(self.database_url, self.fleet.folder).create_tenant(name)
        return Access(target=f"127.0.0.1:{self._ports['grpc']}", api_key=key)

    def ask(self, query: LiteralString, values: Sequence[object] = ()) -> Any:
        """The first column of the first row, from the database itself."""
        row = self._database.execute(query, values).fetchone()
        return row[0] if row else None

    def _new_environ(self) -> dict[str, str]:
        url = self._servers.postgres.create_database(self.name)
        return {
            "IMPRIMATUR_DATABASE_URL": url,
            "IMPRIMATUR_BROKER_URL": self._broker_url,
            "IMPRIMATUR_VAULT_KEY": new_key(),
            "IMPRIMATUR_GRPC_HOST": "127.0.0.1",
            "IMPRIMATUR_GRPC_PORT": str(self._ports["grpc"]),
            "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
            **{f"IMPRIMATUR_{limit}": most for limit, most in _LIMITS.items()},
            "IMPRIMATUR_NOOP_SECONDS": str(self._noop_seconds),
            "IMPRIMATUR_REVIEWER_SLOTS": str(self._slots),
            **{variable: str(self._ports[service]) for service, variable in _SERVICES.items()},
        }

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in self.fleet.folder.glob("*.log"))


def _scrape(urls: Sequence[str], gateway: Process) -> None:
    """Read the metrics as a Prometheus would, until the gateway has ended; while it is frozen, wait for it."""
    while gateway.alive():
        for url in urls:
            with suppress(OSError), urllib.request.urlopen(url, timeout=60) as answer:
                answer.read()
        time.sleep(_SCRAPE_SECONDS)


def answers(url: str) -> bool:
    """Whether a page is there."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
