"""The end of an attempt: what it makes of its job, and what it cost.

Fenced as every write of a worker: it needs state RUNNING and the claim's own `claim_no`. No row changed means that the
job was cancelled or taken over meanwhile; the result is discarded, but what it cost is booked on the attempt.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    LargeBinary,
    Row,
    Text,
    Uuid,
    select,
    update,
)

from imprimatur.job import (
    AttemptOutcome,
    Claim,
    Happening,
    JobError,
    JobType,
    Priority,
    State,
)
from imprimatur.storage import attempts, clock, landings, spending
from imprimatur.storage.attempts import Spent
from imprimatur.storage.database import Transaction
from imprimatur.storage.landings import Landing, Made
from imprimatur.storage.locks import among, by_no_index
from imprimatur.storage.many import Each, Types
from imprimatur.storage.schema import Document, jobs
from imprimatur.storage.spending import Bill
from imprimatur.storage.transitions import TOLD, Moves, is_job


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What callers and people see of an attempt's product."""

    decision: str
    policy_triggered: str
    result: bytes
    result_count: int
    categories: Sequence[str] = ()  #: declared or found, by which people look for what they are good at


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What one attempt makes of its job, as `review` and `retry` decided it.

    `delay_seconds` is when it may run again, for happenings that queue it. Without `shown`, what is shown stays.
    """

    happening: Happening
    outcome: AttemptOutcome
    spends_attempt: bool = True
    delay_seconds: float = 0.0
    error: JobError | None = None
    shown: Shown | None = None
    details: Mapping[str, str] | None = None
    made: Made | None = None  #: evidence for the jobs that are equal to this one
    reused_from: uuid.UUID | None = None  #: the job whose evidence it rests on
    waits_for: bytes | None = None  #: the key of evidence, for the happening that waits for it


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of one attempt; `leads_to` is the key of the evidence that was this attempt's to make."""

    claim: Claim
    conclusion: Conclusion
    spent: Spent
    leads_to: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a job whose attempt ended."""

    type: JobType
    state: State
    priority: Priority
    decision: str
    policy_triggered: str
    created_at: datetime
    at: datetime


async def conclude(tx: Transaction, endings: Sequence[Ending]) -> list[Ended | None]:
    """End attempts and move their jobs.

    Returns:
        For each ending, in order; None for one that was fenced off: nothing changed but the attempt's bookkeeping.
    """
    await _lock(tx, endings)
    ended: dict[tuple[uuid.UUID, int], Ended] = {}
    kinds: dict[tuple[Happening, bool], list[Ending]] = {}
    for ending in sorted(endings, key=lambda ending: ending.claim.job_id):
        kinds.setdefault((ending.conclusion.happening, ending.conclusion.shown is not None), []).append(ending)
    for (happening, shows), alike in kinds.items():
        rows = await _CONCLUDE[happening, shows].execute(tx, [_row_of(ending) for ending in alike])
        ended |= {(row.id, row.claim_no): _ended_of(row) for row in rows}
    await book(tx, endings)
    await landings.land(
        tx,
        [
            Landing(
                key=one.leads_to,
                job_id=one.claim.job_id,
                claim_no=one.claim.claim_no,
                made=one.conclusion.made,
                comes_back=one.conclusion.happening is Happening.HANDED_BACK,
            )
            for one in endings
            if one.leads_to is not None
        ],
    )
    return [ended.get((ending.claim.job_id, ending.claim.claim_no)) for ending in endings]


_TOLD_OF_END = (
    *TOLD,
    *(jobs.c.claim_no, jobs.c.priority, jobs.c.decision, jobs.c.policy_triggered, jobs.c.created_at),
    jobs.c.updated_at,
)


def _ended_of(row: Row[Any]) -> Ended:
    return Ended(
        type=JobType(row.type),
        state=State(row.state),
        priority=Priority(row.priority),
        decision=row.decision,
        policy_triggered=row.policy_triggered,
        created_at=row.created_at,
        at=row.updated_at,
    )


async def _lock(tx: Transaction, endings: Sequence[Ending]) -> None:
    """Lock the jobs in one order, where more than one statement changes them."""
    if tx.on_postgresql and len({ending.conclusion.happening for ending in endings}) > 1:
        await tx.connection.execute(_LOCK, {"ids": sorted({ending.claim.job_id for ending in endings})})


_LOCK = select(jobs.c.id).where(among(jobs.c.id, on_postgresql=True)).order_by(jobs.c.id).with_for_update()


#: The happenings that end an attempt, and those of them that queue the job again.
_ENDS = (
    *(Happening.COMPLETED, Happening.REFERRED, Happening.GAVE_UP),
    *(Happening.RETRY_SCHEDULED, Happening.HANDED_BACK, Happening.WAITING_FOR_TWIN),
)
_QUEUES = frozenset({Happening.RETRY_SCHEDULED, Happening.HANDED_BACK, Happening.WAITING_FOR_TWIN})

_ENDED: Types = {"job_id": Uuid(), "claim_no": Integer(), "spent_attempts": Integer(), "error": Document}
_DELAYED: Types = {"delay_seconds": Float()}
_WAITING: Types = {"waits_for": LargeBinary()}
_SHOWN: Types = {
    **{"decision": Text(), "policy_triggered": Text(), "result": LargeBinary(), "result_count": Integer()},
    "categories": Document,
}


def _concluding(happening: Happening, *, shows: bool) -> Moves:
    shown = _SHOWN if shows else {}
    delayed = _DELAYED if happening in _QUEUES else {}
    waiting = _WAITING if happening is Happening.WAITING_FOR_TWIN else {}

    def build(each: Each) -> tuple[Sequence[ColumnElement[bool]], Mapping[str, Any]]:
        values = {"attempts": jobs.c.attempts + each["spent_attempts"], "error": each["error"]}
        values |= {name: each[name] for name in (*shown, *waiting)}
        if delayed:
            values["run_at"] = clock.after(each["delay_seconds"])
        is_held = by_no_index(jobs.c.state) == State.RUNNING
        return (is_held, jobs.c.claim_no == each["claim_no"]), values

    return Moves(happening, {**_ENDED, **delayed, **waiting, **shown}, build, returning=_TOLD_OF_END)


_CONCLUDE = {(happening, shows): _concluding(happening, shows=shows) for happening in _ENDS for shows in (False, True)}


def _row_of(ending: Ending) -> dict[str, Any]:
    conclusion = ending.conclusion
    return {
        "job_id": ending.claim.job_id,
        "claim_no": ending.claim.claim_no,
        "spent_attempts": int(conclusion.spends_attempt),
        "error": asdict(conclusion.error) if conclusion.error else None,
        "delay_seconds": conclusion.delay_seconds,
        "waits_for": conclusion.waits_for,
        "details": dict(conclusion.details or {}),
        **({**vars(conclusion.shown), "categories": list(conclusion.shown.categories)} if conclusion.shown else {}),
    }


async def book(tx: Transaction, endings: Sequence[Ending]) -> None:
    """Write how attempts ended and what they used, whatever became of their jobs.

    An attempt that was ended as lost had a worker that lives: it only was slow, or cut off. Its loss is no sign
    that the job kills workers, and is taken back; once for each job, which may be what stalls them.
    """
    await spending.count(
        tx,
        [
            Bill(tenant_id=one.claim.tenant_id, job_id=one.claim.job_id, claim_no=one.claim.claim_no, spent=one.spent)
            for one in endings
        ],
    )
    for job_id, claim_no in await attempts.end(
        tx,
        [
            attempts.End(
                job_id=ending.claim.job_id,
                claim_no=ending.claim.claim_no,
                outcome=ending.conclusion.outcome,
                error=ending.conclusion.error,
                spent=ending.spent,
                reused_from=ending.conclusion.reused_from,
            )
            for ending in endings
        ],
    ):
        if await attempts.has_returned(tx, job_id, claim_no):
            unfinished = jobs.c.state.in_((State.QUEUED, State.RUNNING))
            await tx.connection.execute(
                update(jobs).where(is_job(job_id), unfinished, jobs.c.losses > 0).values(losses=jobs.c.losses - 1)
            )
