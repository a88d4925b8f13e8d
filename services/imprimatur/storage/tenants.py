"""Tenants, their API keys and their policies."""

import hashlib
import secrets
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, insert, select, tuple_, update

from imprimatur.errors import AlreadyExists, NotFound
from imprimatur.identity import new_id
from imprimatur.policy import LivePolicy, Policy
from imprimatur.storage import clock
from imprimatur.storage import policies as policy_versions
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.locks import among, for_both
from imprimatur.storage.schema import api_keys, policies, tenants
from imprimatur.tenancy import ApiKey, Limits, Role, Tenant

_LIMITS = tuple(tenants.c[item.name] for item in fields(Limits))
#: Every key begins so, which lets secret scanners find lost ones.
KEY_PREFIX = "imp_"


def hash_of(key: str) -> bytes:
    """SHA-256. Keys hold 256 random bits, so that no slow hash is needed."""
    return hashlib.sha256(key.encode()).digest()


async def create_tenant(tx: Transaction, name: str) -> uuid.UUID:
    """A new tenant with the default policy as version 1.

    Raises:
        AlreadyExists: the name is taken.
    """
    tenant_id = new_id()
    made = await tx.connection.execute(
        insert_into(tenants, on_postgresql=tx.on_postgresql)
        .values(id=tenant_id, name=name, policy_version=1, created_at=clock.now())
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(tenants.c.id)
    )
    if made.one_or_none() is None:
        raise AlreadyExists(f"there is a tenant {name!r} already", reason="TENANT_EXISTS", tenant=name)
    await policy_versions.begin(tx, tenant_id, Policy())
    return tenant_id


async def find_tenant(reader: Reader, name: str) -> uuid.UUID | None:
    """A tenant's id by its name."""
    found = await reader.connection.execute(select(tenants.c.id).where(tenants.c.name == name))
    return found.scalar_one_or_none()


async def list_tenants(reader: Reader) -> list[Tenant]:
    """All tenants, oldest first."""
    rows = await reader.connection.execute(
        select(tenants, policies.c.document)
        .join_from(
            tenants,
            policies,
            and_(policies.c.tenant_id == tenants.c.id, policies.c.version == tenants.c.policy_version),
        )
        .order_by(tenants.c.id)
    )
    return [
        Tenant(id=row.id, name=row.name, mode=Policy.from_document(row.document).mode, created_at=row.created_at)
        for row in rows
    ]


async def create_key(tx: Transaction, tenant_id: uuid.UUID, *, name: str, role: Role, user_id: str = "") -> str:
    """A new API key; this answer is the only time it is seen."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    await tx.connection.execute(
        insert(api_keys).values(
            id=new_id(),
            tenant_id=tenant_id,
            name=name,
            role=role,
            user_id=user_id,
            key_hash=hash_of(key),
            created_at=clock.now(),
        )
    )
    return key


async def revoke_key(tx: Transaction, key_id: uuid.UUID) -> None:
    """End a key at once.

    Raises:
        NotFound: no such key.
    """
    changed = await tx.connection.execute(
        update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=clock.now()).returning(api_keys.c.id)
    )
    if changed.one_or_none() is None:
        raise NotFound(f"there is no key {key_id}", reason="KEY_NOT_FOUND")


async def find_key(reader: Reader, key: str) -> ApiKey | None:
    """The key's owner and role; None for an unknown or revoked key."""
    return (await find_keys(reader, [hash_of(key)])).get(hash_of(key))


async def find_keys(reader: Reader, hashes: Collection[bytes]) -> dict[bytes, ApiKey]:
    """Keys by `hash_of` each; unknown and revoked ones are left out."""
    return await _keys(reader, and_(api_keys.c.key_hash.in_(sorted(hashes)), api_keys.c.revoked_at.is_(None)))


async def list_keys(reader: Reader, tenant_id: uuid.UUID) -> list[ApiKey]:
    """A tenant's keys, revoked ones included, oldest first."""
    return list((await _keys(reader, api_keys.c.tenant_id == tenant_id)).values())


async def _keys(reader: Reader, condition: ColumnElement[bool]) -> dict[bytes, ApiKey]:
    rows = await reader.connection.execute(
        select(api_keys, tenants.c.name.label("tenant_name"), *_LIMITS)
        .join_from(api_keys, tenants)
        .where(condition)
        .order_by(api_keys.c.id)
    )
    return {
        row.key_hash: ApiKey(
            id=row.id,
            tenant_id=row.tenant_id,
            tenant_name=row.tenant_name,
            name=row.name,
            role=Role(row.role),
            user_id=row.user_id,
            created_at=row.created_at,
            revoked_at=row.revoked_at,
            limits=_limits_of(row),
        )
        for row in rows
    }


async def limits_of(reader: Reader, name: str) -> Limits:
    """A tenant's own limits.

    Raises:
        NotFound: there is no such tenant.
    """
    row = (await reader.connection.execute(select(*_LIMITS).where(tenants.c.name == name))).one_or_none()
    if row is None:
        raise no_tenant(name)
    return _limits_of(row)


async def put_limits(tx: Transaction, name: str, limits: Limits) -> None:
    """Replace a tenant's own limits. Gateways keep to them within two seconds.

    Raises:
        NotFound: there is no such tenant.
    """
    changed = await tx.connection.execute(
        update(tenants).where(tenants.c.name == name).values(asdict(limits)).returning(tenants.c.id)
    )
    if changed.one_or_none() is None:
        raise no_tenant(name)


def no_tenant(name: str) -> NotFound:
    """The answer for a name that no tenant has."""
    return NotFound(f"there is no tenant {name!r}", reason="TENANT_NOT_FOUND", tenant=name)


def _limits_of(row: Any) -> Limits:
    return Limits(**{column.name: row._mapping[column.name] for column in _LIMITS})


async def live_policy(reader: Reader, tenant_id: uuid.UUID) -> LivePolicy:
    """The policy in force now."""
    row = (await reader.connection.execute(_LIVE, {"tenant_id": tenant_id})).one()
    return LivePolicy(version=row.version, policy=Policy.from_document(row.document), at=row.at)


_LIVE = (
    select(policies.c.version, policies.c.document, clock.now().label("at"))
    .join(tenants, and_(tenants.c.id == policies.c.tenant_id, tenants.c.policy_version == policies.c.version))
    .where(tenants.c.id == bindparam("tenant_id"))
)


async def keep_policies(tx: Transaction, tenant_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, LivePolicy]:
    """The policies in force now, which stay in force until the transaction ends."""
    # Apart from the policies: a join that waits for the lock finds the new version but not its row.
    rows = (await tx.connection.execute(_KEEP[tx.on_postgresql], {"ids": sorted(tenant_ids)})).all()
    if len(_known) > _MOST_KNOWN:
        _known.clear()
    if unknown := [(row.id, row.policy_version) for row in rows if (row.id, row.policy_version) not in _known]:
        await _learn(tx, unknown)
    return {
        row.id: LivePolicy(version=row.policy_version, policy=_known[row.id, row.policy_version], at=row.at)
        for row in rows
    }


_KEEP = for_both(
    lambda on_postgresql: (
        select(tenants.c.id, tenants.c.policy_version, clock.now().label("at"))
        .where(among(tenants.c.id, on_postgresql=on_postgresql))
        .order_by(tenants.c.id)
        .with_for_update(read=True)
    )
)
#: Versions of policies that were read; they never change.
_known: dict[tuple[uuid.UUID, int], Policy] = {}
_MOST_KNOWN = 10_000


async def _learn(reader: Reader, wanted: Collection[tuple[uuid.UUID, int]]) -> None:
    found = select(policies).where(tuple_(policies.c.tenant_id, policies.c.version).in_(wanted))
    rows = (await reader.connection.execute(found)).all()
    _known.update({(row.tenant_id, row.version): Policy.from_document(row.document) for row in rows})


async def change_policy(tx: Transaction, tenant_id: uuid.UUID, settings: Mapping[str, Any]) -> int:
    """As `put_policy`, with the live version in which these settings are others: all else stays as it is then."""
    live = await policy_versions.lock(tx, tenant_id)
    policy = (await policy_versions.find(tx, tenant_id, live)).policy
    return await put_policy(tx, tenant_id, replace(policy, **settings))


async def put_policy(tx: Transaction, tenant_id: uuid.UUID, policy: Policy) -> int:
    """As the operator, add a version and make it the live one, at once for queued and running jobs too."""
    return await policy_versions.create(tx, tenant_id, policy, by=policy_versions.OPERATOR, live_at_once=True)
