"""Celery as one would run it for work that must not be lost: quorum queue, confirmed publishes, late acknowledgement,
prefork of 2, results and the STARTED state in PostgreSQL.

The addresses are Celery's own variables, CELERY_BROKER_URL and CELERY_RESULT_BACKEND.
"""

import json
import time
from collections.abc import Mapping, Sequence

import psycopg
from celery import Celery

from benchmarks.load import MOST_IN_FLIGHT, BlockingSubmit, Loader, payload
from benchmarks.servers import Servers

app = Celery("bench")
app.conf.update(
    task_default_queue="bench",
    task_default_queue_type="quorum",
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_track_started=True,
    worker_concurrency=2,
)


@app.task
def noop(text: str) -> float:
    """Do nothing; tell when."""
    return time.time()


def blocking_client() -> BlockingSubmit:
    """Celery's own client, which blocks; a submit is answered once the broker has confirmed the message."""
    # One connection for each submit that may be under way, where the default lets the others wait for one of ten.
    app.conf.broker_pool_limit = MOST_IN_FLIGHT
    text = payload()

    def submit(number: int) -> str:
        return str(noop.delay(text).id)

    return submit


class CeleryPeer:
    """One worker."""

    name = "celery"

    def __init__(self, servers: Servers) -> None:
        self.fleet = servers.fleet(self.name)
        self.loader: Loader
        self._servers = servers
        self._database: psycopg.Connection

    def start(self) -> None:
        """Start worker and client."""
        url = self._servers.postgres.create_database(self.name)
        environ = {
            "CELERY_BROKER_URL": self._servers.rabbitmq.url.replace("amqp:", "pyamqp:"),
            "CELERY_RESULT_BACKEND": "db+" + url.replace("postgresql:", "postgresql+psycopg:"),
        }
        self._database = psycopg.connect(url, autocommit=True)
        self.fleet.spawn("worker", ["-m", "celery", "-A", __name__, "worker", "--loglevel=WARNING"], environ)
        self.loader = Loader(self.fleet, __name__, environ)

    def settings(self) -> Mapping[str, str]:
        """What it runs with."""
        return {
            "processes": "worker with prefork 2",
            "durability": "quorum queue, confirm_publish, acks late; result backend PostgreSQL, track_started",
            "settings": "otherwise defaults; 100 broker connections in the client",
        }

    def finished(self) -> int:
        """Results that are there."""
        try:
            row = self._database.execute("SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'").fetchone()
        except psycopg.errors.UndefinedTable:  # made with the first result
            return 0
        return row[0] if row else 0

    def states(self) -> str:
        """How many jobs are in which state."""
        return str(self._database.execute("SELECT status, count(*) FROM celery_taskmeta GROUP BY status").fetchall())

    def started_at(self, ids: Sequence[str]) -> Mapping[str, float]:
        """When each task's function began: it is its result."""
        rows = self._database.execute("SELECT task_id, result FROM celery_taskmeta WHERE task_id = ANY(%s)", [[*ids]])
        return {task_id: json.loads(result) for task_id, result in rows}

    def ready(self) -> bool:
        """Whether it runs; that it works, a warm-up shows."""
        return self.fleet.process("worker").alive()
