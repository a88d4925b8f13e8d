"""Webhook endpoints and their secrets: where tenants hear of outcomes, and what signs it.

Secrets come and go sealed; the vault is its callers' (`imprimatur.webhooks`). What is sent is `storage.deliveries`.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update

from imprimatur.errors import NotFound, ResourceExhausted
from imprimatur.identity import new_id
from imprimatur.storage import clock, deliveries
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.inserts import insert_into
from imprimatur.storage.schema import tenants, webhook_endpoints, webhook_secrets

MAX_ENDPOINTS = 50


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One address that hears of outcomes. `event_types` is empty for all."""

    id: uuid.UUID
    tenant_id: uuid.UUID
    url: str
    description: str
    event_types: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class SealedSecret:
    """A secret as stored. Its id and tenant are part of the seal."""

    id: uuid.UUID
    tenant_id: uuid.UUID
    ciphertext: bytes


# --- endpoints -------------------------------------------------------------------------------------------


async def create_endpoint(
    tx: Transaction,
    tenant_id: uuid.UUID,
    *,
    url: str,
    description: str,
    event_types: Sequence[str],
    secret: SealedSecret,
) -> Endpoint:
    """Add an endpoint and its secret.

    Raises:
        ResourceExhausted: the tenant has MAX_ENDPOINTS already.
    """
    await tx.connection.execute(select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update(key_share=True))
    count = select(func.count()).select_from(webhook_endpoints).where(*_live(tenant_id))
    if (await tx.connection.execute(count)).scalar_one() >= MAX_ENDPOINTS:
        raise ResourceExhausted(
            f"there are {MAX_ENDPOINTS} webhook endpoints already: delete one first",
            reason="TOO_MANY_WEBHOOK_ENDPOINTS",
            limit=str(MAX_ENDPOINTS),
        )
    endpoint = Endpoint(
        id=new_id(),
        tenant_id=tenant_id,
        url=url,
        description=description,
        event_types=tuple(event_types),
        created_at=await clock.present(tx),
    )
    await tx.connection.execute(
        insert(webhook_endpoints).values(
            id=endpoint.id,
            tenant_id=tenant_id,
            url=url,
            description=description,
            event_types=list(event_types),
            created_at=endpoint.created_at,
        )
    )
    await _add_secret(tx, secret, endpoint.id)
    return endpoint


async def list_endpoints(reader: Reader, tenant_id: uuid.UUID) -> list[Endpoint]:
    """The tenant's endpoints, oldest first."""
    rows = await reader.connection.execute(
        select(webhook_endpoints).where(*_live(tenant_id)).order_by(webhook_endpoints.c.id)
    )
    return [
        Endpoint(
            id=row.id,
            tenant_id=row.tenant_id,
            url=row.url,
            description=row.description,
            event_types=tuple(row.event_types),
            created_at=row.created_at,
        )
        for row in rows
    ]


async def delete_endpoint(tx: Transaction, tenant_id: uuid.UUID, endpoint_id: uuid.UUID) -> None:
    """Remove an endpoint with its secrets, and give up what is still to be delivered to it.

    Raises:
        NotFound: the tenant has no such endpoint.
    """
    gone = await tx.connection.execute(
        update(webhook_endpoints)
        .where(*_live(tenant_id), webhook_endpoints.c.id == endpoint_id)
        .values(deleted_at=clock.now())
        .returning(webhook_endpoints.c.id)
    )
    if gone.one_or_none() is None:
        raise _no_endpoint(endpoint_id)
    await deliveries.abandon_open(tx, endpoint_id)
    await tx.connection.execute(delete(webhook_secrets).where(*_of(tenant_id, endpoint_id)))


def _live(tenant_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    return (webhook_endpoints.c.tenant_id == tenant_id, webhook_endpoints.c.deleted_at.is_(None))


def _no_endpoint(endpoint_id: uuid.UUID) -> NotFound:
    return NotFound(f"there is no webhook endpoint {endpoint_id}", reason="WEBHOOK_ENDPOINT_NOT_FOUND")


# --- secrets ---------------------------------------------------------------------------------------------


async def live_secrets(reader: Reader, tenant_id: uuid.UUID, endpoint_id: uuid.UUID | None) -> list[SealedSecret]:
    """What signs for an endpoint now, or (None) for the tenant's callback URLs: newest first."""
    found = await secrets_of(reader, [(tenant_id, endpoint_id)])
    return found.get((tenant_id, endpoint_id), [])


async def secrets_of(
    reader: Reader, owners: Collection[tuple[uuid.UUID, uuid.UUID | None]]
) -> dict[tuple[uuid.UUID, uuid.UUID | None], list[SealedSecret]]:
    """What signs now, newest first, by (tenant, endpoint or None)."""
    if not owners:
        return {}
    endpoints = sorted({endpoint for _, endpoint in owners if endpoint is not None})
    rows = await reader.connection.execute(
        select(webhook_secrets)
        .where(
            webhook_secrets.c.tenant_id.in_(sorted({tenant for tenant, _ in owners})),
            or_(webhook_secrets.c.endpoint_id.is_(None), webhook_secrets.c.endpoint_id.in_(endpoints)),
            or_(webhook_secrets.c.expires_at.is_(None), webhook_secrets.c.expires_at > clock.now()),
        )
        .order_by(webhook_secrets.c.id.desc())
    )
    found: dict[tuple[uuid.UUID, uuid.UUID | None], list[SealedSecret]] = {}
    for row in rows:
        sealed = SealedSecret(id=row.id, tenant_id=row.tenant_id, ciphertext=row.ciphertext)
        found.setdefault((row.tenant_id, row.endpoint_id), []).append(sealed)
    return found


async def ensure_default_secrets(tx: Transaction, candidates: Sequence[SealedSecret]) -> None:
    """Store each candidate as its tenant's default secret, unless the tenant has one."""
    for candidate in sorted(candidates, key=lambda item: item.tenant_id):
        await tx.connection.execute(
            insert_into(webhook_secrets, on_postgresql=tx.on_postgresql)
            .values(
                id=candidate.id,
                tenant_id=candidate.tenant_id,
                ciphertext=candidate.ciphertext,
                created_at=clock.now(),
            )
            .on_conflict_do_nothing()
        )


async def rotate_secret(
    tx: Transaction,
    tenant_id: uuid.UUID,
    endpoint_id: uuid.UUID | None,
    *,
    secret: SealedSecret,
    overlap_seconds: float,
) -> None:
    """Put a secret in front; the present one goes on signing for `overlap_seconds`, older ones end now.

    Raises:
        NotFound: the tenant has no such endpoint.
    """
    if endpoint_id is not None:
        mine = select(webhook_endpoints.c.id).where(*_live(tenant_id), webhook_endpoints.c.id == endpoint_id)
        if (await tx.connection.execute(mine.with_for_update(key_share=True))).one_or_none() is None:
            raise _no_endpoint(endpoint_id)
    else:
        await tx.connection.execute(
            select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update(key_share=True)
        )
    owned = _of(tenant_id, endpoint_id)
    await tx.connection.execute(delete(webhook_secrets).where(*owned, webhook_secrets.c.expires_at.is_not(None)))
    await tx.connection.execute(update(webhook_secrets).where(*owned).values(expires_at=clock.after(overlap_seconds)))
    await _add_secret(tx, secret, endpoint_id)


async def any_secret(reader: Reader) -> SealedSecret | None:
    """The newest secret of all: to see whether the vault opens it."""
    row = (
        await reader.connection.execute(select(webhook_secrets).order_by(webhook_secrets.c.id.desc()).limit(1))
    ).one_or_none()
    return SealedSecret(id=row.id, tenant_id=row.tenant_id, ciphertext=row.ciphertext) if row is not None else None


async def _add_secret(tx: Transaction, secret: SealedSecret, endpoint_id: uuid.UUID | None) -> None:
    await tx.connection.execute(
        insert(webhook_secrets).values(
            id=secret.id,
            tenant_id=secret.tenant_id,
            endpoint_id=endpoint_id,
            ciphertext=secret.ciphertext,
            created_at=clock.now(),
        )
    )


def _of(tenant_id: uuid.UUID, endpoint_id: uuid.UUID | None) -> tuple[ColumnElement[bool], ...]:
    return (
        webhook_secrets.c.tenant_id == tenant_id,
        webhook_secrets.c.endpoint_id == endpoint_id  # None becomes IS NULL
        if endpoint_id is not None
        else webhook_secrets.c.endpoint_id.is_(None),
    )
