"""The leases that this worker holds, renewed together in one statement about each second.

A pair (job, claim_no) that the database does not know any more was cancelled or taken over: its attempt is aborted,
unless its end is being written just then. One that others keep locked is neither renewed nor lost. Renewal has a
connection of its own, so that a busy pool cannot make a living worker look dead.
"""

import asyncio
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from imprimatur import metrics
from imprimatur.errors import Unavailable
from imprimatur.job import Claim
from imprimatur.runtime import Loop
from imprimatur.storage import claims, workers
from imprimatur.storage.database import Database
from imprimatur.storage.workers import Worker

log = structlog.get_logger(__name__)

#: After a renewal that failed: there is time for two more before the lease is over.
_AGAIN_SECONDS = 0.1


@dataclass(kw_only=True)
class _Held:
    task: asyncio.Task[None]
    concluding: bool = False
    taken: bool = False


class Leases:
    """What this worker holds.

    Args:
        database: with a connection of its own.
        lease_seconds: renewed three times in each; one renewal may take a quarter of it. Renewing also tells the
            dispatcher that this worker lives.
    """

    def __init__(
        self,
        database: Database,
        worker: Worker,
        *,
        lease_seconds: float = 3.0,
    ) -> None:
        self._database = database
        self._worker = worker
        self.lease_seconds = lease_seconds
        self._timeout_seconds = lease_seconds / 4
        self._held: dict[tuple[uuid.UUID, int], _Held] = {}
        self._loop = Loop("lease-renewal", self._renew, interval_seconds=lease_seconds / 3)

    def start(self) -> None:
        """Begin to renew."""
        self._loop.start()

    async def stop(self) -> None:
        """Stop renewing and tell the dispatcher that this worker is gone."""
        await self._loop.stop()
        try:
            async with self._database.begin() as tx:
                await workers.gone(tx, self._worker)
        except Unavailable:
            log.warning("the dispatcher could not be told that this worker stops; it will find out")

    @contextmanager
    def held(self, claim: Claim) -> Iterator[None]:
        """Inside the block the claim is renewed; the current task is cancelled if it is lost."""
        task = asyncio.current_task()
        assert task is not None
        key = (claim.job_id, claim.claim_no)
        self._held[key] = _Held(task=task)
        metrics.slots_in_use.set(len(self._held))
        try:
            yield
        finally:
            del self._held[key]
            metrics.slots_in_use.set(len(self._held))

    def concluding(self, claim: Claim, *, really: bool = True) -> None:
        """From here on the claim's end is being written, so that its absence from a renewal means nothing; or,
        when not `really`, the work goes on after all."""
        self._held[claim.job_id, claim.claim_no].concluding = really

    def taken(self, claim: Claim) -> bool:
        """Whether the claim was found to be cancelled or taken over."""
        return self._held[claim.job_id, claim.claim_no].taken

    def doubt(self, job_ids: Collection[uuid.UUID]) -> None:
        """Jobs are said to be cancelled: if one is held, ask the database at once whether it still is."""
        if any(job_id in job_ids for job_id, _ in self._held):
            self._loop.wake()

    async def _renew(self) -> float | None:
        asked = set(self._held)
        try:
            async with asyncio.timeout(self._timeout_seconds), self._database.begin() as tx:
                renewal = await claims.renew(tx, self._worker, asked, lease_seconds=self.lease_seconds)
        except (TimeoutError, Unavailable) as fault:
            metrics.loop_failures.labels("lease-renewal").inc()
            log.warning("the leases could not be renewed; again at once", error=str(fault) or "no answer in time")
            return _AGAIN_SECONDS
        if renewal.locked_out:
            log.warning("others keep jobs of this worker locked", jobs=len(renewal.locked_out))
        for job_id, claim_no in asked - renewal.renewed - renewal.locked_out:
            self._abort(job_id, claim_no)
        return None

    def _abort(self, job_id: uuid.UUID, claim_no: int) -> None:
        held = self._held.get((job_id, claim_no))
        if held is not None and not held.concluding and not held.taken:
            log.info("a job was taken from this worker; its attempt is aborted", job_id=str(job_id), claim_no=claim_no)
            held.taken = True
            held.task.cancel()
