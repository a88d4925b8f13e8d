"""Holds that people have on what waits for them, and their decisions. What waits, and in which order:
`review_queue`."""

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, insert, or_, select

from imprimatur.human import Agreement, AuditAction
from imprimatur.identity import new_id
from imprimatur.job import Happening, Job, State
from imprimatur.storage import audit, clock
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import UNFINISHED, VISIBLE, Owner, job_of
from imprimatur.storage.review_queue import IS_HELD, WAITS, Waiting, not_barred, not_held, waiting_of
from imprimatur.storage.schema import human_decisions, jobs
from imprimatur.storage.transitions import UNHELD, is_job, move


@dataclass(frozen=True, kw_only=True)
class HumanDecision:
    """One line of the record of decisions.

    `person_known`: the key or the request told who the reviewer is; else the name is the key's.
    """

    reviewer: str
    decision: str
    reason: str
    ai_recommendation: str
    overrides_ai: bool
    decided_at: datetime
    agreement: Agreement = Agreement.NO_ADVICE
    person_known: bool = True


@dataclass(frozen=True, kw_only=True)
class EndedHold:
    """A hold that ran out, or was given back."""

    job: Job
    held_by: str
    held_until: datetime


# --- holds -----------------------------------------------------------------------------------------------


async def hold(
    tx: Transaction,
    owner: Owner,
    job_id: uuid.UUID,
    *,
    by: Actor,
    seconds: float,
    token: uuid.UUID | None = None,
) -> Waiting | None:
    """Take a waiting job for a while, or take over one's own hold: with a new token, so that the one before is good
    for nothing. None: not waiting, another's or another key's, or an appeal against this person's decision.

    Args:
        token: to have; by default a fresh one. With one of the caller's choice, only what nobody holds is taken.
    """
    takeable = or_(_held_by(by), not_held()) if token is None else not_held()
    rows = await move(
        tx,
        Happening.HELD_BY_PERSON,
        is_job(job_id),
        owner.condition(),
        takeable,
        not_barred(tx, by.person),
        values={
            "held_by": by.person,
            "held_until": clock.after(seconds),
            "hold_token": token or uuid.uuid4(),
            "hold_key_id": by.key_id,
        },
        details={"reviewer": by.person},
    )
    return waiting_of(rows[0]) if rows else None


async def renew(
    tx: Transaction, owner: Owner, job_id: uuid.UUID, *, reviewer: str, seconds: float, token: uuid.UUID
) -> Waiting | None:
    """Prolong a hold. None: it is not this person's with this token, or it has ended."""
    rows = await move(
        tx,
        Happening.HELD_BY_PERSON,
        is_job(job_id),
        owner.condition(),
        _held_with(reviewer, token),
        values={"held_until": clock.after(seconds)},
        details={"reviewer": reviewer},
    )
    return waiting_of(rows[0]) if rows else None


async def release(
    tx: Transaction,
    owner: Owner,
    job_id: uuid.UUID,
    *,
    by: Actor,
    token: uuid.UUID | None = None,
    of_anybody: bool = False,
) -> EndedHold | None:
    """End a hold before its time. None: there is none, or not this person's with this token or (without one) key."""
    own = _held_by(by) if token is None else _held_with(by.person, token)
    whose = IS_HELD if of_anybody else own
    chosen = select(*_HOLD).where(is_job(job_id), WAITS, owner.condition(), whose).with_for_update()
    held = (await tx.connection.execute(chosen)).one_or_none()
    if held is None:
        return None
    told = {"reviewer": held.held_by}
    [row] = await move(tx, Happening.RELEASED_BY_PERSON, is_job(job_id), values=UNHELD, details=told, returning=VISIBLE)
    return EndedHold(job=job_of(row), held_by=held.held_by, held_until=held.held_until)


#: What a hold is, without the task, which may be megabytes.
_HOLD = (jobs.c.id, jobs.c.held_by, jobs.c.held_until)
_IS_OVER = and_(WAITS, jobs.c.held_until.is_not(None), jobs.c.held_until <= clock.now())


async def holds_are_over(reader: Reader) -> bool:
    """Whether there is anything to do for `end_holds`."""
    return (await reader.connection.execute(select(jobs.c.id).where(_IS_OVER).limit(1))).first() is not None


async def end_holds(
    tx: Transaction, *, job_ids: Collection[uuid.UUID] | None = None, limit: int = 100
) -> Sequence[EndedHold]:
    """End holds whose time is over: of these jobs, or of some that are first. What others work on is left to them."""
    over = select(*_HOLD).where(_IS_OVER)
    if job_ids is not None:
        chosen = over.where(jobs.c.id.in_(sorted(job_ids))).order_by(jobs.c.id).with_for_update()
    else:
        chosen = over.order_by(jobs.c.held_until).limit(limit).with_for_update(skip_locked=True)
    held = {row.id: row for row in await tx.connection.execute(chosen)}
    if not held:
        return []
    rows = await move(
        tx,
        Happening.HOLD_EXPIRED,
        jobs.c.id.in_(sorted(held)),
        values=UNHELD,
        details=lambda row: {"reviewer": held[row.id].held_by},
        returning=VISIBLE,
    )
    return [
        EndedHold(job=job_of(row), held_by=held[row.id].held_by, held_until=held[row.id].held_until) for row in rows
    ]


async def leave_holders(
    tx: Transaction,
    leaving: Mapping[uuid.UUID, Mapping[str, str]],
    *owned: ColumnElement[bool],
    by: Actor,
    reason: str = "",
) -> None:
    """Put on record whose holds end because their jobs leave the queue undecided, which the caller has them do next.
    Holds in time are ended by who has the jobs leave; the others had run out.

    Args:
        leaving: the jobs, each with what the record says of it.
        owned: further conditions on the jobs.
        by: who has them leave; without a name where that is not known.
    """
    if not leaving:
        return
    holds = select(*VISIBLE, jobs.c.held_by, jobs.c.held_until, IS_HELD.label("in_time"))
    held = and_(jobs.c.held_by != "", jobs.c.held_until.is_not(None))
    chosen = holds.where(jobs.c.id.in_(sorted(leaving)), held, *owned).order_by(jobs.c.id)
    for row in (await tx.connection.execute(chosen.with_for_update(key_share=True))).all():
        if row.in_time:
            details = {"claimed_by": row.held_by, **leaving[row.id]}
            await audit.record(tx, AuditAction.RELEASED, job_of(row), by, reason=reason, details=details)
        else:
            details = {"claimed_until": row.held_until.isoformat()}
            await audit.record(tx, AuditAction.EXPIRED, job_of(row), Actor(person=row.held_by), details=details)


def _held_with(reviewer: str, token: uuid.UUID) -> ColumnElement[bool]:
    return and_(jobs.c.held_by == reviewer, IS_HELD, jobs.c.hold_token == token)


def _held_by(who: Actor) -> ColumnElement[bool]:
    """Without the token. Anybody may name anybody, so what counts is the key: it made the hold, or is the holder's."""
    held = and_(jobs.c.held_by == who.person, IS_HELD)
    return held if who.bound else and_(held, jobs.c.hold_key_id.is_not_distinct_from(who.key_id))


async def holder(reader: Reader, job_id: uuid.UUID) -> str:
    """Who holds a waiting job now; empty when nobody."""
    found = await reader.connection.execute(
        select(jobs.c.held_by).where(
            is_job(job_id), jobs.c.held_until > clock.now(), jobs.c.state == State.AWAITING_REVIEW
        )
    )
    return found.scalar_one_or_none() or ""


async def holds(reader: Reader, job_id: uuid.UUID, who: Actor) -> bool:
    """Whether a waiting job is held in such a way that `who` may take the hold over without its token."""
    own = select(jobs.c.id).where(is_job(job_id), WAITS, _held_by(who))
    return (await reader.connection.execute(own)).first() is not None


# --- decisions -------------------------------------------------------------------------------------------


async def lock_waiting(
    tx: Transaction, owner: Owner, job_id: uuid.UUID, *, reviewer: str, token: uuid.UUID | None = None
) -> Waiting | None:
    """A waiting job that `reviewer` may decide, locked until the transaction ends: under the hold that the token stands
    for; without one, only what nobody holds, so that a name alone decides nothing that is held in that name."""
    mine = not_held() if token is None else _held_with(reviewer, token)
    found = await tx.connection.execute(
        select(*jobs.c)
        .where(and_(is_job(job_id), owner.condition(), mine, not_barred(tx, reviewer)), WAITS)
        .with_for_update()
    )
    row = found.one_or_none()
    return waiting_of(row) if row is not None else None


async def decide(tx: Transaction, waiting: Waiting, decision: HumanDecision, *, result: bytes) -> Job:
    """Record a person's decision on a job locked by `lock_waiting`, and finish the job with it."""
    job = waiting.job
    await tx.connection.execute(
        insert(human_decisions).values(
            id=new_id(),
            job_id=job.id,
            tenant_id=job.tenant_id,
            reviewer=decision.reviewer,
            decision=decision.decision,
            reason=decision.reason,
            ai_recommendation=decision.ai_recommendation,
            overrides_ai=decision.overrides_ai,
            decided_at=decision.decided_at,
            job_type=job.type,
            subject_id=job.subject_id,
            input_hash=hashlib.sha256(waiting.input).digest(),
            submitted_by=job.user_id,
            policy_triggered=job.policy_triggered,
            agreement=decision.agreement,
            categories=list(waiting.categories),
            awaiting_since=waiting.since,
            appeal_of=job.appeal_of,
            person_known=decision.person_known,
        )
    )
    rows = await move(
        tx,
        Happening.DECIDED,
        is_job(job.id),
        values={"decision": decision.decision, "result": result, "result_count": 1, "error": None},
        details={"reviewer": decision.reviewer, "decision": decision.decision, "reason": decision.reason},
    )
    return job_of(rows[0])


async def latest_decision(reader: Reader, job_id: uuid.UUID) -> HumanDecision | None:
    """The decision that stands, if a person made one."""
    row = (
        await reader.connection.execute(
            select(human_decisions)
            .where(human_decisions.c.job_id == job_id)
            .order_by(human_decisions.c.id.desc())
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        return None
    return HumanDecision(
        reviewer=row.reviewer,
        decision=row.decision,
        reason=row.reason,
        ai_recommendation=row.ai_recommendation,
        overrides_ai=row.overrides_ai,
        decided_at=row.decided_at,
        agreement=Agreement(row.agreement or Agreement.NO_ADVICE),
        person_known=bool(row.person_known),
    )


# --- appeals ---------------------------------------------------------------------------------------------


async def lock_decided(tx: Transaction, owner: Owner, job_id: uuid.UUID) -> Job | None:
    """A finished job, locked so that of two appeals against it one comes first."""
    found = await tx.connection.execute(
        select(*jobs.c).where(is_job(job_id), owner.condition()).with_for_update(key_share=True)
    )
    row = found.one_or_none()
    return job_of(row) if row is not None else None


async def open_appeal(reader: Reader, job_id: uuid.UUID) -> uuid.UUID | None:
    """The unfinished appeal against a job's decision."""
    found = await reader.connection.execute(
        select(jobs.c.id).where(jobs.c.appeal_of == job_id, jobs.c.appeal_of.is_not(None), UNFINISHED)
    )
    return found.scalar_one_or_none()
