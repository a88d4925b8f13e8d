"""The ends of flights, and who waits for them.

Who follows is queued, the key in `waits_for`, and says so at the flight's row, in one transaction; who ends the flight
makes those due, in its own. Both lock the row: so either the end comes first, and who follows finds that it need not
wait, or the end sees who waits.

Rows are locked in the order of their keys, jobs before them; who waits is never waited for (SKIP LOCKED), and finds
out by itself a little later.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Executable,
    Float,
    Integer,
    LargeBinary,
    Row,
    Update,
    Uuid,
    and_,
    case,
    null,
    select,
    true,
    update,
)

from imprimatur.job import State
from imprimatur.storage import clock
from imprimatur.storage.database import Transaction
from imprimatur.storage.locks import among, by_no_index, for_both, in_locked
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import evidence, jobs

#: After evidence that could not be kept, equal jobs are examined side by side for so long.
_ALONE_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a leading attempt brought: None when it cannot be kept."""

    content: bytes | None
    keep_seconds: float
    input_tokens: int
    output_tokens: int
    cost_micros: int


@dataclass(frozen=True, kw_only=True)
class Landing:
    """The end of a flight. Without `made` it was in vain; who `comes_back` leads again then, if nobody does sooner."""

    key: bytes
    job_id: uuid.UUID
    claim_no: int
    made: Made | None
    comes_back: bool


# --- waiting ---------------------------------------------------------------------------------------------


async def wait(tx: Transaction, jobs_by_key: Mapping[bytes, Collection[uuid.UUID]]) -> None:
    """Have the ends of flights wake these jobs, which this transaction has just queued to wait. Those whose flight has
    ended by now are due at once."""
    keys = sorted(jobs_by_key)
    flying = set((await tx.connection.execute(_AWAIT[tx.on_postgresql], {"ids": keys})).scalars())
    if landed := sorted(job_id for key in keys if key not in flying for job_id in jobs_by_key[key]):
        await tx.connection.execute(_NEED_NOT_WAIT[tx.on_postgresql], {"ids": landed})


def _awaiting(on_postgresql: bool) -> Executable:
    wanted = select(evidence.c.key).where(among(evidence.c.key, on_postgresql=on_postgresql)).order_by(evidence.c.key)
    return (
        update(evidence)
        .where(
            in_locked(evidence.c.key, wanted.with_for_update()),
            evidence.c.content.is_(None),
            evidence.c.job_id.is_not(None),
        )
        .values(awaited=true())
        .returning(evidence.c.key)
    )


_AWAIT = for_both(_awaiting)
_NEED_NOT_WAIT = for_both(
    lambda on_postgresql: (
        update(jobs)
        .where(
            among(jobs.c.id, on_postgresql=on_postgresql),
            by_no_index(jobs.c.state) == State.QUEUED,
            jobs.c.waits_for.is_not(None),
        )
        .values(run_at=clock.now(), waits_for=null())
    )
)


# --- ending ----------------------------------------------------------------------------------------------


async def land(tx: Transaction, landings: Sequence[Landing]) -> None:
    """End flights: keep what they brought, and let those go on who wait for it. A flight that is not its claim's any
    more brings nothing."""
    if not landings:
        return
    brought = [one for one in landings if one.made is not None]
    in_vain = [one for one in landings if one.made is None]
    if brought and in_vain and tx.on_postgresql:
        await tx.connection.execute(_LOCK, {"ids": sorted(one.key for one in landings)})
    kept = await _KEEP.execute(tx, [_kept(one) for one in sorted(brought, key=lambda one: one.key)])
    left = await _LEAVE.execute(
        tx,
        [
            {"key": one.key, "job_id": one.job_id, "claim_no": one.claim_no}
            for one in sorted(in_vain, key=lambda one: one.key)
        ],
    )
    returning = {one.key for one in in_vain if one.comes_back}
    await wake_all(tx, [row.key for row in kept if row.awaited])
    await _wake_one_each(tx, [row.key for row in left if row.awaited and row.key not in returning])


_LOCK = select(evidence.c.key).where(among(evidence.c.key, on_postgresql=True)).order_by(evidence.c.key)
_LOCK = _LOCK.with_for_update()


def _kept(one: Landing) -> dict[str, Any]:
    made = one.made
    assert made is not None
    return {
        "key": one.key,
        "job_id": one.job_id,
        "claim_no": one.claim_no,
        "content": made.content,
        "alone": made.content is None,
        "keep_seconds": min(made.keep_seconds, _ALONE_SECONDS) if made.content is None else made.keep_seconds,
        "input_tokens": made.input_tokens,
        "output_tokens": made.output_tokens,
        "cost_micros": made.cost_micros,
    }


_FLIGHT: Types = {"key": LargeBinary(), "job_id": Uuid(), "claim_no": Integer()}
_COST: Types = {name: BigInteger() for name in ("input_tokens", "output_tokens", "cost_micros")}


def _own(each: Each) -> tuple[ColumnElement[bool], ...]:
    """The fence."""
    return (
        each.locked(evidence.c.key, "key"),
        evidence.c.key == each["key"],
        evidence.c.job_id == each["job_id"],
        evidence.c.claim_no == each["claim_no"],
        evidence.c.content.is_(None),
    )


def _keeping(each: Each) -> Update:
    values: dict[str, ColumnElement[Any]] = {name: each[name] for name in ("content", "alone", *_COST)}
    values["job_id"] = case((each["content"].is_not(None), evidence.c.job_id), else_=null())
    instants = {"made_at": clock.now(), "expires_at": clock.after(each["keep_seconds"])}
    return (
        update(evidence)
        .where(*_own(each))
        .values({**values, **instants, "hits": 0})
        .returning(evidence.c.key, evidence.c.awaited)
    )


_KEEP = Many({**_FLIGHT, "content": LargeBinary(), "alone": Boolean(), "keep_seconds": Float(), **_COST}, _keeping)
_LEAVE = Many(
    _FLIGHT,
    lambda each: (
        update(evidence).where(*_own(each)).values(job_id=null()).returning(evidence.c.key, evidence.c.awaited)
    ),
)


async def let_go(tx: Transaction, ended: Collection[Row[Any]], *, waits: bool = True) -> None:
    """End the flights of these job rows, whose attempts somebody else ended. Of those who wait one goes on. Who `waits`
    for no lock may leave some flights: each ended with its claim, and who waits for it looks again by himself."""
    ids = sorted(row.id for row in ended if row.claim_no)
    if not ids:
        return
    theirs = and_(among(evidence.c.job_id, on_postgresql=tx.on_postgresql), evidence.c.content.is_(None))
    chosen = select(evidence.c.key).where(theirs).order_by(evidence.c.key)
    chosen = chosen.with_for_update(skip_locked=not waits)
    left = update(evidence).where(in_locked(evidence.c.key, chosen)).values(job_id=null())
    rows = await tx.connection.execute(left.returning(evidence.c.key, evidence.c.awaited), {"ids": ids})
    await _wake_one_each(tx, [row.key for row in rows.all() if row.awaited])


# --- waking ----------------------------------------------------------------------------------------------


async def wake_all(tx: Transaction, keys: Sequence[bytes]) -> None:
    """Make all due who wait for these keys."""
    if keys:
        await tx.connection.execute(_WAKE_ALL[tx.on_postgresql], {"ids": sorted(keys)})


async def _wake_one_each(tx: Transaction, keys: Sequence[bytes]) -> None:
    """For each key who waits longest: that job leads, the others go on waiting for it."""
    for key in sorted(keys):
        await tx.connection.execute(_WAKE_ONE[tx.on_postgresql], {"ids": [key]})


def _waking(on_postgresql: bool, limit: int | None) -> Update:
    waiting = (
        select(jobs.c.id)
        .where(
            among(jobs.c.waits_for, on_postgresql=on_postgresql),
            jobs.c.waits_for.is_not(None),
            jobs.c.state == State.QUEUED,
        )
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return update(jobs).where(in_locked(jobs.c.id, waiting)).values(run_at=clock.now(), waits_for=null())


_WAKE_ALL = for_both(lambda on_postgresql: _waking(on_postgresql, None))
_WAKE_ONE = for_both(lambda on_postgresql: _waking(on_postgresql, 1))
