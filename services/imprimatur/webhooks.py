"""Webhook secrets and endpoints, as gateway, notifier and command line share them.

A secret is "whsec_" and base64; it is sealed by the vault before storage sees it, and bound to its tenant and
row. The SQL is `storage.webhooks`, signing is `notifier.signing`.
"""

import base64
import binascii
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from imprimatur.errors import ConfigurationError, ImprimaturError
from imprimatur.identity import new_id
from imprimatur.storage import webhooks as stored
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.webhooks import Endpoint, SealedSecret
from imprimatur.vault import Vault, VaultError

SECRET_PREFIX = "whsec_"  # noqa: S105  # no secret itself
_NEW_KEY_BYTES = 32
_KEY_BYTES = range(24, 65)

#: How long a replaced secret still signs, unless told otherwise.
OVERLAP_SECONDS = 86400.0


class MalformedSecret(ImprimaturError):
    """Not "whsec_" and base64 of 24 to 64 bytes."""


@dataclass(frozen=True, kw_only=True)
class NewEndpoint:
    """An endpoint just made, with the secret that is shown this once."""

    endpoint: Endpoint
    secret: str = field(repr=False)


def new_secret() -> str:
    """A fresh secret of 256 random bits."""
    return SECRET_PREFIX + base64.b64encode(os.urandom(_NEW_KEY_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The key inside a secret.

    Raises:
        MalformedSecret: without quoting it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in _KEY_BYTES:
        raise MalformedSecret(f'a secret is "{SECRET_PREFIX}" and base64 of 24 to 64 bytes')
    return key


def seal(vault: Vault, tenant_id: uuid.UUID, secret: str) -> SealedSecret:
    """A secret as it is stored."""
    secret_id = new_id()
    return SealedSecret(
        id=secret_id,
        tenant_id=tenant_id,
        ciphertext=vault.seal(secret.encode(), purpose=_purpose(tenant_id, secret_id)),
    )


def unseal(vault: Vault, sealed: SealedSecret) -> str:
    """A stored secret in clear.

    Raises:
        VaultError: sealed with a key that this vault does not have, or tampered with.
    """
    return vault.open(sealed.ciphertext, purpose=_purpose(sealed.tenant_id, sealed.id)).decode()


def _purpose(tenant_id: uuid.UUID, secret_id: uuid.UUID) -> str:
    return f"webhook-secret/{tenant_id}/{secret_id}"


async def create_endpoint(
    tx: Transaction,
    vault: Vault,
    tenant_id: uuid.UUID,
    *,
    url: str,
    description: str = "",
    event_types: Sequence[str] = (),
) -> NewEndpoint:
    """Add an endpoint with a secret of its own. The URL has been checked by the guard, the types by the caller.

    Raises:
        ResourceExhausted: the tenant has as many endpoints as it may.
    """
    secret = new_secret()
    endpoint = await stored.create_endpoint(
        tx, tenant_id, url=url, description=description, event_types=event_types, secret=seal(vault, tenant_id, secret)
    )
    return NewEndpoint(endpoint=endpoint, secret=secret)


async def default_secret(tx: Transaction, vault: Vault, tenant_id: uuid.UUID) -> str:
    """The secret that signs what goes to callback URLs; made if the tenant has none yet.

    Raises:
        VaultError: it cannot be opened.
    """
    await ensure_default_secrets(tx, vault, [tenant_id])
    [newest, *_] = await stored.live_secrets(tx, tenant_id, None)
    return unseal(vault, newest)


async def ensure_default_secrets(tx: Transaction, vault: Vault, tenant_ids: Iterable[uuid.UUID]) -> None:
    """Give these tenants a default secret where they have none. Two doing so at once agree on one."""
    await stored.ensure_default_secrets(tx, [seal(vault, tenant_id, new_secret()) for tenant_id in sorted(tenant_ids)])


async def rotate_secret(
    tx: Transaction,
    vault: Vault,
    tenant_id: uuid.UUID,
    endpoint_id: uuid.UUID | None,
    *,
    overlap_seconds: float = OVERLAP_SECONDS,
) -> str:
    """A new secret for an endpoint, or (None) for the callback URLs; the present one signs too for a while.

    Raises:
        NotFound: the tenant has no such endpoint.
    """
    secret = new_secret()
    await stored.rotate_secret(
        tx, tenant_id, endpoint_id, secret=seal(vault, tenant_id, secret), overlap_seconds=overlap_seconds
    )
    return secret


async def require_vault_opens(database: Database, vault: Vault) -> None:
    """Raises ConfigurationError when the vault's keys do not open what is stored: nothing could be signed."""
    async with database.read() as reader:
        sealed = await stored.any_secret(reader)
    if sealed is None:
        return
    try:
        unseal(vault, sealed)
    except VaultError as fault:
        raise ConfigurationError(f"the vault does not open the stored webhook secrets: {fault}") from fault
