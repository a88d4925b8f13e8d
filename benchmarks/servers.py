"""The private RabbitMQ and PostgreSQL (fsync on, settings of the distribution) under every system of a run."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.fleet import Fleet
from deploy.local.postgres import PrivatePostgres
from deploy.local.rabbitmq import PROMETHEUS, PrivateRabbitMQ


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Both, and the folder in which every system has one of its own."""

    folder: Path
    postgres: PrivatePostgres
    rabbitmq: PrivateRabbitMQ

    def fleet(self, name: str) -> Fleet:
        """A fleet that counts both servers in."""
        folder = self.folder / name
        folder.mkdir()
        made = Fleet(folder)
        for server, process in (("postgresql", self.postgres.process), ("rabbitmq", self.rabbitmq.process)):
            assert process is not None
            made.add(server, process)
        return made

    def virtual_host(self, name: str) -> str:
        """The address of a part of the broker that has no queues yet."""
        self.rabbitmq.ctl("add_vhost", name)
        self.rabbitmq.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.rabbitmq.url + name

    def settings(self) -> dict[str, str]:
        """What they run with."""
        names = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_connections", "wal_level")
        with psycopg.connect(self.postgres.dsn) as connection:
            shown = {name: connection.execute(f"SHOW {name}").fetchone() for name in names}
        values = {f"postgresql {name}": str(row[0]) for name, row in shown.items() if row}
        return values | {"rabbitmq version": self.rabbitmq.ctl("version").strip()}


@contextmanager
def servers() -> Iterator[Servers]:
    """Both inside the block; afterwards they and everything in the folder are gone."""
    folder = Path(tempfile.mkdtemp(prefix="imprimatur-bench-"))
    try:
        with (
            PrivatePostgres.start(folder / "postgresql", max_connections=300) as postgres,
            PrivateRabbitMQ.start(folder / "rabbitmq", plugins=[PROMETHEUS]) as rabbitmq,
        ):
            yield Servers(folder=folder, postgres=postgres, rabbitmq=rabbitmq)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
