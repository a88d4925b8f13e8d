"""Evidence for equal creatives to come, and single flight: of equal jobs at the same time one leads, the others wait.

A row is either evidence, or a flight: the claim (job and `claim_no`) that is about to make it. A flight needs no lease
of its own: it stands for as long as its claim does, and whoever asks looks that up. Who follows is queued, the key in
`waits_for`, and says so at the row, in one transaction; who ends a flight makes those due, in its own. Both lock the
row: so either the end comes first, and who follows finds that it need not wait, or the end sees who waits.

Rows are locked in the order of their keys, jobs before them; who waits is never waited for (SKIP LOCKED), and finds
out by itself a little later.
"""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Executable,
    Float,
    Integer,
    LargeBinary,
    Row,
    Text,
    Update,
    Uuid,
    and_,
    case,
    delete,
    false,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from imprimatur.evidence import EngineIdentity
from imprimatur.identity import new_id
from imprimatur.job import JobType, State
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.locks import among, by_no_index, for_both, in_locked
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import evidence, jobs

#: After evidence that could not be kept, equal jobs are examined side by side for so long.
_ALONE_SECONDS = 600.0


class Standing(StrEnum):
    """What an attempt is to do for which there is no evidence yet."""

    LEADS = "leads"  #: look; others may wait for what it finds
    FOLLOWS = "follows"  #: wait for who looks already
    ALONE = "alone"  #: look, for itself: what others found of the same could not be kept


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An attempt that asks for evidence.

    `keep_seconds`: for how long it is to be reused, should the attempt be the one that makes it.
    `since`: older evidence will not do.
    """

    key: bytes
    tenant_id: uuid.UUID
    job_type: JobType
    engine: EngineIdentity
    policy_version: int
    job_id: uuid.UUID
    claim_no: int
    keep_seconds: float
    since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """Evidence that another job brought; `shown`: whether the user of the one that asks may know which."""

    content: bytes
    job_id: uuid.UUID
    made_at: datetime
    shown: bool = False


Answer: TypeAlias = Found | Standing


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


# --- asking ----------------------------------------------------------------------------------------------


async def ask(tx: Transaction, asked: Sequence[Asked]) -> list[Answer]:
    """Find evidence, or who is to make it. Who follows is then to `wait`.

    Returns:
        For each of `asked`, in order.
    """
    await _outdate(tx, asked)
    first: dict[bytes, Asked] = {}
    for one in asked:
        first.setdefault(one.key, one)
    given = {one.key: _row_of(one) for one in sorted(first.values(), key=lambda one: one.key)}
    rows = {row.key: row for row in await _ASK.execute(tx, list(given.values()))}
    free = [given[key] for key, row in rows.items() if _is_free(first[key], row)]
    rows |= {row.key: row for row in await _TAKE.execute(tx, free)}
    answers = [_answer(one, rows[one.key]) for one in asked]
    both = list(zip(asked, answers, strict=True))
    hits = Counter(one.key for one, answer in both if isinstance(answer, Found) and one is not first[one.key])
    await _COUNT.execute(tx, [{"key": key, "hits": number} for key, number in sorted(hits.items())])
    users = await _users(tx, both)
    return [
        replace(answer, shown=_may_know(one, answer, users)) if isinstance(answer, Found) else answer
        for one, answer in both
    ]


async def _users(reader: Reader, answered: Sequence[tuple[Asked, Answer]]) -> Mapping[uuid.UUID, str]:
    """Whose the jobs are that take evidence, and those that brought it; without those that are gone."""
    pairs = [(one.job_id, answer.job_id) for one, answer in answered if isinstance(answer, Found)]
    if not pairs:
        return {}
    rows = await reader.connection.execute(_USERS[reader.on_postgresql], {"ids": sorted({*chain(*pairs)})})
    return {row.id: row.user_id for row in rows}


def _may_know(one: Asked, found: Found, users: Mapping[uuid.UUID, str]) -> bool:
    """What no user submitted, those see who see the whole tenant."""
    user = users.get(one.job_id)
    return user is not None and user in ("", users.get(found.job_id))


_USERS = for_both(
    lambda on_postgresql: select(jobs.c.id, jobs.c.user_id).where(among(jobs.c.id, on_postgresql=on_postgresql))
)


def _is_free(one: Asked, row: Row[Any]) -> bool:
    """Whether the row is nobody's: its evidence is too old, or the claim of its flight does not stand."""
    if row.content is not None or row.alone:
        return not row.lasts
    if row.job_id == one.job_id:
        return bool(row.claim_no != one.claim_no)
    return row.job_id is None or not row.stands


def _answer(one: Asked, row: Row[Any]) -> Answer:
    if row.content is not None:
        return Found(content=row.content, job_id=row.job_id, made_at=row.made_at)
    if row.alone:
        return Standing.ALONE
    leads = (row.job_id, row.claim_no) == (one.job_id, one.claim_no)
    return Standing.LEADS if leads else Standing.FOLLOWS


def _row_of(one: Asked) -> dict[str, Any]:
    return {
        "id": new_id(),
        "key": one.key,
        "tenant_id": one.tenant_id,
        "job_type": str(one.job_type),
        "engine": one.engine.name,
        "engine_version": one.engine.version,
        "model": one.engine.model,
        "policy_version": one.policy_version,
        "job_id": one.job_id,
        "claim_no": one.claim_no,
        "keep_seconds": one.keep_seconds,
    }


_ASKED: Types = {
    "id": Uuid(),
    "key": LargeBinary(),
    "tenant_id": Uuid(),
    "job_type": Text(),
    "engine": Text(),
    "engine_version": Text(),
    "model": Text(),
    "policy_version": Integer(),
    "job_id": Uuid(),
    "claim_no": Integer(),
}

_CLAIM_STANDS = (
    "EXISTS (SELECT 1 FROM jobs WHERE jobs.id = evidence.job_id AND coalesce(jobs.state, '') = 'running'"
    " AND jobs.claim_no = evidence.claim_no)"
)
#: A statement sees the jobs as they were when it began. The claim of a flight that began later, while the statement
#: waited for the row, it may not see, and takes for standing; as it does, to be sure, that of a moment before.
_JUST_BEGUN = "evidence.begun_at > statement_timestamp() - interval '1 second'"


def _told(each: Each) -> tuple[ColumnElement[Any], ...]:
    """What is told of a row: besides what it says, whether it `lasts`, and whether the claim of its flight `stands`.
    What is NULL is looked at by who reads it: SQLite 3.40 cannot tell in RETURNING."""
    stands = f"({_JUST_BEGUN} OR {_CLAIM_STANDS})" if each.on_postgresql else _CLAIM_STANDS
    return (
        *(evidence.c[name] for name in ("key", "content", "job_id", "claim_no", "made_at", "alone")),
        (evidence.c.expires_at > clock.now()).label("lasts"),
        literal_column(stands, Boolean()).label("stands"),
    )


def _asking(each: Each) -> Executable:
    inserting: Any = (postgresql if each.on_postgresql else sqlite).insert(evidence)
    columns: dict[str, ColumnElement[Any]] = {
        **{name: each[name] for name in _ASKED},
        "awaited": false(),
        "alone": false(),
        "begun_at": clock.now(),
        "expires_at": clock.after(each["keep_seconds"]),
        **{name: literal(0, BigInteger()) for name in ("input_tokens", "output_tokens", "cost_micros", "hits")},
    }
    fits = and_(evidence.c.content.is_not(None), evidence.c.expires_at > clock.now())
    hits = {"hits": case((fits, evidence.c.hits + 1), else_=evidence.c.hits)}
    statement: Executable = (
        inserting.from_select(list(columns), select(*columns.values()).where(true()))
        .on_conflict_do_update(index_elements=[evidence.c.key], set_=hits)
        .returning(*_told(each))
    )
    return statement


def _taking(each: Each) -> Executable:
    """The row, locked, for a new flight. Who waits for an old one waits for it."""
    values = {name: each[name] for name in ("policy_version", "job_id", "claim_no")}
    instants = {"begun_at": clock.now(), "expires_at": clock.after(each["keep_seconds"])}
    nothing_yet = {"content": null(), "made_at": null(), "alone": false(), "hits": 0}
    taken = update(evidence).where(evidence.c.key == each["key"]).values({**values, **instants, **nothing_yet})
    return taken.returning(*_told(each))


_ASK = Many({**_ASKED, "keep_seconds": Float()}, _asking)
_TAKE = Many({**_ASKED, "keep_seconds": Float()}, _taking)

_COUNT = Many(
    {"key": LargeBinary(), "hits": BigInteger()},
    lambda each: (
        update(evidence).where(evidence.c.key == each["key"]).values(hits=evidence.c.hits + each["hits"])  # locked
    ),
)


async def _outdate(tx: Transaction, asked: Sequence[Asked]) -> None:
    """Give up evidence that was begun before somebody wants it to have been."""
    wanted: dict[bytes, datetime] = {}
    for one in asked:
        if one.since is not None:
            wanted[one.key] = max(one.since, wanted.get(one.key, one.since))
    await _OUTDATE.execute(tx, [{"key": key, "since": since} for key, since in sorted(wanted.items())])


_OUTDATE = Many(
    {"key": LargeBinary(), "since": clock.Instant()},
    lambda each: (
        update(evidence)
        .where(
            each.locked(evidence.c.key, "key"),
            evidence.c.key == each["key"],
            evidence.c.content.is_not(None),
            evidence.c.begun_at < each["since"],
        )
        .values(content=null(), job_id=null())
    ),
)


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
    await _wake_all(tx, [row.key for row in kept if row.awaited])
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


async def _wake_all(tx: Transaction, keys: Sequence[bytes]) -> None:
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


# --- forgetting, and what it was good for ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which evidence of a tenant; an empty field means all."""

    policy_version: int | None = None
    engine: str = ""
    engine_version: str = ""
    model: str = ""
    job_id: uuid.UUID | None = None

    def condition(self, tenant_id: uuid.UUID) -> ColumnElement[bool]:
        """As a condition on evidence."""
        wanted = [evidence.c.tenant_id == tenant_id]
        if self.policy_version is not None:
            wanted.append(evidence.c.policy_version == self.policy_version)
        for name in ("engine", "engine_version", "model"):
            if value := getattr(self, name):
                wanted.append(evidence.c[name] == value)
        if self.job_id is not None:
            wanted.append(evidence.c.job_id == self.job_id)
        return and_(*wanted)


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """How many pieces of evidence went, and whether more may be left."""

    number: int
    more: bool


async def forget(tx: Transaction, tenant_id: uuid.UUID, scope: Scope, *, limit: int) -> Forgotten:
    """Remove evidence, so that it is made anew: what is being made just now is not kept, and who waits for it looks
    again."""
    chosen = select(evidence.c.key).where(scope.condition(tenant_id)).order_by(evidence.c.key).limit(limit)
    removed = delete(evidence).where(in_locked(evidence.c.key, chosen.with_for_update()))
    told = (evidence.c.key, func.length(evidence.c.content).label("size"), evidence.c.awaited)
    rows = (await tx.connection.execute(removed.returning(*told))).all()
    await _wake_all(tx, [row.key for row in rows if row.awaited and row.size is None])
    return Forgotten(number=sum(row.size is not None for row in rows), more=len(rows) == limit)


@dataclass(frozen=True, kw_only=True)
class Use:
    """What the evidence of one engine, as far as it is kept, was good for. `looks`: what it took to make it;
    tokens in and out together, cost in millionths of a US dollar, as what was saved."""

    engine: EngineIdentity
    looks: int
    hits: int
    tokens: int
    cost_micros: int


async def use_of(reader: Reader, tenant_id: uuid.UUID) -> list[Use]:
    """What a tenant's evidence was good for, by engine."""
    named = (evidence.c.engine, evidence.c.engine_version, evidence.c.model)
    tokens = evidence.c.hits * (evidence.c.input_tokens + evidence.c.output_tokens)
    rows = await reader.connection.execute(
        select(
            *named,
            func.count().label("looks"),
            func.sum(evidence.c.hits).label("hits"),
            func.sum(tokens).label("tokens"),
            func.sum(evidence.c.hits * evidence.c.cost_micros).label("cost"),
        )
        .where(evidence.c.tenant_id == tenant_id, evidence.c.content.is_not(None))
        .group_by(*named)
        .order_by(*named)
    )
    return [
        Use(
            engine=EngineIdentity(name=row.engine, version=row.engine_version, model=row.model),
            looks=row.looks,
            hits=int(row.hits),
            tokens=int(row.tokens),
            cost_micros=int(row.cost),
        )
        for row in rows
    ]
