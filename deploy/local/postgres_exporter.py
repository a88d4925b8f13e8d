"""A private postgres_exporter: tells Prometheus of one PostgreSQL, on one free port on 127.0.0.1. It keeps no data."""

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from deploy.local import programs
from deploy.local.ports import free_port
from deploy.local.process import Process, spawn
from deploy.local.server import PrivateServer, earlier_settings, read_state, require_free


@dataclass(frozen=True, kw_only=True)
class PostgresExporterSettings:
    """What one private exporter was started with."""

    port: int
    database_url: str
    die_with_parent: bool


class PrivatePostgresExporter(PrivateServer):
    """One exporter. Start it with `start`, find it again with `attach`."""

    def __init__(self, folder: Path, settings: PostgresExporterSettings, process: Process | None = None) -> None:
        super().__init__(folder, process)
        self.settings = settings

    @classmethod
    def start(cls, folder: Path, database_url: str, *, port: int | None = None, die_with_parent: bool = True) -> Self:
        """Start an exporter of the server that has the database (without TLS: on this machine); returns when it
        answers. What it tells is of all the server's databases.

        Without `port` the folder's earlier one, or a free one, is chosen. Raises ServerDidNotStart,
        programs.ProgramMissing.
        """
        require_free(port)
        folder = folder.absolute()
        programs.postgres_exporter()
        folder.mkdir(parents=True, exist_ok=True)
        earlier = earlier_settings(folder)

        def settings() -> PostgresExporterSettings:
            return PostgresExporterSettings(
                port=port or free_port(earlier.pop("port", None)),
                database_url=database_url,
                die_with_parent=die_with_parent,
            )

        return cls._begin(lambda: cls(folder, settings()))

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """The exporter that was started in `folder`, by whichever process; it may have ended since.

        Raises NothingStarted.
        """
        process, settings = read_state(folder.absolute())
        return cls(folder.absolute(), PostgresExporterSettings(**settings), process)

    @property
    def address(self) -> str:
        """host:port, for Prometheus."""
        return f"127.0.0.1:{self.settings.port}"

    @property
    def url(self) -> str:
        """The address of its metrics."""
        return f"http://{self.address}/metrics"

    def _launch(self) -> Process:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return spawn(
            [programs.postgres_exporter(), f"--web.listen-address={self.address}"],
            log=self.log,
            environ={**environ, "DATA_SOURCE_NAME": f"{self.settings.database_url}?sslmode=disable"},
            die_with_parent=self.settings.die_with_parent,
        )

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/", timeout=2.0):
                return True
        except OSError:
            return False

    def _settings(self) -> Mapping[str, Any]:
        return asdict(self.settings)

    def _remove_data(self) -> None:
        """There is none."""
