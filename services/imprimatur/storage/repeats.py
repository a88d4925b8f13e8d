"""Work that is done again, many jobs at a time: retries as new jobs, and reviews again of the same jobs.

Jobs are taken oldest first and locked before they are looked at for good, so that of two callers at once the
second finds done what the first did.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    Uuid,
    and_,
    case,
    column,
    exists,
    func,
    insert,
    literal,
    not_,
    null,
    or_,
    select,
    values,
)

from imprimatur.identity import new_id
from imprimatur.job import MOST_LOSSES, RETRYABLE, SUBMITTED, Happening, State, losses_kept
from imprimatur.policy import Trigger
from imprimatur.storage import clock, keys, people
from imprimatur.storage.acceptance import FRESH
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.jobs import Filter, Owner, matching
from imprimatur.storage.review_queue import not_held
from imprimatur.storage.schema import job_assets, jobs
from imprimatur.storage.transitions import TOLD, UNHELD, move, record

#: Tasks copied in one transaction, together; a single one may be larger.
_MOST_BYTES_AT_ONCE = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which jobs, and whose.

    `as_of` leaves out what has changed since; `ids` (unless None) what is not among them.
    """

    owner: Owner
    wanted: Filter
    as_of: datetime
    ids: Collection[uuid.UUID] | None = None

    def condition(self, reader: Reader) -> ColumnElement[bool]:
        """As a condition on jobs."""
        found = and_(matching(reader, self.owner, self.wanted), jobs.c.updated_at <= self.as_of)
        return found if self.ids is None else and_(found, jobs.c.id.in_(sorted(self.ids)))


async def _count(reader: Reader, condition: ColumnElement[bool]) -> int:
    counted = select(func.count()).select_from(jobs).where(condition)
    return (await reader.connection.execute(counted)).scalar_one()


# --- retries ---------------------------------------------------------------------------------------------

#: As the index over them spells it.
_RETRYABLE = jobs.c.state.in_(RETRYABLE)
_again = jobs.alias("again")
_RETRIED = exists().where(_again.c.retry_of == jobs.c.id)
_newer = jobs.alias("newer")
#: Something newer has taken its place: with the same key what is under way, a newer revision, or the same subject once
#: more.
_REPLACED = or_(
    jobs.c.superseded_by.is_not(None),
    exists().where(
        _newer.c.tenant_id == jobs.c.tenant_id, _newer.c.concurrency_key == jobs.c.concurrency_key, keys.live(_newer)
    ),
    and_(jobs.c.revision.is_not(None), keys.overtaken(jobs.c)),
    exists().where(
        _newer.c.tenant_id == jobs.c.tenant_id,
        _newer.c.subject_id == jobs.c.subject_id,
        _newer.c.id > jobs.c.id,
        _newer.c.concurrency_key == jobs.c.concurrency_key,
    ),
)
#: What is retried.
_LEFT = and_(_RETRYABLE, not_(_RETRIED), not_(_REPLACED))


async def retry(
    tx: Transaction, scope: Scope, *, limit: int, traceparent: str | None = None, fresh: bool = False
) -> Sequence[Row[Any]]:
    """Accept failed and cancelled jobs anew that no job is a retry of yet, and whose place nothing newer has taken.
    Of one concurrency key one job at a time. They wait for the dispatcher.

    Args:
        traceparent: the span in which they are accepted.
        fresh: evidence that is there already will not do for them.

    Returns:
        Of each new job `id`, `retry_of`, `type`, `priority`; oldest first.

    Raises:
        Contended: somebody with a newer revision came meanwhile. Nothing of it may be committed.
    """
    locked = (
        select(jobs.c.id, func.length(jobs.c.input).label("size"))
        .where(_LEFT, scope.condition(tx))
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update(key_share=True)
    )
    old_ids = _fitting((await tx.connection.execute(locked)).all())
    if not old_ids:
        return []
    # A statement of its own: it sees what somebody else committed while this transaction waited for the locks.
    new_ids = {old_id: new_id() for old_id in old_ids}
    copied = _copy(tx, new_ids, await clock.present(tx), traceparent, fresh=fresh)
    made = sorted((await tx.connection.execute(copied)).all(), key=lambda row: row.id)
    if made:
        await keys.require_in_order(tx, made)
        await record(tx, made, kind=SUBMITTED, outcome=False, details={})
        await _name_the_same_images(tx, {row.retry_of: row.id for row in made})
    return made


async def _name_the_same_images(tx: Transaction, new_ids: Mapping[uuid.UUID, uuid.UUID]) -> None:
    named = select(job_assets).where(job_assets.c.job_id.in_(list(new_ids)))
    rows = [{**row._mapping, "job_id": new_ids[row.job_id]} for row in await tx.connection.execute(named)]
    if rows:
        await tx.connection.execute(insert(job_assets), rows)


async def count_retryable(reader: Reader, scope: Scope) -> int:
    """How many jobs `retry` would take, without a limit."""
    return await _count(reader, and_(_LEFT, scope.condition(reader)))


def _fitting(rows: Sequence[Any]) -> list[uuid.UUID]:
    """The first of them whose tasks are not too much together, and at least one."""
    fitting: list[uuid.UUID] = []
    size = 0
    for row in rows:
        size += row.size
        if fitting and size > _MOST_BYTES_AT_ONCE:
            break
        fitting.append(row.id)
    return fitting


_TOLD = (
    *("id", "tenant_id", "version", "state", "type", "priority", "retry_of"),
    *("concurrency_key", "revision", "content_hash"),
)
#: What a retry has from the job before it.
KEPT = (
    *("tenant_id", "type", "user_id", "priority", "content_hash", "subject_id", "labels", "parameters", "input"),
    *("callback_url", "max_attempts", "timeout_seconds", "deadline_seconds", "estimated_seconds"),
    *("concurrency_key", "revision", "appeal_of", "appeal"),
)


def _copy(
    tx: Transaction, new_ids: Mapping[uuid.UUID, uuid.UUID], now: datetime, traceparent: str | None, *, fresh: bool
) -> Executable:
    """New jobs by the ids of the old ones. The tasks never leave the database: together they may be large."""
    pair = values(column("old_id", Uuid()), column("new_id", Uuid()), name="pair").data(list(new_ids.items())).cte()
    present = literal(now, clock.Instant())
    content: dict[str, ColumnElement[Any]] = {
        **{name: jobs.c[name] for name in KEPT},
        **{name: literal(value, jobs.c[name].type) for name, value in FRESH.items()},
        "id": pair.c.new_id,
        "retry_of": jobs.c.id,
        "traceparent": literal(traceparent, jobs.c.traceparent.type),
        "run_at": present,
        "evidence_since": present if fresh else null(),
        "deadline_at": clock.after(jobs.c.deadline_seconds, present),
        "created_at": present,
        "updated_at": present,
    }
    chosen = select(*content.values()).join_from(pair, jobs, pair.c.old_id == jobs.c.id).where(_LEFT)
    # Keys are waited for in the same order as by those who submit: that of the code points.
    in_line = jobs.c.concurrency_key.collate("C" if tx.on_postgresql else "BINARY")
    chosen = chosen.order_by(in_line.nulls_first(), pair.c.new_id)
    inserting = insert_into(jobs, on_postgresql=tx.on_postgresql).from_select(list(content), chosen)
    statement: Executable = inserting.on_conflict_do_nothing().returning(*(jobs.c[name] for name in _TOLD))
    return statement


# --- reviews again ---------------------------------------------------------------------------------------

_FAILURES = frozenset({Trigger.ENGINE_ERROR, Trigger.BUDGET_EXHAUSTED})
#: The rows by which what the engine never looked at comes to people: only this can be sent back to it.
SENT_BACK = _FAILURES | {Trigger.HUMAN_REQUIRED}
_WAITS_FOR_THE_ENGINE = and_(
    jobs.c.state == State.AWAITING_REVIEW,
    or_(
        jobs.c.policy_triggered.in_(sorted(_FAILURES)),
        # The same row tells of what failed and of what was examined; only what failed ends with an error.
        and_(jobs.c.policy_triggered == Trigger.HUMAN_REQUIRED, jobs.c.error.is_not(None)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How many jobs wait for a person because the engine failed."""

    free: int
    held: int  #: by a person, now


async def review_again(
    tx: Transaction, scope: Scope, *, limit: int, asked_by: str, fresh: bool = False
) -> Sequence[Row[Any]]:
    """Queue again what waits because the engine failed and what nobody holds, as if it had just been accepted; when
    `fresh`, evidence that is there already will not do.

    Returns:
        Of each job `id` and `type`; oldest first.
    """
    chosen = (
        select(jobs.c.id)
        .where(_WAITS_FOR_THE_ENGINE, not_held(), scope.condition(tx))
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update(key_share=True)
    )
    ids = (await tx.connection.execute(chosen)).scalars().all()
    await people.leave_holders(tx, {job_id: {} for job_id in ids}, by=Actor(person=asked_by))
    rows = await move(
        tx,
        Happening.REVIEW_AGAIN,
        jobs.c.id.in_(ids),
        values={**_AS_NEW, "evidence_since": clock.now() if fresh else null()},
        details={"by": asked_by, **({"fresh": "true"} if fresh else {})},
        returning=TOLD,
    )
    return sorted(rows, key=lambda row: row.id)


#: The fence and the number of its release go on rising: an old worker or message must not fit the new round.
_AS_NEW: Mapping[str, Any] = {
    "run_at": clock.now(),
    "deadline_at": clock.after(jobs.c.deadline_seconds),
    "attempts": 0,
    "losses": case({losses: losses_kept(losses) for losses in range(MOST_LOSSES)}, value=jobs.c.losses),
    "decision": "",
    "policy_triggered": "",
    "result": null(),
    "result_count": 0,
    "error": null(),
    "categories": null(),
    **UNHELD,
}


async def count_waiting(reader: Reader, scope: Scope) -> Waiting:
    """How many jobs `review_again` would take without a limit, and how many it would leave to who holds them."""
    counted = select(func.count().filter(not_held()).label("free"), func.count().filter(not_(not_held())).label("held"))
    found = counted.where(_WAITS_FOR_THE_ENGINE, scope.condition(reader))
    return Waiting(**(await reader.connection.execute(found)).one()._mapping)
