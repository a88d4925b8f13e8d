"""The record of the human queue: who did what, when, with which key, and why. Rows are added, and never changed nor
removed: triggers of the database refuse it, whoever asks. They refer to no job, and so outlive it."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Row, insert, select

from imprimatur.human import AuditAction
from imprimatur.identity import new_id
from imprimatur.job import Job
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.jobs import Owner
from imprimatur.storage.many import Each, Many, Types
from imprimatur.storage.schema import audit_entries


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who did it, and with which key; `known` unless that is no more than the key's name, `bound` where the key is that
    person's own."""

    person: str
    key_id: uuid.UUID | None = None
    key_name: str = ""
    known: bool = True
    bound: bool = False


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One line of the record."""

    id: uuid.UUID
    at: datetime
    action: AuditAction
    job_id: uuid.UUID
    subject_id: str
    person: str
    key_id: uuid.UUID | None
    key_name: str
    reason: str
    details: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which entries; an empty field does not filter."""

    job_id: uuid.UUID | None = None
    person: str = ""
    actions: frozenset[AuditAction] = frozenset()
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """What an entry says of its job, which may be a row with `id`, `tenant_id`, `subject_id` and `user_id`."""

    job: Job | Row[Any]
    reason: str
    details: Mapping[str, str]


async def record(
    tx: Transaction,
    action: AuditAction,
    job: Job,
    by: Actor,
    *,
    reason: str = "",
    details: Mapping[str, str] | None = None,
) -> None:
    """Add an entry, in the transaction that does what it tells of."""
    await record_each(tx, action, [Told(job=job, reason=reason, details=details or {})], by)


async def record_each(tx: Transaction, action: AuditAction, told: Sequence[Told], by: Actor) -> None:
    """Add an entry about each job to which the same was done, in the order given."""
    rows = [
        {
            "id": new_id(),
            "tenant_id": one.job.tenant_id,
            "action": str(action),
            "job_id": one.job.id,
            "subject_id": one.job.subject_id,
            "submitted_by": one.job.user_id,
            "person": by.person,
            "key_id": by.key_id,
            "key_name": by.key_name,
            "reason": one.reason,
            "details": dict(one.details),
        }
        for one in told
    ]
    await _INSERT.execute(tx, rows)


def _insert(each: Each) -> Executable:
    columns = {name: each[name] for name in _ENTRY} | {"at": clock.now()}
    return insert(audit_entries).from_select(list(columns), select(*columns.values()))


_ENTRY: Types = {column.name: column.type for column in audit_entries.c if column is not audit_entries.c.at}
_INSERT = Many(_ENTRY, _insert)


async def page(
    reader: Reader, owner: Owner, wanted: Wanted, *, before: uuid.UUID | None, limit: int
) -> Sequence[AuditEntry]:
    """Entries about the owner's jobs, newest first, from just behind `before` on."""
    found = select(audit_entries).where(audit_entries.c.tenant_id == owner.tenant_id)
    if owner.user_id:
        found = found.where(audit_entries.c.submitted_by == owner.user_id)
    if wanted.job_id is not None:
        found = found.where(audit_entries.c.job_id == wanted.job_id)
    if wanted.person:
        found = found.where(audit_entries.c.person == wanted.person)
    if wanted.actions:
        found = found.where(audit_entries.c.action.in_(sorted(wanted.actions)))
    if wanted.since is not None:
        found = found.where(audit_entries.c.at >= wanted.since)
    if wanted.until is not None:
        found = found.where(audit_entries.c.at < wanted.until)
    if before is not None:
        found = found.where(audit_entries.c.id < before)
    rows = await reader.connection.execute(found.order_by(audit_entries.c.id.desc()).limit(limit))
    return [_entry_of(row) for row in rows]


def _entry_of(row: Any) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=row.at,
        action=AuditAction(row.action),
        job_id=row.job_id,
        subject_id=row.subject_id,
        person=row.person,
        key_id=row.key_id,
        key_name=row.key_name,
        reason=row.reason,
        details=row.details,
    )
