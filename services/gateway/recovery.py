"""What becomes of jobs that make no progress: those of silent workers are queued again, those whose message was lost
are asked for again, and those that are hopeless are given to people.

Runs in every gateway, apart from the dispatcher: whatever holds up its passes holds up none of this.
"""

import time
import uuid
from datetime import datetime
from typing import Any

import structlog

from gateway.dispatcher import Dispatcher
from imprimatur import metrics
from imprimatur.broker import Broker
from imprimatur.errors import Locked
from imprimatur.job import Happening, JobType
from imprimatur.policy import EngineFailure, decide_failure
from imprimatur.runtime import Loop
from imprimatur.storage import claims, dispatch, gateways, tenants, workers
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.dispatch import BEGINNING, MOST_REISSUED_ASIDE, Hopeless, Idleness, Work
from imprimatur.wire.creatives import ai_result

#: A changed row of the jobs table.
Row = Any

log = structlog.get_logger(__name__)

_SWEEP_LIMIT = 500
#: So long a tenant's hopeless jobs keep those of the others waiting, when somebody has the tenant locked.
_LOCK_SECONDS = 0.1
#: A pass that comes so much later than it should tells of a pause.
_LATE_SECONDS = 1.0
#: Workers and gateways that were silent for so long are removed, so often.
_FORGET_SILENT_SECONDS = 3600.0
_FORGET_EVERY_SECONDS = 60.0


class Recovery:
    """One gateway's share of it.

    Args:
        broker: whether messages can be on their way.
        dispatcher: told of what is due again.
        pass_seconds: how often to look.
        lease_seconds: the workers' lease; jobs are taken from a silent worker only after one whole lease of
            uninterrupted contact with the database, so that our own pause is not taken for theirs.
        silent_seconds: a worker not heard of for longer has no slots.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        dispatcher: Dispatcher,
        *,
        pass_seconds: float = 0.5,
        lease_seconds: float = 3.0,
        silent_seconds: float = 5.0,
    ) -> None:
        self._database = database
        self._broker = broker
        self._dispatcher = dispatcher
        self._lease_seconds = lease_seconds
        self._silent_seconds = silent_seconds
        self._most_between_seconds = pass_seconds + _LATE_SECONDS
        self._loop = Loop("recovery", self.pass_once, interval_seconds=pass_seconds)
        # Apart: it waits for locks on tenants, and one tenant's shall hold up nobody else's jobs.
        self._giving_up = Loop("giving-up", self._give_up_hopeless, interval_seconds=pass_seconds)
        self._come_to: dict[Hopeless, datetime] = {}
        self._contact_since: float | None = None
        self._last_contact = 0.0
        self._forgot_at = time.monotonic()

    def start(self) -> None:
        """Begin."""
        self._loop.start()
        self._giving_up.start()

    async def stop(self) -> None:
        """Stop; another gateway goes on."""
        await self._loop.stop()
        await self._giving_up.stop()

    async def pass_once(self) -> None:
        """One look at what is lost."""
        try:
            async with self._database.read() as reader:
                idleness = await dispatch.idleness(reader, silent_seconds=self._silent_seconds)
            lost, reissued = await self._recover(idleness)
        except BaseException:
            self._contact_since = None
            raise
        self._note_contact()
        metrics.leases_lost.inc(len(lost))
        metrics.jobs_released.labels("again").inc(reissued)
        for row in lost:
            log.warning("a worker fell silent; its job is queued again", job_id=str(row.id), claim_no=row.claim_no)
        if lost:
            self._dispatcher.wake()

    async def _recover(self, idleness: Idleness) -> tuple[list[Row], int]:
        lost: list[Row] = []
        reissued = 0
        async with self._database.begin() as tx:
            if not await dispatch.is_mine(tx, Work.RECOVERING):
                return lost, reissued
            if self._in_contact():
                lost = await claims.lost_leases(tx, as_of=idleness.at, limit=_SWEEP_LIMIT)
            # Idle workers tell that what is put up was lost on the way to them. While the broker is away all messages
            # still wait in the outbox, and more of them would only make those stale.
            if idleness.slots > 0 and self._broker.connected:
                limit = max(idleness.slots, MOST_REISSUED_ASIDE)
                reissued = await dispatch.reissue(tx, limit=limit, together=self._dispatcher.together)
            if time.monotonic() - self._forgot_at > _FORGET_EVERY_SECONDS:
                await workers.forget_silent(tx, silent_seconds=_FORGET_SILENT_SECONDS)
                await gateways.forget_silent(tx, silent_seconds=_FORGET_SILENT_SECONDS)
                self._forgot_at = time.monotonic()
        return lost, reissued

    async def _give_up_hopeless(self) -> None:
        for hopeless in (dispatch.OVERDUE, *([dispatch.LOST_TOO_OFTEN] if self._in_contact() else [])):
            async with self._database.read() as reader:
                owners = await dispatch.tenants_with(
                    reader,
                    hopeless,
                    JobType.CREATIVE_REVIEW,
                    behind=self._come_to.get(hopeless, BEGINNING),
                    limit=_SWEEP_LIMIT,
                )
            self._come_to[hopeless] = owners.following
            for tenant_id in owners.tenants:
                try:
                    async with self._database.begin(lock_seconds=_LOCK_SECONDS) as tx:
                        given_up = await give_up(tx, hopeless, tenant_id)
                except Locked as held_up:
                    log.warning("a tenant's jobs wait to be given up", tenant_id=str(tenant_id), reason=str(held_up))
                except Exception:  # a background loop's edge, once for each tenant
                    metrics.loop_failures.labels("giving-up").inc()
                    log.exception("a tenant's jobs could not be given up now", tenant_id=str(tenant_id))
                else:
                    _tell_given_up(given_up)

    def _note_contact(self) -> None:
        now = time.monotonic()
        if self._contact_since is None or now - self._last_contact > self._most_between_seconds:
            self._contact_since = now
        self._last_contact = now

    def _in_contact(self) -> bool:
        since = self._contact_since
        now = time.monotonic()
        return (
            since is not None
            and now - self._last_contact <= self._most_between_seconds
            and now - since > self._lease_seconds
        )


def _tell_given_up(rows: list[Row]) -> None:
    for row in rows:
        metrics.jobs_finished.labels(row.type, row.state).inc()
        metrics.decisions.labels(row.decision, row.policy_triggered).inc()
        log.warning("a job is not tried any more; a person decides", job_id=str(row.id), error=row.error["code"])


async def give_up(tx: Transaction, hopeless: Hopeless, tenant_id: uuid.UUID) -> list[Row]:
    """Give a tenant's creatives whose reviews are hopeless to people, as its live policy says."""
    live = (await tenants.keep_policies(tx, [tenant_id]))[tenant_id]
    verdict = decide_failure(live.policy, (), EngineFailure(message=hopeless.error.message))
    shown = {
        "decision": verdict.decision,
        "policy_triggered": verdict.trigger,
        "result": ai_result(verdict, None, policy_version=live.version, reviewed_at=live.at),
    }
    return await dispatch.give_up(
        tx,
        hopeless,
        tenant_id=tenant_id,
        job_type=JobType.CREATIVE_REVIEW,
        happening=Happening.REFERRED,
        shown=shown,
        limit=_SWEEP_LIMIT,
    )
