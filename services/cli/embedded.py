"""`imprimatur serve`: gateway, reviewer and notifier in one process, on SQLite and the in-memory broker.

The same code paths as in production, durable, with no server to install. Everything is kept in one data folder:
the database, the vault's key, and client.json, by which the client commands find this server.
"""

import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import structlog

from cli.operation import database_url_in
from gateway.server import Listener
from gateway.service import gateway
from imprimatur import metrics as prometheus
from imprimatur import webhooks
from imprimatur.broker.memory import MemoryBroker
from imprimatur.errors import ConfigurationError
from imprimatur.guard import STRICT, Guard
from imprimatur.outbox import Outbox
from imprimatur.process import Surroundings
from imprimatur.retention import Retention
from imprimatur.runtime import HttpPort, http_port
from imprimatur.storage import dispatch, migrations, tenants
from imprimatur.storage.database import Database
from imprimatur.tenancy import Role
from imprimatur.vault import Vault
from notifier.service import notifier
from reviewer.engines import Engine, OpenEngine
from reviewer.service import reviewer
from reviewer.terms import NO_TERMS, Terms

log = structlog.get_logger(__name__)

FIRST_TENANT = "default"


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a client reaches this server; what client.json holds."""

    target: str
    api_key: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    metrics: str


@asynccontextmanager
async def serving(
    data: Path,
    engine: Engine,
    open_apart: OpenEngine,
    *,
    host: str = "127.0.0.1",
    port: int = 7443,
    metrics_port: int = 9100,
    slots: int = 8,
    terms: Terms = NO_TERMS,
    reuse_seconds: float = 0.0,
    retention: Retention = Retention(),
    guard: Guard = STRICT,
    drain_seconds: float = 10.0,
) -> AsyncIterator[Access]:
    """Run everything inside the block, on the data folder `data`; engines, terms and reuse as for
    `reviewer.service.reviewer`.

    Raises:
        ConfigurationError: the folder is in use, its vault key is missing or readable by others, or a port is
            taken.
    """
    with _locked(data):
        vault = _vault_in(data)
        prometheus.build_info.labels("serve", version("imprimatur")).set(1)
        async with (
            http_port(host, metrics_port) as http,
            _surroundings(data, vault, http) as around,
            notifier(around.database, around.broker, vault, guard, drain_seconds=drain_seconds) as telling,
            reviewer(
                around.database,
                around.database,
                around.broker,
                engine,
                open_apart,
                guard=guard,
                terms=terms,
                reuse_seconds=reuse_seconds,
                slots=slots,
                drain_seconds=drain_seconds,
            ) as reviewing,
            gateway(
                around.database,
                around.broker,
                vault,
                guard,
                Listener(host=host, port=port, reflection=True),
                retention=retention,
                drain_seconds=drain_seconds,
            ) as running,
            http.ready({**around.checks(), "reviewer": reviewing.consuming, "notifier": telling.consuming}),
        ):
            yield await _access(
                around.database, vault, data, f"{host}:{running.port}", f"http://{host}:{http.number}/metrics"
            )


@asynccontextmanager
async def _surroundings(data: Path, vault: Vault, http: HttpPort) -> AsyncIterator[Surroundings]:
    """Database and broker of the folder, what was unfinished put up again, closed in the right order at the end."""
    around = Surroundings(database=Database(database_url_in(data)), broker=MemoryBroker())
    outbox = Outbox(around.database, around.broker)
    try:
        with http.telling({}, around.observe):
            await migrations.upgrade(around.database)
            await webhooks.require_vault_opens(around.database, vault)
            await around.broker.start()
            outbox.start()
            await _pick_up(around.database)
            yield around
    finally:
        await outbox.stop()
        await around.broker.close()
        await around.database.close()


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(data / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigurationError(f"another `imprimatur serve` is running on {data}") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _vault_in(data: Path) -> Vault:
    """The folder's vault; a folder with a database and no key has lost it, and must not get a new one."""
    return Vault.from_file(data / "vault.key", create=not (data / "imprimatur.db").exists())


async def _pick_up(database: Database) -> None:
    """The in-memory broker starts empty: what was put up for claiming must be put up again."""
    async with database.begin() as tx:
        if taken_back := await dispatch.withdraw_releases(tx):
            log.info("unfinished jobs are picked up again", jobs=taken_back)


async def _access(database: Database, vault: Vault, data: Path, target: str, metrics: str) -> Access:
    """Write client.json; the first tenant and its key are made on the first start."""
    path = data / "client.json"
    async with database.begin() as tx:
        tenant_id = await tenants.find_tenant(tx, FIRST_TENANT) or await tenants.create_tenant(tx, FIRST_TENANT)
        key = _known_key(path)
        if not key or await tenants.find_key(tx, key) is None:
            key = await tenants.create_key(tx, tenant_id, name="admin", role=Role.ADMIN)
        secret = await webhooks.default_secret(tx, vault, tenant_id)
    access = Access(target=target, api_key=key, webhook_secret=secret, metrics=metrics)
    _write_private(path, json.dumps(asdict(access), indent=2) + "\n")
    return access


def _known_key(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["api_key"])
    except (OSError, ValueError, KeyError):
        return ""


def _write_private(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.rename(path)
