"""Versions of a tenant's policy, which never change, and the record of which was live when, which only grows: triggers
of the database refuse all else. Both say who did it, and with which key.

How work is decided by the live one is `tenants.keep_policies`: an activation waits for the results that are being
written, and holds for all later ones.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, and_, func, insert, select, update

from imprimatur.errors import FailedPrecondition, NotFound, ResourceExhausted
from imprimatur.policy import Policy
from imprimatur.storage import clock
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.schema import policies, policy_activations, tenants

#: Of one tenant. They are kept for ever.
MOST_VERSIONS = 10_000
#: Who changes a policy at the database, with no key at all.
OPERATOR = Actor(person="operator")
_NOBODY = Actor(person="")


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One line of the record. `from_version` is None for a tenant's first."""

    number: int
    from_version: int | None
    to_version: int
    at: datetime
    by: Actor
    note: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a policy. `activated` is the last time that it was; None: never."""

    number: int
    policy: Policy
    created_at: datetime
    created_by: Actor
    note: str
    live: bool
    activated: Activation | None


# --- writing ---------------------------------------------------------------------------------------------


async def create(
    tx: Transaction,
    tenant_id: uuid.UUID,
    policy: Policy,
    *,
    by: Actor,
    note: str = "",
    based_on: int | None = None,
    live_at_once: bool = False,
) -> int:
    """Add a version.

    Raises:
        FailedPrecondition: `based_on` is not the live version any more.
        ResourceExhausted: there are as many as there may be.
    """
    live = await lock(tx, tenant_id, expected=based_on)
    newest = select(func.max(policies.c.version)).where(policies.c.tenant_id == tenant_id)
    number: int = ((await tx.connection.execute(newest)).scalar_one() or 0) + 1
    if number > MOST_VERSIONS:
        raise ResourceExhausted(
            f"there are {MOST_VERSIONS:,} versions of the policy, and no more are kept",
            reason="TOO_MANY_POLICY_VERSIONS",
        )
    await tx.connection.execute(
        insert(policies).values(
            tenant_id=tenant_id,
            version=number,
            document=policy.document(),
            created_at=clock.now(),
            created_by=by.person,
            note=note,
            key_id=by.key_id,
            key_name=by.key_name,
        )
    )
    if live_at_once:
        await _make_live(tx, tenant_id, number, before=live, by=by, note=note)
    return number


async def activate(
    tx: Transaction, tenant_id: uuid.UUID, number: int, *, by: Actor, note: str = "", expected: int | None = None
) -> bool:
    """Make a version the live one, at once for queued and running jobs too. False: it was already.

    Raises:
        NotFound: there is no such version.
        FailedPrecondition: `expected` is not the live version any more.
    """
    live = await lock(tx, tenant_id, expected=expected)
    there = select(policies.c.version).where(policies.c.tenant_id == tenant_id, policies.c.version == number)
    if (await tx.connection.execute(there)).one_or_none() is None:
        raise no_version(number)
    if number != live:
        await _make_live(tx, tenant_id, number, before=live, by=by, note=note)
    return number != live


async def begin(tx: Transaction, tenant_id: uuid.UUID, policy: Policy) -> None:
    """The first version of a tenant that is being made, with that as its live one."""
    await tx.connection.execute(
        insert(policies).values(
            tenant_id=tenant_id, version=1, document=policy.document(), created_at=clock.now(), created_by="", note=""
        )
    )
    await _note(tx, tenant_id, 1, before=None, by=_NOBODY, note="")


async def lock(tx: Transaction, tenant_id: uuid.UUID, *, expected: int | None = None) -> int:
    """The live version, which nobody else changes until the transaction ends.

    Raises:
        FailedPrecondition: it is not the expected one.
    """
    # NO KEY UPDATE: submissions refer to the tenant meanwhile.
    locked = select(tenants.c.policy_version).where(tenants.c.id == tenant_id).with_for_update(key_share=True)
    live: int = (await tx.connection.execute(locked)).scalar_one()
    require_live(live, expected)
    return live


def require_live(live: int, expected: int | None) -> None:
    """Refuse what was meant for another version; None expects none."""
    if expected is not None and expected != live:
        raise FailedPrecondition(
            f"version {live} of the policy is live, and not {expected}: look at it, and try again",
            reason="POLICY_CHANGED",
            live_version=str(live),
        )


async def _make_live(tx: Transaction, tenant_id: uuid.UUID, number: int, *, before: int, by: Actor, note: str) -> None:
    await tx.connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(policy_version=number))
    await _note(tx, tenant_id, number, before=before, by=by, note=note)


async def _note(
    tx: Transaction, tenant_id: uuid.UUID, number: int, *, before: int | None, by: Actor, note: str
) -> None:
    last = select(func.max(policy_activations.c.number)).where(policy_activations.c.tenant_id == tenant_id)
    await tx.connection.execute(
        insert(policy_activations).values(
            tenant_id=tenant_id,
            number=((await tx.connection.execute(last)).scalar_one() or 0) + 1,
            from_version=before,
            to_version=number,
            at=clock.now(),
            activated_by=by.person,
            note=note,
            key_id=by.key_id,
            key_name=by.key_name,
        )
    )


# --- reading ---------------------------------------------------------------------------------------------


async def find(reader: Reader, tenant_id: uuid.UUID, number: int | None) -> Version:
    """One version; None: the live one.

    Raises:
        NotFound: there is no such version.
    """
    wanted = tenants.c.policy_version if number is None else number
    found = await reader.connection.execute(_versions(tenant_id).where(policies.c.version == wanted))
    row = found.one_or_none()
    if row is None:
        raise no_version(number or 0)
    return _version_of(row)


async def newest(reader: Reader, tenant_id: uuid.UUID, *, before: int | None, limit: int) -> Sequence[Version]:
    """Versions, newest first, from just behind `before` in that order."""
    statement = _versions(tenant_id).order_by(policies.c.version.desc()).limit(limit)
    if before is not None:
        statement = statement.where(policies.c.version < before)
    return [_version_of(row) for row in await reader.connection.execute(statement)]


async def activations(reader: Reader, tenant_id: uuid.UUID, *, before: int | None, limit: int) -> Sequence[Activation]:
    """The record, newest first, from just behind the line `before` in that order."""
    statement = (
        select(policy_activations)
        .where(policy_activations.c.tenant_id == tenant_id)
        .order_by(policy_activations.c.number.desc())
        .limit(limit)
    )
    if before is not None:
        statement = statement.where(policy_activations.c.number < before)
    return [_activation_of(row) for row in await reader.connection.execute(statement)]


def no_version(number: int) -> NotFound:
    """The answer for a version that the tenant does not have."""
    return NotFound(
        f"there is no version {number} of the policy", reason="POLICY_VERSION_NOT_FOUND", version=str(number)
    )


def _versions(tenant_id: uuid.UUID) -> Select[Any]:
    newer = policy_activations.alias("newer")
    last = (
        select(func.max(newer.c.number))
        .where(newer.c.tenant_id == tenant_id, newer.c.to_version == policies.c.version)
        .scalar_subquery()
    )
    is_last = and_(policy_activations.c.tenant_id == tenant_id, policy_activations.c.number == last)
    noted = [column.label(f"activation_{column.name}") for column in policy_activations.c]
    return (
        select(policies, tenants.c.policy_version.label("live_version"), *noted)
        .join_from(policies, tenants, tenants.c.id == policies.c.tenant_id)
        .outerjoin(policy_activations, is_last)
        .where(policies.c.tenant_id == tenant_id)
    )


def _version_of(row: Row[Any]) -> Version:
    activated = None
    if row.activation_number is not None:
        activated = Activation(
            number=row.activation_number,
            from_version=row.activation_from_version,
            to_version=row.activation_to_version,
            at=row.activation_at,
            by=_actor(row.activation_activated_by, row.activation_key_id, row.activation_key_name),
            note=row.activation_note,
        )
    return Version(
        number=row.version,
        policy=Policy.from_document(row.document),
        created_at=row.created_at,
        created_by=_actor(row.created_by, row.key_id, row.key_name),
        note=row.note or "",
        live=row.version == row.live_version,
        activated=activated,
    )


def _activation_of(row: Row[Any]) -> Activation:
    return Activation(
        number=row.number,
        from_version=row.from_version,
        to_version=row.to_version,
        at=row.at,
        by=_actor(row.activated_by, row.key_id, row.key_name),
        note=row.note,
    )


def _actor(person: str | None, key_id: uuid.UUID | None, key_name: str | None) -> Actor:
    return Actor(person=person or "", key_id=key_id, key_name=key_name or "")
