"""Evidence for equal creatives to come, and single flight: of equal jobs at the same time one leads, the others wait.

A row is either evidence, or a flight: the claim (job and `claim_no`) that is about to make it. A flight needs no lease
of its own: it stands for as long as its claim does, and whoever asks looks that up. How it ends: `landings`.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
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
    Uuid,
    and_,
    case,
    false,
    literal,
    literal_column,
    null,
    select,
    true,
    update,
)

from imprimatur.evidence import EngineIdentity
from imprimatur.identity import new_id
from imprimatur.job import JobType
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.locks import among, for_both
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import evidence, jobs


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
    inserting = insert_into(evidence, on_postgresql=each.on_postgresql)
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
