"""Clean-up: what finished longer ago than it is kept goes, one bounded step after the other.

A step looks at so many jobs in the order of their ids, which is the order in which they were made, and removes what
may go of them. So no step takes longer the more there is, and none needs an index of its own. A job is left alone, with
all that belongs to it, while it is unfinished, one of its outcomes is untold, or a delivery is open.

Images are nobody's own. One goes when it was last uploaded and named long enough ago, and no job names it that is
unfinished, or ended since. Evidence for equal creatives goes by the days since it was begun, whether it would still
be reused or not.

A new kind is a member of `retention.Kind` and an entry in `_WALKS`; what goes with its job is in `_PARTS`, too. What
people decided is in neither.
"""

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Row,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    tuple_,
    update,
)

from imprimatur.identity import first_id_at
from imprimatur.job import TERMINAL
from imprimatur.retention import Kind, Retention
from imprimatur.storage import passes
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.deliveries import is_pending
from imprimatur.storage.schema import (
    assets,
    attempts,
    evidence,
    job_assets,
    job_events,
    jobs,
    request_aliases,
    tenants,
    webhook_attempts,
    webhook_deliveries,
    webhook_messages,
)

#: Jobs looked at in one step.
STEP = 500
#: Ids are made by the gateways' clocks, ends are the database's: one may be so far from the other.
_MOST_SKEW = timedelta(days=1)
_NO_ID = uuid.UUID(int=0)

#: Rows by the name of their table; request ids under their kind's.
Rows = Mapping[str, int]
_Ids = Collection[uuid.UUID]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a pass has come to: behind the job `after`; among request ids behind its end, in one tenant."""

    kind: Kind = Kind.JOBS
    after: uuid.UUID = _NO_ID
    tenant_id: uuid.UUID | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step removed, or with `dry_run` would have; and where the next one begins, if there is one.

    Attributes:
        passed_over: among request ids, when the first job ended whose own could not be forgotten yet.
    """

    rows: Rows
    following: Place | None
    passed_over: datetime | None = None


# --- what belongs to a job -------------------------------------------------------------------------------


def _messages_of(ids: _Ids) -> ColumnElement[bool]:
    return webhook_messages.c.job_id.in_(ids)


def _deliveries_of(ids: _Ids) -> ColumnElement[bool]:
    return webhook_deliveries.c.message_id.in_(select(webhook_messages.c.id).where(_messages_of(ids)))


def _webhook_attempts_of(ids: _Ids) -> ColumnElement[bool]:
    return webhook_attempts.c.delivery_id.in_(select(webhook_deliveries.c.id).where(_deliveries_of(ids)))


_Part = tuple[Table, Any]  # a table, and the condition for its rows by the ids of their jobs

#: What goes when a kind goes, in an order in which nothing refers to what is gone.
_PARTS: dict[Kind, tuple[_Part, ...]] = {
    Kind.WEBHOOKS: (
        (webhook_attempts, _webhook_attempts_of),
        (webhook_deliveries, _deliveries_of),
        (webhook_messages, _messages_of),
    ),
    Kind.ATTEMPTS: ((attempts, attempts.c.job_id.in_),),
    Kind.EVENTS: ((job_events, job_events.c.job_id.in_),),
}
#: What belongs to a job alone, and is nobody's to keep for other days.
_LINKS: tuple[_Part, ...] = ((job_assets, job_assets.c.job_id.in_), (request_aliases, request_aliases.c.job_id.in_))
_PARTS[Kind.JOBS] = (*chain.from_iterable(_PARTS.values()), *_LINKS, (jobs, jobs.c.id.in_))
#: The column, first of a unique index, that names the jobs of which there is something left.
_NAMED_IN = {
    Kind.JOBS: jobs.c.id,
    Kind.EVENTS: job_events.c.job_id,
    Kind.ATTEMPTS: attempts.c.job_id,
    Kind.WEBHOOKS: webhook_messages.c.job_id,
}


# --- steps -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one step is to look at.

    Attributes:
        before: what ended before goes.
        only: this tenant's, if it is given.
        most: things looked at.
    """

    retention: Retention
    place: Place
    now: datetime
    before: datetime
    only: uuid.UUID | None
    dry_run: bool
    most: int

    def behind(self, ids: Sequence[uuid.UUID]) -> Place | None:
        """Where the next step begins when this one has looked at these."""
        whole = len(ids) == self.most
        return Place(kind=self.place.kind, after=ids[-1]) if whole else _next_kind(self.place.kind)


async def clean_some(
    tx: Transaction,
    retention: Retention,
    place: Place,
    *,
    now: datetime,
    tenant_id: uuid.UUID | None = None,
    dry_run: bool = False,
    limit: int | None = None,
) -> Step:
    """One step of a pass. Steps at the same time take different jobs, and may be repeated.

    Args:
        now: the pass's own, the same in all its steps.
        tenant_id: only this tenant's.
        dry_run: count instead.
        limit: jobs looked at; by default STEP.
    """
    before = retention.ended_before(place.kind, now)
    if before is None:
        return Step(rows={}, following=_next_kind(place.kind))
    look = _Look(
        retention=retention,
        place=place,
        now=now,
        before=before,
        only=tenant_id,
        dry_run=dry_run,
        most=limit or STEP,
    )
    return await _WALKS[place.kind](tx, look)


def _next_kind(kind: Kind) -> Place | None:
    later = list(Kind)[list(Kind).index(kind) + 1 :]
    return Place(kind=later[0]) if later else None


# --- jobs, and what belongs to them ------------------------------------------------------------------------


async def _remove_jobs(tx: Transaction, look: _Look) -> Step:
    ids = await _next_jobs(tx, look)
    return await _remove_of(tx, look, ids, _without_retries_of_the_kept(await _over(tx, look, ids)))


async def _remove_parts(tx: Transaction, look: _Look) -> Step:
    ids = await _next_jobs(tx, look)
    gone_before = look.retention.ended_before(Kind.JOBS, look.now)
    # The others go, and were counted, with their jobs.
    kept = [] if gone_before is None else [jobs.c.finished_at >= gone_before]
    return await _remove_of(tx, look, ids, [row.id for row in await _over(tx, look, ids, *kept)])


async def _next_jobs(reader: Reader, look: _Look) -> list[uuid.UUID]:
    """The next jobs, by id, that may have ended before. What was made later has not."""
    column = _NAMED_IN[look.place.kind] if look.only is None else jobs.c.id
    found = select(column).where(column > look.place.after, column < first_id_at(look.before + _MOST_SKEW))
    if look.only is not None:
        found = found.where(jobs.c.tenant_id == look.only)
    return list((await reader.connection.execute(found.distinct().order_by(column).limit(look.most))).scalars())


async def _over(tx: Transaction, look: _Look, ids: _Ids, *conditions: ColumnElement[bool]) -> list[Row[Any]]:
    """Those of the jobs of which something may go now."""
    whose = () if look.only is None else (jobs.c.tenant_id == look.only,)
    return await _settled(tx, ids, jobs.c.finished_at < look.before, *whose, *conditions, dry_run=look.dry_run)


async def _remove_of(tx: Transaction, look: _Look, ids: Sequence[uuid.UUID], due: _Ids) -> Step:
    parts = _PARTS[look.place.kind] if due else ()
    rows = {table.name: await _remove(tx, table, of(due), dry_run=look.dry_run) for table, of in parts}
    return Step(rows=rows, following=look.behind(ids))


async def _settled(reader: Reader, ids: _Ids, *conditions: ColumnElement[bool], dry_run: bool) -> list[Row[Any]]:
    """Those of the jobs that have ended, and of which everything has been told to whom it is to be told."""
    if not ids:
        return []
    older = jobs.alias("older")
    kept = exists().where(older.c.id == jobs.c.retry_of)
    if dry_run:  # nothing is gone yet of what a pass would have taken before
        kept = kept.where(_untold(older))
    statement = (
        select(jobs.c.id, jobs.c.retry_of, kept.label("is_kept"))
        .where(jobs.c.id.in_(ids), jobs.c.state.in_(sorted(TERMINAL)), *conditions, not_(_untold(jobs)))
        .order_by(jobs.c.id)
    )
    if not dry_run:
        statement = statement.with_for_update(of=jobs, skip_locked=True)
    return list(await reader.connection.execute(statement))


def _untold(table: FromClause) -> ColumnElement[bool]:
    """Whether an outcome of such a job has no message yet, or a message of it is still to be delivered."""
    without_message = exists().where(job_events.c.job_id == table.c.id, job_events.c.webhook_pending)
    undelivered = exists().where(
        webhook_messages.c.job_id == table.c.id,
        webhook_deliveries.c.message_id == webhook_messages.c.id,
        is_pending(webhook_deliveries),
    )
    return or_(without_message, undelivered)


def _without_retries_of_the_kept(rows: Collection[Row[Any]]) -> list[uuid.UUID]:
    """A job that is still there, and whose retry is not, could be retried a second time."""
    going: dict[uuid.UUID, None] = {}
    for row in rows:
        if not row.is_kept or row.retry_of in going:
            going[row.id] = None
    return list(going)


async def _remove(tx: Transaction, table: Table, which: ColumnElement[bool], *, dry_run: bool) -> int:
    if dry_run:
        counted = select(func.count()).select_from(table).where(which)
        return (await tx.connection.execute(counted)).scalar_one()
    return (await tx.connection.execute(delete(table).where(which))).rowcount


# --- what is no job's own --------------------------------------------------------------------------------


async def _remove_images(tx: Transaction, look: _Look) -> Step:
    needed = exists().where(
        job_assets.c.tenant_id == assets.c.tenant_id,
        job_assets.c.digest == assets.c.digest,
        jobs.c.id == job_assets.c.job_id,
        or_(jobs.c.finished_at.is_(None), jobs.c.finished_at >= look.before),
    )
    over = and_(assets.c.used_at < look.before, not_(needed))
    return await _remove_over(tx, look, assets, over, in_order_of=assets.c.id)


async def _remove_evidence(tx: Transaction, look: _Look) -> Step:
    # Locked in the order of the keys, as everybody does who locks several.
    over = evidence.c.begun_at < look.before
    return await _remove_over(tx, look, evidence, over, in_order_of=evidence.c.key)


async def _remove_over(
    tx: Transaction, look: _Look, table: Table, over: ColumnElement[bool], *, in_order_of: ColumnElement[Any]
) -> Step:
    looked = select(table.c.id).where(table.c.id > look.place.after, table.c.id < first_id_at(look.before + _MOST_SKEW))
    if look.only is not None:
        looked = looked.where(table.c.tenant_id == look.only)
    ids = list((await tx.connection.execute(looked.order_by(table.c.id).limit(look.most))).scalars())
    due = select(table.c.id).where(table.c.id.in_(ids), over).order_by(in_order_of)
    if not look.dry_run:
        due = due.with_for_update(of=table, skip_locked=True)
    going = list((await tx.connection.execute(due)).scalars()) if ids else []
    gone = await _remove(tx, table, table.c.id.in_(going), dry_run=look.dry_run) if going else 0
    return Step(rows={table.name: gone} if gone else {}, following=look.behind(ids))


# --- request ids -----------------------------------------------------------------------------------------


async def _forget_some(tx: Transaction, look: _Look) -> Step:
    """Forget the request ids of some jobs of one tenant, by the time of their end."""
    tenant_id = look.place.tenant_id or look.only or await _tenant_behind(tx, _NO_ID)
    if tenant_id is None:
        return Step(rows={}, following=None)
    ended = await _ended(tx, tenant_id, look)
    going = {row.id for row in await _settled(tx, [row.id for row in ended], dry_run=look.dry_run)}
    forgotten = await _forget(tx, going, dry_run=look.dry_run) if going else 0
    following: Place | None = None
    if len(ended) == look.most:
        last = ended[-1]
        following = Place(kind=look.place.kind, after=last.id, tenant_id=tenant_id, ended_at=last.finished_at)
    elif look.only is None and (another := await _tenant_behind(tx, tenant_id)):
        following = Place(kind=look.place.kind, tenant_id=another)
    return Step(
        rows={str(Kind.REQUEST_IDS): forgotten} if forgotten else {},
        following=following,
        passed_over=min((row.finished_at for row in ended if row.id not in going), default=None),
    )


async def _ended(reader: Reader, tenant_id: uuid.UUID, look: _Look) -> Sequence[Any]:
    """The next jobs that have ended, with a request id or without: so that one look has an end."""
    order = (jobs.c.finished_at, jobs.c.id)
    found = select(jobs.c.id, jobs.c.finished_at).where(jobs.c.tenant_id == tenant_id, jobs.c.finished_at < look.before)
    ended_at, after = look.place.ended_at, look.place.after
    if ended_at is not None:
        behind = (literal(ended_at, jobs.c.finished_at.type), literal(after, jobs.c.id.type))
        found = found.where(jobs.c.finished_at >= ended_at, tuple_(*order) > tuple_(*behind))
    elif (since := await _since(reader, look)) is not None:
        found = found.where(jobs.c.finished_at >= since)
    return (await reader.connection.execute(found.order_by(*order).limit(look.most))).all()


async def _since(reader: Reader, look: _Look) -> datetime | None:
    """No job that ended before has a request id, or none will be left."""
    bounds = (await passes.forgotten_until(reader), look.retention.ended_before(Kind.JOBS, look.now))
    return max((bound for bound in bounds if bound is not None), default=None)


async def _forget(tx: Transaction, ids: _Ids, *, dry_run: bool) -> int:
    """Those of jobs that are locked; one may have been asked for by several."""
    aliases = await _remove(tx, request_aliases, request_aliases.c.job_id.in_(ids), dry_run=dry_run)
    which = (jobs.c.id.in_(ids), jobs.c.request_id.is_not(None))
    if dry_run:
        counted = select(func.count()).select_from(jobs).where(*which)
        return aliases + (await tx.connection.execute(counted)).scalar_one()
    return aliases + (await tx.connection.execute(update(jobs).where(*which).values(request_id=null()))).rowcount


async def _tenant_behind(reader: Reader, tenant_id: uuid.UUID) -> uuid.UUID | None:
    found = select(tenants.c.id).where(tenants.c.id > tenant_id).order_by(tenants.c.id).limit(1)
    return (await reader.connection.execute(found)).scalar_one_or_none()


_WALKS: Mapping[Kind, Callable[[Transaction, _Look], Awaitable[Step]]] = {
    Kind.JOBS: _remove_jobs,
    Kind.EVENTS: _remove_parts,
    Kind.ATTEMPTS: _remove_parts,
    Kind.WEBHOOKS: _remove_parts,
    Kind.ASSETS: _remove_images,
    Kind.EVIDENCE: _remove_evidence,
    Kind.REQUEST_IDS: _forget_some,
}
