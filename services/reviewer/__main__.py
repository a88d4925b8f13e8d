"""`python -m reviewer`: settings from the environment, everything put together, until SIGTERM."""

from functools import partial

from imprimatur.process import run_service, surroundings
from imprimatur.runtime import StopSignal, http_port
from imprimatur.storage.database import Database
from reviewer.engines.apart import EngineApart
from reviewer.engines.registry import open_engine
from reviewer.service import reviewer
from reviewer.settings import ReviewerSettings


async def run(settings: ReviewerSettings, stop: StopSignal) -> None:
    """Run a reviewer as these settings say, until SIGTERM or SIGINT."""
    engine = open_engine(settings)
    apart = EngineApart(partial(open_engine, settings.of_child()), identity=engine.identity)
    lease_database = Database(settings.database_url, pool_size=1, command_timeout_seconds=1.0)
    try:
        async with (
            http_port(settings.http_host, settings.reviewer_http_port) as http,
            surroundings(settings, http, name="reviewer") as around,
            reviewer(
                around.database,
                lease_database,
                around.broker,
                engine,
                apart.opened,
                guard=settings.guard(),
                image_processes=settings.image_processes,
                terms=settings.terms(),
                reuse_seconds=settings.evidence_reuse_seconds,
                slots=settings.reviewer_slots,
                lease_seconds=settings.lease_seconds,
                drain_seconds=settings.drain_seconds,
            ) as running,
            http.ready({**around.checks(), "consumers": running.consuming}),
        ):
            await stop.wait()
    finally:
        await lease_database.close()


if __name__ == "__main__":
    run_service(ReviewerSettings, run)
