"""Who runs next: puts due jobs up for claiming, queues lost ones again, ends those whose deadline passed.

Runs in every gateway; a lock in the database lets one pass work at a time. RabbitMQ gets only what can start
about now: as many jobs as the live workers have free slots, plus a few.
"""

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from imprimatur import metrics
from imprimatur.broker import Broker, Message, Subscription
from imprimatur.errors import MalformedMessage
from imprimatur.job import Happening, JobType
from imprimatur.policy import EngineFailure, decide_failure
from imprimatur.runtime import Loop
from imprimatur.storage import claims, dispatch, tenants
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.dispatch import Backlog, Hopeless
from imprimatur.wire.creatives import ai_result
from imprimatur.wire.messages import JobsChanged

#: A changed row of the jobs table.
Row = Any

log = structlog.get_logger(__name__)

_SWEEP_LIMIT = 500
_PASS_SECONDS_WHILE_HELD_BACK = 0.05
#: Jobs are put up for claiming beyond the free slots for as long as this ahead, at the pace of the last starts, so that
#: no slot waits for the next pass; and no more, since what is put up stands before everybody who comes later.
_AHEAD_SECONDS = 2 * _PASS_SECONDS_WHILE_HELD_BACK
_MOST_AHEAD = 512
#: Messages that may be lost are sent again in numbers like this, however little room there is.
_REISSUED_AT_LEAST = 64
#: Of many jobs one message asks for as many as a worker has sixteenths of its slots: what a message costs all who touch
#: it is shared then, and no worker gets more with it than it finds room for in a moment.
_SLOTS_FOR_ONE_MORE = 16
_STARTED = f"state.{Happening.CLAIMED}"


class Pace:
    """How many jobs start in a second, over all workers, as the broker tells of them. Rises at once, falls slowly."""

    def __init__(self) -> None:
        self._starts = 0
        self._per_second = 0.0
        self._counted_at = time.monotonic()

    def heard(self, starts: int) -> None:
        """So many jobs have started."""
        self._starts += starts

    def ahead(self) -> int:
        """How many jobs to put up beyond the free slots; at least one."""
        now = time.monotonic()
        passed = now - self._counted_at
        if passed >= _PASS_SECONDS_WHILE_HELD_BACK / 2:
            self._per_second = max(self._starts / passed, self._per_second * math.exp(-passed))
            self._starts, self._counted_at = 0, now
        return min(_MOST_AHEAD, 1 + math.ceil(self._per_second * _AHEAD_SECONDS))


class Dispatcher:
    """One gateway's share of deciding what runs next.

    Args:
        broker: tells of jobs that start, and whether messages can be on their way.
        pass_seconds: how often to look; a submit that finds no room does not wait for it, others do.
        lease_seconds: the workers' lease; jobs are taken from a silent worker only after one whole lease of
            uninterrupted contact with the database, so that our own pause is not taken for theirs.
        silent_seconds: a worker not heard of for longer has no slots.
        most_of_a_tenant: jobs of one without a limit of its own that may be under way; 0: no limit.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        *,
        pass_seconds: float = 0.25,
        lease_seconds: float = 3.0,
        silent_seconds: float = 5.0,
        most_of_a_tenant: int = 0,
    ) -> None:
        self._database = database
        self._broker = broker
        self._pass_seconds = pass_seconds
        self._lease_seconds = lease_seconds
        self._silent_seconds = silent_seconds
        self._most_of_a_tenant = most_of_a_tenant
        self._loop = Loop("dispatcher", self.pass_once, interval_seconds=pass_seconds)
        # Apart from the passes: it waits for locks on tenants, and one tenant's shall hold up nobody else's jobs.
        self._giving_up = Loop("giving-up", self._give_up_hopeless, interval_seconds=2 * pass_seconds)
        self._pace = Pace()
        self.together = 1  # how many jobs reviewers may be asked for in one message
        self._starts: Subscription | None = None
        self._room = 0
        self._taken = self._settled = 0  # of the room, ever: given to submits, and by submits that have ended
        self._contact_since: float | None = None
        self._last_contact = 0.0
        self._last_thorough = 0.0

    async def start(self) -> None:
        """Begin."""
        self._starts = await self._broker.listen((_STARTED,), self._hear_of_starts, lambda: None)
        self._loop.start()
        self._giving_up.start()

    async def stop(self) -> None:
        """Stop; another gateway goes on."""
        await self._loop.stop()
        await self._giving_up.stop()
        if self._starts is not None:
            await self._starts.close()

    def _hear_of_starts(self, message: Message) -> None:
        try:
            self._pace.heard(len(JobsChanged.decode(message.body).changes))
        except MalformedMessage as fault:
            metrics.messages_set_aside.labels("job.events").inc()
            log.warning("an event cannot be read", error=str(fault), message_id=message.message_id)

    @contextmanager
    def room_for(self, wanted: int) -> Iterator[int]:
        """How many of `wanted` new jobs a transaction inside the block may put up for claiming at once: all while
        nothing is held back, none when every tenant has a limit, which takes counting."""
        taken = min(wanted, self._room) if not self._most_of_a_tenant else 0
        self._room -= taken
        self._taken += taken
        try:
            yield taken
        finally:
            self._settled += taken

    async def pass_once(self) -> float | None:
        """One look at what waits; the next one is soon while something is held back."""
        began = time.monotonic()
        thorough = began - self._last_thorough >= self._pass_seconds
        try:
            settled = self._settled  # what commits later may be missing from the count
            async with self._database.read() as reader:
                backlog = await dispatch.backlog(reader, silent_seconds=self._silent_seconds)
            under_way = self._taken - settled
            room = backlog.slots + self._pace.ahead() - backlog.running - _in_the_way(backlog) - under_way
            self._room = 0 if backlog.due else max(0, room)
            self.together = max(1, backlog.least_slots // _SLOTS_FOR_ONE_MORE)
            done = (
                await self._work(room, backlog.at, releases=backlog.due, thorough=thorough)
                if thorough or (backlog.due and room > 0)
                else _Done()
            )
        except BaseException:
            self._contact_since = None
            raise
        if thorough:
            self._last_thorough = began
        self._note_contact()
        done.tell()
        return min(_PASS_SECONDS_WHILE_HELD_BACK, self._pass_seconds) if backlog.due else None

    async def _work(self, room: int, looked_at: datetime, *, releases: bool, thorough: bool) -> "_Done":
        done = _Done()
        async with self._database.begin() as tx:
            if not await dispatch.become_dispatcher(tx):
                return done
            if thorough and self._in_contact():
                done.lost = await claims.lost_leases(tx, as_of=looked_at, limit=_SWEEP_LIMIT)
            if releases:  # else the room is the submits', which may have taken it since we looked
                done.released = await dispatch.release_due(
                    tx, room=room, most_of_a_tenant=self._most_of_a_tenant, together=self.together
                )
            if thorough and await self._messages_may_be_lost(tx, room):
                limit = max(room, _REISSUED_AT_LEAST)
                done.reissued = await dispatch.reissue(tx, limit=limit, together=self.together)
        return done

    async def _give_up_hopeless(self) -> None:
        for hopeless in (dispatch.OVERDUE, *([dispatch.LOST_TOO_OFTEN] if self._in_contact() else [])):
            async with self._database.read() as reader:
                owners = await dispatch.tenants_with(reader, hopeless, JobType.CREATIVE_REVIEW, limit=_SWEEP_LIMIT)
            for tenant_id in owners:
                try:
                    async with self._database.begin() as tx:
                        given_up = await give_up(tx, hopeless, tenant_id)
                except Exception:  # a background loop's edge, once for each tenant
                    metrics.loop_failures.labels("giving-up").inc()
                    log.exception("a tenant's jobs could not be given up now", tenant_id=str(tenant_id))
                else:
                    _tell_given_up(given_up)

    async def _messages_may_be_lost(self, tx: Transaction, room: int) -> bool:
        """With little room left, idle workers tell that what fills it was lost on the way to them. While the broker
        is away all messages still wait in the outbox, and more of them would only make those stale."""
        if not self._broker.connected:
            return False
        return room > 0 or await dispatch.idle_slots(tx, silent_seconds=self._silent_seconds) > 0

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


def _in_the_way(backlog: Backlog) -> int:
    """Released jobs for which places are kept: some may be asked for in vain without keeping others waiting, such as
    those of a type that only later versions know."""
    return backlog.released - min(backlog.reissued, _REISSUED_AT_LEAST)


@dataclass(kw_only=True)
class _Done:
    """What one pass did; told after its commit."""

    released: int = 0
    reissued: int = 0
    lost: list[Row] = field(default_factory=list)

    def tell(self) -> None:
        metrics.jobs_released.labels("dispatcher").inc(self.released)
        metrics.jobs_released.labels("again").inc(self.reissued)
        metrics.leases_lost.inc(len(self.lost))
        for row in self.lost:
            log.warning("a worker fell silent; its job is queued again", job_id=str(row.id), claim_no=row.claim_no)


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
