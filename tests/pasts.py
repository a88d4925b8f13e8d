"""Jobs that ended days ago, one way or another, and what is left of them. No test waits: stored instants are moved."""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select, update

from imprimatur.identity import first_id_at, new_id
from imprimatur.job import TERMINAL, AttemptOutcome, Claim, Happening, State
from imprimatur.retention import Retention
from imprimatur.storage import (
    acceptance,
    announcements,
    claims,
    clock,
    conclusions,
    deliveries,
    jobs,
    people,
    retention,
    schema,
)
from imprimatur.storage.announcements import NewMessage
from imprimatur.storage.attempts import Spent
from imprimatur.storage.claims import Wanted
from imprimatur.storage.conclusions import Conclusion, Ending
from imprimatur.storage.database import Database, Reader, Transaction
from imprimatur.storage.deliveries import AttemptRecord, DeliveryState
from imprimatur.storage.jobs import Owner
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.retention import Place
from tests import makers


class Told(StrEnum):
    """What became of a job's last outcome."""

    NOT_YET = "its message is not stored"
    TO_NOBODY = "nobody hears of it"
    PENDING = "a delivery is open"
    DELIVERED = "delivered"
    ABANDONED = "given up"


@dataclass(frozen=True, kw_only=True)
class Past:
    """One job. `days` since its end, or its beginning if it has not ended; `retries`: the job before it in the list."""

    state: State = State.SUCCEEDED
    days: float = 30.0
    told: Told = Told.DELIVERED
    request_id: bool = True
    decided: bool = False
    retries: bool = False

    @property
    def settled(self) -> bool:
        return self.state in TERMINAL and self.told not in (Told.NOT_YET, Told.PENDING)


_ENDS = {
    State.SUCCEEDED: (Happening.COMPLETED, AttemptOutcome.SUCCEEDED),
    State.FAILED: (Happening.GAVE_UP, AttemptOutcome.FAILED),
    State.AWAITING_REVIEW: (Happening.REFERRED, AttemptOutcome.SUCCEEDED),
}


async def made(database: Database, tenant_id: uuid.UUID, *pasts: Past) -> list[uuid.UUID]:
    """Jobs with these pasts, in one transaction; their ids in the same order."""
    ids: list[uuid.UUID] = []
    async with database.begin() as tx:
        now = await clock.present(tx)
        for past in pasts:
            ids.append(await _make(tx, tenant_id, past, now, ids[-1] if past.retries else None))
    return ids


async def _make(tx: Transaction, tenant_id: uuid.UUID, past: Past, now: datetime, retry_of: uuid.UUID | None) -> Any:
    ended_at = now - timedelta(days=past.days)
    job_id = uuid.UUID(int=first_id_at(ended_at - timedelta(hours=1)).int + new_id().int % (1 << 74))
    if retry_of is not None:
        job_id = max(job_id, uuid.UUID(int=retry_of.int + 1))
    new = makers.new_job(
        tenant_id,
        job_id=job_id,
        request_id=f"request {job_id}" if past.request_id else None,
        callback_url="https://example.org/hook",
        retry_of=retry_of,
    )
    await acceptance.submit(tx, [new], release_at_once=1)
    if past.state is State.CANCELLED:
        await jobs.cancel(tx, Owner(tenant_id=tenant_id), job_id, reason="")
    elif past.state is not State.QUEUED:
        wanted = Wanted(job_id=job_id, release_no=1, claim_id=new_id())
        [claim] = await claims.claim(tx, makers.worker(), [wanted], lease_seconds=1e6)
        assert isinstance(claim, Claim)
        await _go_on(tx, claim, past)
    if past.state in TERMINAL:
        await tx.connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(finished_at=ended_at))
    await _tell(tx, tenant_id, job_id, past.told)
    return job_id


async def _go_on(tx: Transaction, claim: Claim, past: Past) -> None:
    state = State.AWAITING_REVIEW if past.decided else past.state
    if state is State.RUNNING:
        return
    happening, outcome = _ENDS[state]
    shown = makers.shown("pending", "low_confidence") if happening is Happening.REFERRED else None
    conclusion = Conclusion(happening=happening, outcome=outcome, shown=shown)
    await conclusions.conclude(tx, [Ending(claim=claim, conclusion=conclusion, spent=Spent(engine="test"))])
    if past.decided:
        owner = Owner(tenant_id=claim.tenant_id)
        waiting = await people.lock_waiting(tx, owner, claim.job_id, reviewer="ada")
        assert waiting is not None
        decision = HumanDecision(
            reviewer="ada", decision="approved", reason="It is fine.", ai_recommendation="reject", overrides_ai=True,
            decided_at=await clock.present(tx) - timedelta(days=past.days),
        )  # fmt: skip
        await people.decide(tx, waiting, decision, result=b"decided")


async def _tell(tx: Transaction, tenant_id: uuid.UUID, job_id: uuid.UUID, told: Told) -> None:
    """Tell the last outcome so, and of those before that nobody hears of them."""
    events = schema.job_events
    outcomes = select(func.max(events.c.version)).where(events.c.job_id == job_id, events.c.webhook_pending)
    last = (await tx.connection.execute(outcomes)).scalar_one()
    if last is None:
        return
    unheard = events.c.version < last if told is not Told.TO_NOBODY else events.c.version <= last
    await tx.connection.execute(update(events).where(events.c.job_id == job_id, unheard).values(webhook_pending=False))
    if told in (Told.NOT_YET, Told.TO_NOBODY):
        return
    message = NewMessage(
        job_id=job_id, version=last, tenant_id=tenant_id, type="job", body=b"{}", callback_url="https://example.org/"
    )
    [lease] = await announcements.store_messages(tx, [message], lease_seconds=30.0)
    state = {Told.DELIVERED: DeliveryState.DELIVERED, Told.ABANDONED: DeliveryState.ABANDONED}.get(told)
    attempt = AttemptRecord(lease=lease, status_code=200, error="", duration_ms=1, state=state or DeliveryState.PENDING)
    await deliveries.record_attempts(tx, [attempt])


# --- cleaning, and what is left ----------------------------------------------------------------------------


async def clean(
    database: Database,
    wanted: Retention,
    *,
    tenant_id: uuid.UUID | None = None,
    dry_run: bool = False,
    limit: int | None = None,
) -> Counter[str]:
    """A whole pass; how many rows went."""
    removed: Counter[str] = Counter()
    place: Place | None = Place()
    async with database.read() as reader:
        now = await clock.present(reader)
    while place is not None:
        async with database.begin() as tx:
            step = await retention.clean_some(
                tx, wanted, place, now=now, tenant_id=tenant_id, dry_run=dry_run, limit=limit
            )
        removed.update(step.rows)
        place = step.following
    return +removed


@dataclass(frozen=True)
class Left:
    """What there is of each job: how many rows of each table, and whether it has its request id."""

    rows: dict[str, Counter[uuid.UUID]]
    request_ids: set[uuid.UUID]

    def jobs(self) -> set[uuid.UUID]:
        return set(self.rows["jobs"])

    def totals(self) -> Counter[str]:
        return Counter({name: found.total() for name, found in self.rows.items()}) + Counter(
            request_ids=len(self.request_ids)
        )


_DELIVERED = select(schema.webhook_messages.c.job_id).join_from(schema.webhook_messages, schema.webhook_deliveries)
_BY_JOB = {
    "jobs": select(schema.jobs.c.id),
    "job_events": select(schema.job_events.c.job_id),
    "attempts": select(schema.attempts.c.job_id),
    "webhook_messages": select(schema.webhook_messages.c.job_id),
    "webhook_deliveries": _DELIVERED,
    "webhook_attempts": _DELIVERED.join(schema.webhook_attempts),
    "human_decisions": select(schema.human_decisions.c.job_id),
}


async def left(database: Database) -> Left:
    """What there is."""
    async with database.read() as reader:
        rows = {name: Counter(await _ids(reader, query)) for name, query in _BY_JOB.items()}
        named = select(schema.jobs.c.id).where(schema.jobs.c.request_id.is_not(None))
        return Left(rows, set(await _ids(reader, named)))


async def _ids(reader: Reader, query: Any) -> Sequence[uuid.UUID]:
    return (await reader.connection.execute(query)).scalars().all()
