"""Delivers: leases what is due, signs and posts it, records how it went.

Retries wait in the database, never in a sleeping coroutine. Fresh messages come straight from the announcer
through `take`, already leased.
"""

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from imprimatur import metrics, tracing
from imprimatur.errors import Unavailable
from imprimatur.gathering import Gathering
from imprimatur.runtime import Loop
from imprimatur.storage import deliveries as stored
from imprimatur.storage import webhooks as endpoints
from imprimatur.storage.database import Database
from imprimatur.storage.deliveries import AttemptRecord, DeliveryState, Lease
from imprimatur.storage.webhooks import SealedSecret
from imprimatur.tracing import Attribute, Kind, SpanContext
from imprimatur.vault import Vault, VaultError
from imprimatur.webhooks import MalformedSecret, key_of, unseal
from notifier import signing
from notifier.post import Answer, Outcome, Poster
from notifier.room import Limits, Room
from notifier.schedule import RECOMMENDED_PAUSES_SECONDS, Abandoned, Again, Delivered, Verdict, after_attempt

log = structlog.get_logger(__name__)

#: Lanes looked at in one pass.
_LANES = 1000
#: A delivery that cannot be signed waits so long, without an attempt being spent: an operator must act.
_UNSIGNABLE_PAUSE_SECONDS = 60.0
_RECORD_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When and how long.

    Args:
        lease_seconds: a delivery belongs to the process that attempts it for so long; more than a post may take.
        pauses_seconds: between attempts; after the last of them one more is made.
        poll_seconds: how often due retries are looked for.
    """

    lease_seconds: float = 60.0
    pauses_seconds: Sequence[float] = RECOMMENDED_PAUSES_SECONDS
    poll_seconds: float = 1.0


class Deliverer:
    """Delivers what is due, within its limits."""

    def __init__(self, database: Database, vault: Vault, poster: Poster, *, limits: Limits, pace: Pace) -> None:
        self._database = database
        self._vault = vault
        self._poster = poster
        self._pace = pace
        self._room = Room(limits)
        self._half = limits.total // 2
        self._posts: dict[asyncio.Task[None], Lease] = {}
        self._records: Gathering[AttemptRecord, None] = Gathering("webhook-records", self._write)
        self._loop = Loop("webhook-retries", self._deliver_due, interval_seconds=pace.poll_seconds)
        self._behind = ""  # the lane after which the next pass begins
        self._more = False  # more was due than there was room for
        self._stopping = False
        self._passing = asyncio.Lock()

    def start(self) -> None:
        """Begin with what is due."""
        self._loop.start()

    async def stop(self, *, drain_seconds: float) -> None:
        """Begin nothing more, finish the posts under way for `drain_seconds` at most, give back the rest."""
        self._stopping = True
        async with self._passing:  # not between a lease and its delivery
            await self._loop.stop()
        unfinished: Mapping[asyncio.Task[None], Lease] = {}
        if self._posts:
            await asyncio.wait(self._posts, timeout=drain_seconds)
            unfinished = {task: lease for task, lease in self._posts.items() if not task.done()}
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._records.drained()
        await self.give_back(list(unfinished.values()))

    @property
    def lease_seconds(self) -> float | None:
        """The lease to store fresh deliveries with; None while there is no room for them."""
        return self._pace.lease_seconds if self._room.free > 0 and not self._stopping else None

    async def take(self, leases: Collection[Lease]) -> None:
        """Attempt these leased deliveries at once; those without room go back to be leased later."""
        if not leases:
            return
        async with self._database.read() as reader:
            sealed = await endpoints.secrets_of(reader, {(lease.tenant_id, lease.endpoint_id) for lease in leases})
        refused = [
            lease for lease in leases if not self._begin(lease, sealed.get((lease.tenant_id, lease.endpoint_id), []))
        ]
        if refused:
            self._more = True
            await self.give_back(refused)

    async def give_back(self, leases: Collection[Lease], *, delay_seconds: float = 0.0) -> None:
        """End leases without an attempt. Where that fails they end by themselves."""
        if not leases:
            return
        try:
            async with self._database.begin() as tx:
                await stored.give_back(tx, leases, delay_seconds=delay_seconds)
        except Unavailable:
            log.warning("leases of deliveries are left to run out", deliveries=len(leases))

    # --- what is due -------------------------------------------------------------------------------------

    async def _deliver_due(self) -> None:
        async with self._passing:
            await self._pass()

    async def _pass(self) -> None:
        self._more = False
        if self._room.free <= 0:
            self._more = True
            return
        async with self._database.read() as reader:
            lanes = await stored.due_lanes(reader, after=self._behind, limit=_LANES)
        self._behind = lanes[-1] if len(lanes) == _LANES else ""
        room = self._share_out(lanes)
        leases = await self._lease(room)
        await self.take(leases)
        if self._behind or (leases and self._more and self._room.free > 0):
            self._loop.wake()

    async def _lease(self, room: Mapping[str, int]) -> list[Lease]:
        if not room:
            return []
        async with self._database.begin() as tx:
            leases = await stored.lease_due(tx, room, lease_seconds=self._pace.lease_seconds)
        self._more = self._more or len(leases) == sum(room.values())
        return leases

    def _share_out(self, lanes: Sequence[str]) -> dict[str, int]:
        """How many to lease in each lane; in random order, so that none is always served last."""
        room: dict[str, int] = {}
        planned = self._room.copy()
        for lane in random.sample(lanes, len(lanes)):
            free = planned.free_in(lane)
            if free > 0:
                room[lane] = free
                planned.enter(lane, free)
            else:
                self._more = True
        return room

    # --- one delivery ------------------------------------------------------------------------------------

    def _begin(self, lease: Lease, sealed: Sequence[SealedSecret]) -> bool:
        if self._stopping or self._room.free_in(lease.lane) <= 0:
            return False
        self._room.enter(lease.lane)
        task = asyncio.create_task(self._deliver(lease, sealed), name=f"webhook-{lease.delivery_id}")
        self._posts[task] = lease
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        lease = self._posts.pop(task)
        self._room.leave(lease.lane)
        if not task.cancelled() and (fault := task.exception()) is not None:
            metrics.loop_failures.labels("webhook-delivery").inc()
            log.error("a delivery failed and comes back when its lease ends", exc_info=fault, **_about(lease))
        if self._more and not self._stopping and self._room.free >= self._half:
            self._loop.wake()

    async def _deliver(self, lease: Lease, sealed: Sequence[SealedSecret]) -> None:
        with structlog.contextvars.bound_contextvars(**_about(lease)):
            headers = self._signed(lease, sealed)
            if headers is None:
                await self.give_back([lease], delay_seconds=_UNSIGNABLE_PAUSE_SECONDS)
                return
            if lease.attempts == 0:
                metrics.webhook_lag_seconds.observe((lease.leased_at - lease.occurred_at).total_seconds())
            await self._record(await self._attempt(lease, headers))

    async def _attempt(self, lease: Lease, headers: Mapping[str, str]) -> AttemptRecord:
        """Post once. The receiver is told nothing of the trace: it is ours, and the standard has no place for it."""
        with tracing.continued("webhook", SpanContext.read(lease.traceparent), kind=Kind.CLIENT) as span:
            answer = await self._poster.post(lease.url, lease.body, headers)
            if span.recording:
                span.set(_traced(lease, answer))
            if answer.outcome is not Outcome.DELIVERED:
                span.fail(str(answer.status or answer.outcome))
            verdict = after_attempt(
                answer.status,
                attempts_before=lease.attempts,
                pauses_seconds=self._pace.pauses_seconds,
                retry_after_seconds=answer.retry_after_seconds,
                jitter=random.random(),  # noqa: S311  # spreads load, guards nothing
            )
            _tell(lease, answer, verdict)
        return _record_of(lease, answer, verdict)

    def _signed(self, lease: Lease, sealed: Sequence[SealedSecret]) -> dict[str, str] | None:
        """The headers, signed by every secret that can be opened; None when there is none."""
        secrets = [secret for item in sealed if (secret := self._opened(item)) is not None]
        if not secrets:
            metrics.webhooks_unsigned.inc()
            log.error("a delivery has no secret to be signed with")
            return None
        return signing.headers(
            secrets,
            message_id=str(lease.message_id),
            timestamp=int(lease.leased_at.timestamp()),
            body=lease.body,
        )

    def _opened(self, sealed: SealedSecret) -> str | None:
        try:
            secret = unseal(self._vault, sealed)
            key_of(secret)
        except (VaultError, MalformedSecret) as fault:
            log.error("a webhook secret cannot be opened", error=str(fault))  # noqa: TRY400
            return None
        return secret

    async def _record(self, record: AttemptRecord) -> None:
        """Until it is written or the lease is over: a post that went unrecorded is made again."""
        async with asyncio.timeout(self._pace.lease_seconds):
            while True:
                try:
                    return await asyncio.shield(self._records.put(record))  # the post was made, whoever stops
                except Unavailable:
                    await asyncio.sleep(_RECORD_AGAIN_SECONDS)

    async def _write(self, records: Sequence[AttemptRecord], lock_seconds: float | None) -> list[None]:
        async with self._database.begin(lock_seconds=lock_seconds) as tx:
            await stored.record_attempts(tx, records)
        return [None] * len(records)


def _record_of(lease: Lease, answer: Answer, verdict: Verdict) -> AttemptRecord:
    states = {
        Delivered: DeliveryState.DELIVERED,
        Again: DeliveryState.PENDING,
        Abandoned: DeliveryState.ABANDONED,
    }
    return AttemptRecord(
        lease=lease,
        status_code=answer.status,
        error=answer.error,
        duration_ms=round(answer.duration_seconds * 1000),
        state=states[type(verdict)],
        delay_seconds=verdict.delay_seconds if isinstance(verdict, Again) else 0.0,
    )


def _tell(lease: Lease, answer: Answer, verdict: Verdict) -> None:
    attempt = lease.attempts + 1
    if isinstance(verdict, Delivered):
        log.info("a webhook was delivered", attempt=attempt)
    elif isinstance(verdict, Again):
        again_in = round(verdict.delay_seconds, 1)
        log.warning("a webhook was not taken", error=answer.error, attempt=attempt, again_in_seconds=again_in)
    else:
        metrics.webhooks_abandoned.inc()
        log.error("a webhook was given up", error=answer.error, attempt=attempt)


def _about(lease: Lease) -> dict[str, str]:
    """What a log line says of a delivery; not its URL, which may hold a token."""
    _, host = stored.tenant_and_host(lease.lane)
    return {
        "job_id": str(lease.job_id),
        "tenant_id": str(lease.tenant_id),
        "webhook_id": str(lease.message_id),
        "endpoint_id": str(lease.endpoint_id or "callback"),
        "host": host,
    }


def _traced(lease: Lease, answer: Answer) -> dict[str, Attribute]:
    """What the span of a post says of it; of the address the host alone."""
    _, host = stored.tenant_and_host(lease.lane)
    status: dict[str, Attribute] = {} if answer.status is None else {"http.response.status_code": answer.status}
    return {
        "http.request.method": "POST",
        "server.address": urlsplit(f"//{host}").hostname or "",
        "imprimatur.job.id": str(lease.job_id),
        "imprimatur.tenant.id": str(lease.tenant_id),
        "imprimatur.webhook.id": str(lease.message_id),
        "imprimatur.attempt": lease.attempts + 1,
        "imprimatur.outcome": answer.outcome,
        **status,
    }
