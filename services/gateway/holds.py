"""Claims of people that end without them: that ran out, or whose job is cancelled, put on record, so that nobody has to
find them; and the queue's gauges."""

import uuid
from collections.abc import Sequence

from gateway.access import Caller
from imprimatur import metrics
from imprimatur.human import AuditAction, DueHours
from imprimatur.job import Job, Priority
from imprimatur.runtime import Loop
from imprimatur.storage import audit, jobs, people, review_statistics
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database, Reader, Transaction
from imprimatur.storage.people import EndedHold

_LOOK_SECONDS = 5.0
#: Ended in one transaction.
_AT_ONCE = 100


class Holds(Loop):
    """Ends claims that ran out, again and again; gateways do it beside each other and take different ones."""

    def __init__(self, database: Database, *, every_seconds: float = _LOOK_SECONDS) -> None:
        async def end_some() -> float | None:
            async with database.read() as reader:
                if not await people.holds_are_over(reader):
                    return None
            async with database.begin() as tx:
                ended = await people.end_holds(tx, limit=_AT_ONCE)
                await tell_ended(tx, ended)
            return 0.0 if len(ended) == _AT_ONCE else None

        super().__init__("review-claims", end_some, interval_seconds=every_seconds)


async def tell_ended(tx: Transaction, ended: Sequence[EndedHold]) -> None:
    """Put on record, and count, whose claims ran out."""
    for hold in ended:
        details = {"claimed_until": hold.held_until.isoformat()}
        await audit.record(tx, AuditAction.EXPIRED, hold.job, Actor(person=hold.held_by), details=details)
        metrics.review_claims.labels("expired").inc()


async def cancel(tx: Transaction, who: Caller, job_id: uuid.UUID, reason: str) -> Job | None:
    """Cancel a job, with whoever holds it on record; None when there is none to cancel."""
    by = Actor(person=who.user_id or who.key_name, key_id=who.key_id, key_name=who.key_name)
    await people.leave_holders(tx, {job_id: {"because": "cancelled"}}, who.owner.condition(), by=by, reason=reason)
    return await jobs.cancel(tx, who.owner, job_id, reason=reason)


async def show_queue(reader: Reader, due: DueHours) -> None:
    """Set the gauges of what waits for people."""
    found = await review_statistics.waiting_everywhere(reader, due)
    lines = {(priority.name.lower(),): found.get(priority) for priority in Priority}
    # Nothing there is zero, not a series that goes away.
    metrics.reviews_overdue.show({labels: line.overdue if line else 0 for labels, line in lines.items()})
    metrics.reviews_claimed.show({labels: line.claimed if line else 0 for labels, line in lines.items()})
