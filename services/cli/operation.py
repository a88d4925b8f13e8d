"""What `imprimatur migrate`, `tenants` and `keys` do at the database. The commands are `cli.administration`."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from imprimatur import webhooks
from imprimatur.budgets import Budget, Used
from imprimatur.errors import ConfigurationError
from imprimatur.policy import Mode
from imprimatur.settings import VaultSettings
from imprimatur.storage import migrations, spending, tenants
from imprimatur.storage.database import Database, Reader, Transaction
from imprimatur.tenancy import ApiKey, Limits, Role, Tenant
from imprimatur.vault import Vault

_Answer = TypeVar("_Answer")


def database_url_in(data: Path) -> str:
    """The database of `imprimatur serve` in its data folder."""
    return f"sqlite:///{data.resolve() / 'imprimatur.db'}"


class Operation:
    """An operator at one database.

    Args:
        database_url: empty for the embedded one in `data`.
    """

    def __init__(self, database_url: str, data: Path) -> None:
        self._database_url = database_url
        self._data = data

    @property
    def place(self) -> str:
        """Which database it is, without its password."""
        url = self._database_url or database_url_in(self._data)
        account, _, _ = urlsplit(url).netloc.rpartition("@")
        return url.replace(f"{account}@", "", 1) if account else url

    def migrate(self, tell: Callable[[str], None]) -> None:
        """Bring the schema to this version; `tell` is told what takes long."""

        async def run() -> None:
            database = self._open()
            try:
                await migrations.upgrade(database, tell)
            finally:
                await database.close()

        asyncio.run(run())

    def create_tenant(self, name: str) -> tuple[uuid.UUID, str]:
        """(id, first key) of a new tenant."""

        async def run(tx: Transaction) -> tuple[uuid.UUID, str]:
            tenant_id = await tenants.create_tenant(tx, name)
            return tenant_id, await tenants.create_key(tx, tenant_id, name="first", role=Role.ADMIN)

        return self._do(run)

    def tenants(self) -> list[Tenant]:
        """All tenants."""
        return self._do(tenants.list_tenants)

    def set_mode(self, tenant: str, mode: Mode) -> int:
        """The version of the new live policy."""
        return self._change_policy(tenant, mode=mode)

    def set_model(self, tenant: str, model: str | None) -> int:
        """The version of the new live policy."""
        return self._change_policy(tenant, model=model)

    def set_reuse(self, tenant: str, reuse: bool) -> int:
        """The version of the new live policy."""
        return self._change_policy(tenant, reuse_evidence=reuse)

    def _change_policy(self, tenant: str, **settings: Any) -> int:
        async def run(tx: Transaction) -> int:
            return await tenants.change_policy(tx, await _tenant(tx, tenant), settings)

        return self._do(run)

    def budget(self, tenant: str) -> tuple[Budget, Used]:
        """A tenant's own budget, and what it has spent today."""

        async def run(reader: Reader) -> tuple[Budget, Used]:
            return await spending.by_name(reader, tenant)

        return self._do(run)

    def set_budget(self, tenant: str, changes: Mapping[str, int | None]) -> tuple[Budget, Used]:
        """Change parts of a tenant's own budget, by their names in `Budget`; all of it then, and what is spent."""

        async def run(tx: Transaction) -> tuple[Budget, Used]:
            own, used = await spending.by_name(tx, tenant)
            budget = replace(own, **changes)
            await spending.put_budget(tx, tenant, budget)
            return budget, used

        return self._do(run)

    def limits(self, tenant: str) -> Limits:
        """A tenant's own limits."""

        async def run(reader: Reader) -> Limits:
            return await tenants.limits_of(reader, tenant)

        return self._do(run)

    def set_limits(self, tenant: str, changes: Mapping[str, float | None]) -> Limits:
        """Change some of a tenant's own limits, by their names in `Limits`; all of them then."""

        async def run(tx: Transaction) -> Limits:
            limits = Limits(**{**asdict(await tenants.limits_of(tx, tenant)), **changes})
            await tenants.put_limits(tx, tenant, limits)
            return limits

        return self._do(run)

    def webhook_secret(self, tenant: str, *, rotate: bool) -> str:
        """What signs messages to callback URLs; with `rotate` a new one."""
        vault = VaultSettings().open_vault() if self._database_url else Vault.from_file(self._data / "vault.key")

        async def run(tx: Transaction) -> str:
            tenant_id = await _tenant(tx, tenant)
            if rotate:
                return await webhooks.rotate_secret(tx, vault, tenant_id, None)
            return await webhooks.default_secret(tx, vault, tenant_id)

        return self._do(run)

    def create_key(self, tenant: str, *, name: str, role: Role, user: str) -> str:
        """A new key."""

        async def run(tx: Transaction) -> str:
            return await tenants.create_key(tx, await _tenant(tx, tenant), name=name, role=role, user_id=user)

        return self._do(run)

    def keys(self, tenant: str) -> list[ApiKey]:
        """A tenant's keys."""

        async def run(reader: Reader) -> list[ApiKey]:
            return await tenants.list_keys(reader, await _tenant(reader, tenant))

        return self._do(run)

    def revoke_key(self, key_id: uuid.UUID) -> None:
        """End a key."""

        async def run(tx: Transaction) -> None:
            await tenants.revoke_key(tx, key_id)

        self._do(run)

    def _open(self) -> Database:
        if not self._database_url and not (self._data / "imprimatur.db").exists():
            raise ConfigurationError(
                f"there is no database in {self._data}: give --database-url (IMPRIMATUR_DATABASE_URL), "
                "or --data for the folder of an `imprimatur serve`"
            )
        return Database(self._database_url or database_url_in(self._data))

    def _do(self, work: Callable[[Transaction], Awaitable[_Answer]]) -> _Answer:
        async def run() -> _Answer:
            database = self._open()
            try:
                await migrations.require_current(database)
                async with database.begin() as tx:
                    return await work(tx)
            finally:
                await database.close()

        return asyncio.run(run())


async def _tenant(reader: Reader, name: str) -> uuid.UUID:
    tenant_id = await tenants.find_tenant(reader, name)
    if tenant_id is None:
        raise tenants.no_tenant(name)
    return tenant_id
