"""The reviewer, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from imprimatur import metrics
from imprimatur.broker import Broker
from imprimatur.guard import STRICT, Guard
from imprimatur.identity import new_id
from imprimatur.job import JobType
from imprimatur.process import process_name
from imprimatur.storage.database import Database
from imprimatur.storage.workers import Worker as Identity
from reviewer.attempt import Attempts
from reviewer.engines import Engine, OpenEngine
from reviewer.images.darkroom import Darkroom
from reviewer.images.fetching import Fetcher
from reviewer.images.images import Images
from reviewer.leases import Leases
from reviewer.tasks.creative_review import CreativeReview
from reviewer.terms import NO_TERMS, Terms
from reviewer.twins import Twins
from reviewer.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Reviewer:
    """A reviewer that is running."""

    worker: Worker

    async def consuming(self) -> str | None:
        """Readiness: the broker knows our consumers."""
        return None if self.worker.consuming else "not every review queue has a consumer of this process"


@asynccontextmanager
async def reviewer(
    database: Database,
    lease_database: Database,
    broker: Broker,
    engine: Engine,
    open_apart: OpenEngine,
    *,
    guard: Guard = STRICT,
    image_processes: int = 2,
    terms: Terms = NO_TERMS,
    reuse_seconds: float = 0.0,
    slots: int = 16,
    lease_seconds: float = 3.0,
    drain_seconds: float = 20.0,
) -> AsyncIterator[Reviewer]:
    """Run a reviewer inside the block, and drain it at the end.

    Args:
        open_apart: opens the same engine for one suspect, in a process of its own.
        guard: of the URLs from which images are fetched.
        image_processes: in which images are decoded; started when first needed.
        terms: on which an engine's provider is asked.
        reuse_seconds: for how long evidence is reused for equal creatives; 0: not at all.
        lease_database: for lease renewals alone; the same as `database` where one writer is all there is.
    """
    identity = Identity(id=new_id(), name=process_name(), slots=slots)
    leases = Leases(lease_database, identity, lease_seconds=lease_seconds)
    images = Images(database, Fetcher(guard), Darkroom(processes=image_processes))
    twins = Twins(database, keep_seconds=reuse_seconds)
    review = CreativeReview(database, images, engine, open_apart, terms=terms, twins=twins)
    attempts = Attempts(database, leases, {JobType.CREATIVE_REVIEW: review}, twins)
    worker = Worker(database, broker, identity, attempts, leases)
    metrics.broker_consuming.labels("reviewer").set_function(lambda: worker.consuming)
    leases.start()
    try:
        await worker.start()
        yield Reviewer(worker=worker)
    finally:
        try:
            await worker.stop(drain_seconds=drain_seconds)
            await leases.stop()
        finally:
            await images.close()
            await engine.close()
