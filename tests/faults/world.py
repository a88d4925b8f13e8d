"""A whole system to be struck: private servers, two processes of each service, a webhook receiver, and a supervisor
that starts again what died. What strikes it is in `faults`, what uses it in `load`, what judges it in `audit`.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aiohttp import web
from standardwebhooks.webhooks import WebhookVerificationError

from deploy.local.ports import free_port
from deploy.local.postgres import PrivatePostgres
from deploy.local.rabbitmq import PrivateRabbitMQ
from deploy.local.rabbitmq_cluster import PrivateRabbitMQCluster
from imprimatur.vault import new_key
from tests import makers
from tests.e2e.processes import IMPRIMATUR, Child, is_ready
from tests.faults.engine import FOLDER_VARIABLE
from tests.faults.proxy import Proxy, proxying
from tests.service.receiver import Answer, Post, Receiver, receiving

REPOSITORY = Path(__file__).resolve().parents[2]
HTTP_PORTS = {
    "gateway": "IMPRIMATUR_GATEWAY_HTTP_PORT",
    "reviewer": "IMPRIMATUR_REVIEWER_HTTP_PORT",
    "notifier": "IMPRIMATUR_NOTIFIER_HTTP_PORT",
}
LEASE_SECONDS = 3.0
REVIEWER_SLOTS = 32  # so many that two of many jobs share a message
MOST_CONNECTIONS = 100
_READY_SECONDS = 150.0
_SUPERVISE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Which kind of world: what stands between the services and their servers."""

    proxied: bool = False  #: a TCP proxy before PostgreSQL, RabbitMQ and each gateway
    cluster: bool = False  #: three RabbitMQ nodes in place of one


class Seat:
    """One service's place: its ports stay, its process may change.

    Attributes:
        workers: every process that it has had, as the attempt log names them.
        deaths_meant: how many of them a strike was to end.
    """

    def __init__(self, service: str, number: int, environ: Mapping[str, str], folder: Path) -> None:
        self.service = service
        self.name = f"{service}-{number}"
        self.grpc_port = free_port()
        self.http_port = free_port()
        self._environ = {
            **environ,
            HTTP_PORTS[service]: str(self.http_port),
            "IMPRIMATUR_GRPC_PORT": str(self.grpc_port),
        }
        self._log = folder / f"{self.name}.log"
        self.workers: list[str] = []
        self.deaths_meant = 0
        self.process = self._start()

    def _start(self) -> Child:
        child = Child(self._command(), self._log, self._environ)
        self.workers.append(f"{socket.gethostname()}:{child.pid}")
        return child

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "tests.faults.failpoints", self.service]

    @property
    def starts(self) -> int:
        """How many processes it has had."""
        return len(self.workers)

    @property
    def worker(self) -> str:
        """Its present process as the attempt log names it."""
        return self.workers[-1]

    def supervise(self) -> None:
        """Start it again if it has died."""
        if not self.process.alive():
            self.process = self._start()

    @property
    def deaths_unmeant(self) -> int:
        """How often it died without having been struck."""
        return self.starts - 1 - self.deaths_meant

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        return self.process.alive() and is_ready(self.http_port)


@dataclass(kw_only=True)
class World:
    """What runs. `targets` are the gateways as clients reach them.

    Attributes:
        taken: webhooks that were verified and answered 2xx.
        refused: those that could not be verified.
        struck_workers: processes that a strike killed, stopped or ended, as the attempt log names them.
    """

    folder: Path
    postgres: PrivatePostgres
    rabbits: list[PrivateRabbitMQ]
    receiver: Receiver
    api_key: str
    seats: list[Seat] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    sound: bool = True  #: not while it is under attack, and so not after an attack that broke off
    rng: random.Random = field(default_factory=random.Random)
    taken: list[Post] = field(default_factory=list, repr=False)
    refused: list[Post] = field(default_factory=list, repr=False)
    struck_workers: set[str] = field(default_factory=set)

    @property
    def dsn(self) -> str:
        """The database itself, past any proxy."""
        return self.postgres.url("imprimatur")

    @property
    def rabbitmq(self) -> PrivateRabbitMQ:
        """The broker, or the cluster's first node."""
        return self.rabbits[0]

    def of(self, service: str) -> list[Seat]:
        """The seats of one service."""
        return [seat for seat in self.seats if seat.service == service]

    def any_of(self, service: str) -> Seat:
        """One of them by chance."""
        return self.rng.choice(self.of(service))

    def mark(self, seat: Seat, *, dies: bool) -> None:
        """Its present process is struck now; what it loses, and its death if it `dies`, is meant."""
        seat.deaths_meant += dies
        self.struck_workers.add(seat.worker)

    def forget_the_living(self) -> None:
        """Whoever was struck and lives may lose nothing from now on."""
        self.struck_workers.difference_update(seat.worker for seat in self.seats)

    async def until_ready(self) -> None:
        """Wait until every service is ready."""
        for seat in self.seats:
            await makers.until(partial(asyncio.to_thread, seat.is_ready), seconds=_READY_SECONDS)


@asynccontextmanager
async def a_world(folder: Path, surface: Surface) -> AsyncIterator[World]:
    """A world inside the block; afterwards its processes and data are gone, its logs stay in `folder`."""
    for name in ("armed", "reached", "looked-at"):
        (folder / name).mkdir(parents=True)
    async with AsyncExitStack() as stack:
        postgres = await asyncio.to_thread(
            PrivatePostgres.start, folder / "postgresql", fsync=False, max_connections=MOST_CONNECTIONS
        )
        stack.push(postgres.__exit__)
        rabbits = await _rabbits(folder, surface, stack)
        receiver = await stack.enter_async_context(receiving())
        database_url = await asyncio.to_thread(postgres.create_database, "imprimatur")
        environ = _environ(folder, database_url)
        api_key, secret = await asyncio.to_thread(_tenant, environ)
        world = World(
            folder=folder,
            postgres=postgres,
            rabbits=rabbits,
            receiver=receiver,
            api_key=api_key,
        )
        receiver.answer = verifying(secret, world)
        await _fill(world, environ, surface, stack)
        await world.until_ready()
        supervisor = asyncio.create_task(supervise(world))
        try:
            yield world
        finally:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)


async def _rabbits(folder: Path, surface: Surface, stack: AsyncExitStack) -> list[PrivateRabbitMQ]:
    if surface.cluster:
        cluster = await asyncio.to_thread(PrivateRabbitMQCluster.start, folder / "rabbitmq")
        stack.push(cluster.__exit__)
        return cluster.nodes
    single = await asyncio.to_thread(PrivateRabbitMQ.start, folder / "rabbitmq")
    stack.push(single.__exit__)
    return [single]


async def _fill(world: World, environ: dict[str, str], surface: Surface, stack: AsyncExitStack) -> None:
    if surface.proxied:
        for name, port in (("postgresql", world.postgres.port), ("rabbitmq", world.rabbitmq.port)):
            world.proxies[name] = await stack.enter_async_context(proxying("127.0.0.1", port))
        environ["IMPRIMATUR_DATABASE_URL"] = world.dsn.replace(
            str(world.postgres.port), str(world.proxies["postgresql"].port)
        )
    for number, service in enumerate((*HTTP_PORTS, *HTTP_PORTS)):
        broker_port = world.proxies["rabbitmq"].port if surface.proxied else _spread(world.rabbits, number).port
        broker = {"IMPRIMATUR_BROKER_URL": f"amqp://guest:guest@127.0.0.1:{broker_port}/"}
        seat = Seat(service, number // len(HTTP_PORTS) + 1, environ | broker, world.folder)
        stack.callback(lambda seat=seat: seat.process.discard())  # type: ignore[misc]  # the process it has then
        world.seats.append(seat)
    for seat in world.of("gateway"):
        port = seat.grpc_port
        if surface.proxied:
            proxy = await stack.enter_async_context(proxying("127.0.0.1", port))
            world.proxies[seat.name] = proxy
            port = proxy.port
        world.targets.append(f"127.0.0.1:{port}")


def _spread(rabbits: list[PrivateRabbitMQ], number: int) -> PrivateRabbitMQ:
    return rabbits[number % len(rabbits)]


async def supervise(world: World) -> None:
    """Start again what died, until cancelled."""
    while True:
        for seat in world.seats:
            seat.supervise()
        await asyncio.sleep(_SUPERVISE_SECONDS)


def verifying(secret: str, world: World) -> Answer:
    """Takes what is signed with `secret`, and nothing else."""

    async def answer(post: Post) -> web.StreamResponse:
        try:
            post.verified(secret)
        except WebhookVerificationError:
            world.refused.append(post)
            return web.Response(status=401)
        world.taken.append(post)
        return web.Response(status=204)

    return answer


def _environ(folder: Path, database_url: str) -> dict[str, str]:
    vault = folder / "vault.key"
    vault.touch(mode=0o600)
    vault.write_text(new_key())
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("IMPRIMATUR_")},
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "services"))),
        FOLDER_VARIABLE: str(folder),
        "IMPRIMATUR_DATABASE_URL": database_url,
        "IMPRIMATUR_VAULT_KEY_FILE": str(vault),
        "IMPRIMATUR_GRPC_HOST": "127.0.0.1",
        "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
        "IMPRIMATUR_ALLOW_PRIVATE_ADDRESSES": "true",
        "IMPRIMATUR_ALLOW_HTTP": "true",
        "IMPRIMATUR_DATABASE_POOL_SIZE": "8",
        "IMPRIMATUR_DRAIN_SECONDS": "5",
        "IMPRIMATUR_LEASE_SECONDS": str(LEASE_SECONDS),
        "IMPRIMATUR_REVIEWER_SLOTS": str(REVIEWER_SLOTS),
        "IMPRIMATUR_WEBHOOK_TIMEOUT_SECONDS": "3",
        "IMPRIMATUR_WEBHOOK_LEASE_SECONDS": "5",
        "IMPRIMATUR_WEBHOOK_RETRY_SECONDS": "[0.5, 1, 1, 2, 2, 5, 5, 5]",
    }


def _tenant(environ: dict[str, str]) -> tuple[str, str]:
    """(API key, webhook secret) of a new tenant in a new database."""
    _imprimatur("migrate", environ=environ)
    key = json.loads(_imprimatur("tenants", "create", "default", "--json", environ=environ))
    secret = json.loads(_imprimatur("tenants", "webhook-secret", "default", "--json", environ=environ))
    return key["api_key"], secret["webhook_secret"]


def _imprimatur(*words: str, environ: dict[str, str]) -> str:
    done = subprocess.run([*IMPRIMATUR, *words], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
