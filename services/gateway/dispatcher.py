"""Who runs next: puts due jobs up for claiming, queues lost ones again, ends those whose deadline passed.

Runs in every gateway; a lock in the database lets one pass work at a time. RabbitMQ gets only what can start
about now: as many jobs as the live workers have slots, plus a few.
"""

import time

import structlog

from imprimatur import metrics
from imprimatur.job import Happening, JobType
from imprimatur.policy import EngineFailure, Policy, decide
from imprimatur.runtime import Loop
from imprimatur.storage import claims, clock, dispatch
from imprimatur.storage.database import Database, Transaction
from imprimatur.wire.creatives import ai_result

log = structlog.get_logger(__name__)

#: Jobs put up for claiming beyond the live workers' slots, so that a slot never waits for the next pass.
SPARE_RELEASES = 64
_SWEEP_LIMIT = 500
_PASS_SECONDS_WHILE_HELD_BACK = 0.03


class Dispatcher:
    """One gateway's share of deciding what runs next.

    Args:
        pass_seconds: how often to look; a submit that finds no room does not wait for it, others do.
        lease_seconds: the workers' lease; jobs are taken from a silent worker only after one whole lease of
            uninterrupted contact with the database, so that our own pause is not taken for theirs.
        silent_seconds: a worker not heard of for longer has no slots.
    """

    def __init__(
        self,
        database: Database,
        *,
        pass_seconds: float = 0.25,
        lease_seconds: float = 3.0,
        silent_seconds: float = 5.0,
    ) -> None:
        self._database = database
        self._pass_seconds = pass_seconds
        self._lease_seconds = lease_seconds
        self._silent_seconds = silent_seconds
        self._loop = Loop("dispatcher", self.pass_once, interval_seconds=pass_seconds)
        self._room = 0
        self._contact_since: float | None = None
        self._last_contact = 0.0

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    async def stop(self) -> None:
        """Stop; another gateway goes on."""
        await self._loop.stop()

    def take_room(self, wanted: int) -> int:
        """How many of `wanted` new jobs may be put up for claiming at once: all while nothing is held back."""
        taken = min(wanted, self._room)
        self._room -= taken
        return taken

    async def pass_once(self) -> float | None:
        """One look at what waits; the next one is soon while something is held back."""
        try:
            async with self._database.read() as reader:
                backlog = await dispatch.backlog(reader, silent_seconds=self._silent_seconds)
            room = backlog.slots + SPARE_RELEASES - backlog.released
            self._room = max(0, room) if backlog.due == 0 else 0
            async with self._database.begin() as tx:
                if await dispatch.become_dispatcher(tx):
                    await self._work(tx, room)
        except BaseException:
            self._contact_since = None
            raise
        self._note_contact()
        return min(_PASS_SECONDS_WHILE_HELD_BACK, self._pass_seconds) if backlog.due else None

    async def _work(self, tx: Transaction, room: int) -> None:
        if self._in_contact():
            lost = await claims.lost_leases(tx, limit=_SWEEP_LIMIT)
            for row in lost:
                metrics.leases_lost.inc()
                log.warning("a worker fell silent; its job is queued again", job_id=str(row.id), claim_no=row.claim_no)
        metrics.jobs_released.labels("dispatcher").inc(await dispatch.release_due(tx, room=room))
        # With little room left, idle workers tell that what fills it was lost on the way to them.
        if room > SPARE_RELEASES // 2 or await dispatch.idle_slots(tx, silent_seconds=self._silent_seconds):
            metrics.jobs_released.labels("again").inc(await dispatch.reissue(tx, limit=max(room, SPARE_RELEASES)))
        await end_overdue(tx)

    def _note_contact(self) -> None:
        now = time.monotonic()
        paused = now - self._last_contact > self._pass_seconds + 1.0
        if self._contact_since is None or paused:
            self._contact_since = now
        self._last_contact = now

    def _in_contact(self) -> bool:
        since = self._contact_since
        now = time.monotonic()
        return (
            since is not None
            and now - self._last_contact <= self._pass_seconds + 1.0
            and now - since > self._lease_seconds
        )


async def end_overdue(tx: Transaction) -> None:
    """End the waiting jobs whose deadline has passed. A creative review goes to a person."""
    verdict = decide(Policy(), (), EngineFailure(message=dispatch.DEADLINE_PASSED.message))
    shown = {
        "decision": verdict.decision,
        "policy_triggered": verdict.trigger,
        "result": ai_result(verdict, None, policy_version=0, reviewed_at=await clock.present(tx)),
    }
    rows = await dispatch.end_overdue(tx, JobType.CREATIVE_REVIEW, Happening.REFERRED, shown, limit=_SWEEP_LIMIT)
    for row in rows:
        metrics.jobs_finished.labels(row.type, row.state).inc()
        log.warning("a job's deadline passed; a person decides", job_id=str(row.id))
