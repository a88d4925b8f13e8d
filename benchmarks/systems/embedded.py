"""`imprimatur serve`: everything in one process, SQLite and the in-memory broker."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from uuid import UUID

from benchmarks.fleet import Fleet
from benchmarks.load import Loader
from benchmarks.systems import ours
from deploy.local import process as processes
from deploy.local.ports import free_port

_READY_SECONDS = 240.0


class Embedded:
    """One such process."""

    name = "embedded"

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.loader: Loader
        self._data = fleet.folder / "data"
        self._ports = free_port(), free_port()
        self._database: sqlite3.Connection

    def start(self) -> None:
        """Start it; returns when it can work."""
        port, metrics = map(str, self._ports)
        words = ["-m", "benchmarks.noop", "serve", "--port", port, "--metrics-port", metrics, "--data", str(self._data)]
        self.fleet.spawn("serve", words, {})
        if not processes.wait_until(self.ready, _READY_SECONDS):
            raise RuntimeError(f"not ready:\n{self.fleet.log('serve').read_text()[-3000:]}")
        access = json.loads((self._data / "client.json").read_text())
        self._database = sqlite3.connect(f"file:{self._data / 'imprimatur.db'}?mode=ro", uri=True)
        environ = {"BENCH_TARGET": access["target"], "BENCH_API_KEY": access["api_key"]}
        self.loader = Loader(self.fleet, ours.__name__, environ)

    def settings(self) -> Mapping[str, str]:
        """What it runs with."""
        return {"processes": "one", "durability": "SQLite, WAL", "settings": "defaults (8 slots)"}

    def finished(self) -> int:
        """Jobs in a terminal state."""
        (found,) = self._database.execute("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL").fetchone()
        return int(found)

    def states(self) -> str:
        """How many jobs are in which state."""
        return str(self._database.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def started_at(self, ids: Sequence[str]) -> Mapping[str, float]:
        """When each was claimed."""
        wanted = {UUID(job_id).hex: job_id for job_id in ids}
        rows = self._database.execute("SELECT id, started_at FROM jobs WHERE started_at IS NOT NULL")
        return {wanted[key]: _seconds(at) for key, at in rows if key in wanted}

    def ready(self) -> bool:
        """Whether it says so, and has left its first key."""
        return (self._data / "client.json").exists() and ours.answers(f"http://127.0.0.1:{self._ports[1]}/readyz")


def _seconds(stored: float) -> float:
    return stored / 1e6
