"""A whole system on real sockets: gateways and reviewers by their production entry points, and callers with keys."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc.aio
import pytest

from gateway.quotas import Allowance
from gateway.server import Listener
from gateway.service import DEFAULT_ALLOWANCE, gateway
from imprimatur.broker import Broker
from imprimatur.broker.memory import MemoryBroker
from imprimatur.guard import Guard
from imprimatur.outbox import Outbox
from imprimatur.storage import tenants
from imprimatur.storage.database import Database
from imprimatur.tenancy import Role
from imprimatur.v1.admin_service_pb2_grpc import AdminServiceStub
from imprimatur.v1.asset_service_pb2_grpc import AssetServiceStub
from imprimatur.v1.creative_pb2 import Category, Creative, CreativeReviewTask
from imprimatur.v1.job_pb2 import Job, JobState
from imprimatur.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest, WatchJobRequest
from imprimatur.v1.job_service_pb2_grpc import JobServiceStub
from imprimatur.v1.policy_service_pb2_grpc import PolicyServiceStub
from imprimatur.v1.review_service_pb2_grpc import ReviewServiceStub
from imprimatur.v1.webhook_service_pb2_grpc import WebhookServiceStub
from imprimatur.vault import Vault, new_key
from reviewer.engines import Engine
from reviewer.engines.apart import EngineApart
from reviewer.service import Reviewer, reviewer
from reviewer.terms import NO_TERMS, Terms
from tests import makers
from tests.patience import PATIENCE_SECONDS

if TYPE_CHECKING:  # they exist for type checkers alone
    from imprimatur.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from imprimatur.v1.asset_service_pb2_grpc import AssetServiceAsyncStub
    from imprimatur.v1.job_service_pb2_grpc import JobServiceAsyncStub
    from imprimatur.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub
    from imprimatur.v1.review_service_pb2_grpc import ReviewServiceAsyncStub
    from imprimatur.v1.webhook_service_pb2_grpc import WebhookServiceAsyncStub

#: For tests that wait for time to pass and would learn nothing from the other kind.
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

#: The longest that a call of a test may take.
CALL_SECONDS = PATIENCE_SECONDS


class _WithKey:
    """A stub whose calls carry a key and a time-out."""

    def __init__(self, stub: Any, key: str | None) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {key}"),) if key is not None else ()

    def __getattr__(self, rpc: str) -> Any:
        return partial(getattr(self._stub, rpc), metadata=self._metadata, timeout=CALL_SECONDS)


class Caller:
    """The holder of a key (None: of none), at one gateway."""

    def __init__(self, channel: grpc.aio.Channel, key: str | None) -> None:
        self.key = key
        self.assets = cast("AssetServiceAsyncStub", _WithKey(AssetServiceStub(channel), key))
        self.jobs = cast("JobServiceAsyncStub", _WithKey(JobServiceStub(channel), key))
        self.reviews = cast("ReviewServiceAsyncStub", _WithKey(ReviewServiceStub(channel), key))
        self.admin = cast("AdminServiceAsyncStub", _WithKey(AdminServiceStub(channel), key))
        self.webhooks = cast("WebhookServiceAsyncStub", _WithKey(WebhookServiceStub(channel), key))
        self.administration = cast("AdminServiceAsyncStub", _WithKey(AdminServiceStub(channel), key))
        self.policies = cast("PolicyServiceAsyncStub", _WithKey(PolicyServiceStub(channel), key))

    async def submit(self, headline: str, creative_id: str | None = None, **fields: Any) -> Job:
        """Have a creative reviewed."""
        answer = await self.jobs.SubmitJob(submission(headline, creative_id, **fields))
        return answer.job

    async def get(self, job: Job | str) -> Job:
        """The job now, with its attempts."""
        answer = await self.jobs.GetJob(GetJobRequest(job_id=job if isinstance(job, str) else job.id))
        return answer.job

    async def until(self, job: Job, *states: JobState.ValueType, seconds: float = PATIENCE_SECONDS) -> Job:
        """Watch until the job is in one of `states`; the job then, with its attempts."""
        async with asyncio.timeout(seconds):
            async for seen in self.jobs.WatchJob(WatchJobRequest(job_id=job.id), timeout=None):
                if seen.job.state in states:
                    return await self.get(job)
        raise AssertionError(f"ended in {JobState.Name((await self.get(job)).state)}")


def submission(
    headline: str = "approve",
    creative_id: str | None = None,
    *,
    declared: Sequence[Category.ValueType] = (),
    **fields: Any,
) -> SubmitJobRequest:
    """A creative to be reviewed; unless it is named, one that no other request is about. `fields` are those of
    SubmitJobRequest."""
    if creative_id is None:
        creative_id = f"cr-of-{fields.get('request_id') or uuid.uuid4().hex}"
    creative = Creative(creative_id=creative_id, headline=headline, declared_categories=declared)
    return SubmitJobRequest(creative_review=CreativeReviewTask(creative=creative), **fields)


@dataclass(kw_only=True)
class System:
    """Gateways and reviewers on one database and one broker, with one tenant."""

    database: Database
    broker: Broker
    lease_seconds: float
    guard: Guard
    vault: Vault
    port: int = 0
    tenant_id: uuid.UUID = field(default_factory=uuid.uuid4)
    _keys: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    @asynccontextmanager
    async def gateway(
        self, *, drain_seconds: float = 2.0, allowance: Allowance = DEFAULT_ALLOWANCE, port: int = 0
    ) -> AsyncIterator[int]:
        """One more gateway inside the block; gives its port."""
        listener = Listener(host="127.0.0.1", port=port, reflection=True)
        async with gateway(
            self.database,
            self.broker,
            self.vault,
            self.guard,
            listener,
            allowance=allowance,
            lease_seconds=self.lease_seconds,
            drain_seconds=drain_seconds,
        ) as running:
            yield running.port

    @asynccontextmanager
    async def reviewer(
        self,
        engine: Engine,
        *,
        apart: EngineApart | None = None,
        terms: Terms = NO_TERMS,
        reuse_seconds: float = 0.0,
        slots: int = 4,
        drain_seconds: float = 0.0,
        lease_database: Database | None = None,
    ) -> AsyncIterator[Reviewer]:
        """A reviewer inside the block; without `apart`, suspects run like all others."""
        async with reviewer(
            self.database,
            lease_database or self.database,
            self.broker,
            engine,
            apart.opened if apart else lambda: nullcontext(engine),
            guard=self.guard,
            image_processes=1,
            terms=terms,
            reuse_seconds=reuse_seconds,
            slots=slots,
            lease_seconds=self.lease_seconds,
            drain_seconds=drain_seconds,
        ) as running:
            yield running

    async def key(self, role: Role, *, user_id: str = "", tenant_id: uuid.UUID | None = None) -> str:
        """A key, the same one on every call with the same arguments."""
        wanted = (role, user_id, tenant_id)
        if wanted not in self._keys:
            async with self.database.begin() as tx:
                self._keys[wanted] = await tenants.create_key(
                    tx, tenant_id or self.tenant_id, name=f"a {role} key", role=role, user_id=user_id
                )
        return self._keys[wanted]

    async def caller(self, role: Role = Role.ADMIN, *, user_id: str = "", tenant_id: uuid.UUID | None = None) -> Caller:
        """Somebody with a key of that role."""
        return await self.holder(await self.key(role, user_id=user_id, tenant_id=tenant_id))

    async def holder(self, key: str | None, *, port: int = 0) -> Caller:
        """Somebody with that key, at that gateway (default: the first)."""
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port or self.port}")
        return Caller(await self._open.enter_async_context(channel), key)

    async def revoke(self, caller: Caller) -> None:
        """End a key."""
        async with self.database.begin() as tx:
            key = await tenants.find_key(tx, str(caller.key))
            assert key is not None
            await tenants.revoke_key(tx, key.id)
        self._keys = {wanted: known for wanted, known in self._keys.items() if known != caller.key}

    async def close_channels(self) -> None:
        """Hang up."""
        await self._open.aclose()


@asynccontextmanager
async def running_system(
    database: Database, broker: Broker | None = None, *, lease_seconds: float = 3.0, broker_is_up: bool = True
) -> AsyncIterator[System]:
    """A tenant and one gateway inside the block; reviewers are the test's."""
    broker = broker or MemoryBroker()
    outbox = Outbox(database, broker)
    system = System(
        database=database,
        broker=broker,
        lease_seconds=lease_seconds,
        guard=Guard(allow_private=False, allow_http=False),
        vault=Vault.from_text(new_key()),
        tenant_id=await makers.make_tenant(database),
    )
    if broker_is_up:
        await broker.start()
    outbox.start()
    try:
        async with system.gateway() as system.port:
            yield system
            await system.close_channels()
    finally:
        await outbox.stop()
        await broker.close()
