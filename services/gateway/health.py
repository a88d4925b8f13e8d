"""grpc.health.v1, which load balancers and clients ask: serving while the database answers.

A gateway without a broker accepts jobs, shows and cancels them; one without a database can do nothing.
"""

from collections.abc import Sequence

from grpc_health.v1 import health, health_pb2

from imprimatur.errors import Unavailable
from imprimatur.runtime import Loop
from imprimatur.storage.database import Database

_LOOK_SECONDS = 1.0


class Health:
    """What is told of all services together and of each."""

    def __init__(self, database: Database, services: Sequence[str]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._database = database
        self._names = ("", *services)
        self._loop = Loop("health", self._look, interval_seconds=_LOOK_SECONDS)

    async def start(self) -> None:
        """Look once, and again and again from then on."""
        await self._look()
        self._loop.start()

    async def stop(self) -> None:
        """Not serving, for good."""
        await self._loop.stop()
        await self.servicer.enter_graceful_shutdown()

    async def _look(self) -> None:
        try:
            await self._database.ping()
        except Unavailable:
            await self._tell(serving=False)
        else:
            await self._tell(serving=True)

    async def _tell(self, *, serving: bool) -> None:
        told = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.servicer.set(name, told.SERVING if serving else told.NOT_SERVING)
