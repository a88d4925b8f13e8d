"""The users of a world under attack: they submit, watch every job at either gateway, cancel, and decide; and they
remember what they were told, for `audit` to hold the database against.
"""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
from grpc.aio import AioRpcError

from imprimatur.client import Client, ClientError, is_terminal, submission
from imprimatur.client.channel import open_channel
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, Creative
from imprimatur.v1.job_pb2 import (
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_CANCELLED,
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PRIORITY_NORMAL,
    Job,
)
from imprimatur.v1.job_service_pb2 import SubmitJobRequest, WatchJobRequest
from imprimatur.v1.job_service_pb2_grpc import JobServiceStub
from tests.faults.scripts import Kind, Script
from tests.faults.world import World

if TYPE_CHECKING:  # it exists for type checkers alone
    from imprimatur.v1.job_service_pb2_grpc import JobServiceAsyncStub

#: The label that tells one campaign's jobs from another's.
LABEL = "campaign"
_PRIORITIES = (PRIORITY_HIGH, PRIORITY_NORMAL, PRIORITY_NORMAL, PRIORITY_LOW)
_PAUSE_SECONDS = 0.2
_PROBE_SECONDS = 60.0
_CALL_SECONDS = 15.0


@dataclass(kw_only=True)
class Told:
    """What the users know of one accepted job."""

    script: Script
    job_id: str
    by_client: bool = False  #: watched through the public client, else by raw streams
    seen: int = 0  #: the newest version
    end: Job | None = None  #: as a stream showed it
    cancelled: bool = False  #: the caller was told so
    decided: bool = False  #: a person was told so


@dataclass(kw_only=True)
class Load:
    """One campaign's users."""

    world: World
    rng: random.Random
    campaign: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked: dict[str, Script] = field(default_factory=dict)  #: by request id, before it is submitted
    told: dict[str, Told] = field(default_factory=dict)  #: by job id, once it was accepted
    in_flight: dict[str, SubmitJobRequest] = field(default_factory=dict)  #: by request id, until it is answered
    unanswered: int = 0  #: submits whose answer never came
    regressions: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    _stubs: "list[JobServiceAsyncStub]" = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self, rate_per_second: float) -> AsyncIterator[None]:
        """Submit about so many jobs a second inside the block; afterwards none, while the users stay."""
        submitting = asyncio.create_task(self._keep_submitting(rate_per_second))
        try:
            yield
        finally:
            submitting.cancel()
            await asyncio.gather(submitting, return_exceptions=True)

    async def probe(self) -> float:
        """Seconds until a job submitted now has ended, and its watcher knows."""
        began = time.monotonic()
        told = await self.submit(Script(kind=Kind.APPROVE, seconds=0.0))
        async with asyncio.timeout(_PROBE_SECONDS):
            while told is None or told.end is None:
                if told is None:
                    told = await self.submit(Script(kind=Kind.APPROVE, seconds=0.0))
                await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def submit(self, script: Script, *, at: int | None = None) -> Told | None:
        """Submit one, `at` this gateway or at whichever comes next; None when no answer came."""
        request_id = uuid.uuid4().hex
        self.asked[request_id] = script
        request = submission(
            Creative(creative_id=request_id, headline=script.headline),
            request_id=request_id,
            labels={LABEL: self.campaign},
            priority=self.rng.choice(_PRIORITIES),
            deadline=timedelta(minutes=10),
            callback_url=self.world.receiver.url(),
        )
        self.in_flight[request_id] = request
        try:
            job = await (self._client.submit(request) if at is None else self._submit_at(at, request))
        except ClientError as error:
            self.unanswered += 1
            self._note("a submit", error)
            return None
        finally:
            del self.in_flight[request_id]
        told = self.told[job.id] = Told(script=script, job_id=job.id, by_client=len(self.told) % 2 == 0)
        self._start(self._watch_by_client(told) if told.by_client else self._watch(told))
        if script.kind is Kind.CANCEL:
            self._start(self._cancel(told))
        return told

    async def repeat(self, request: SubmitJobRequest, *, at: int) -> None:
        """Submit what was asked for already, as who has waited long enough for an answer."""
        try:
            await self._submit_at(at, request)
        except ClientError as error:
            self._note("a repeated submit", error)

    async def _submit_at(self, at: int, request: SubmitJobRequest) -> Job:
        call = self._stubs[at].SubmitJob(
            request, metadata=(("authorization", f"Bearer {self.world.api_key}"),), timeout=_CALL_SECONDS
        )
        try:
            return (await call).job
        except AioRpcError as error:
            raise ClientError.of(error) from error

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["Load"]:
        """Connections to every gateway inside the block; the users leave at its end."""
        async with AsyncExitStack() as stack:
            targets = self.world.targets
            client = Client(f"ipv4:{','.join(targets)}", api_key=self.world.api_key, deadline_seconds=_CALL_SECONDS)
            self._client = await stack.enter_async_context(client)
            channels = [await stack.enter_async_context(open_channel(target)) for target in targets]
            self._stubs = [JobServiceStub(channel) for channel in channels]
            try:
                yield self
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.surprises.append(f"a user failed: {fault!r}")

    async def _keep_submitting(self, rate_per_second: float) -> None:
        async def one() -> None:
            await self.submit(Script.drawn(self.rng))

        while True:
            await asyncio.sleep(self.rng.expovariate(rate_per_second))
            self._start(one())

    # --- watch -------------------------------------------------------------------------------------------

    async def _watch(self, told: Told) -> None:
        """Follow a job over whichever gateway comes next, up to its terminal state."""
        stubs = self._in_turn()
        while told.end is None:
            stub = next(stubs)
            request = WatchJobRequest(job_id=told.job_id, after_version=told.seen)
            try:
                async for response in stub.WatchJob(
                    request, metadata=(("authorization", f"Bearer {self.world.api_key}"),)
                ):
                    self._see(told, response.job)
                if told.end is None:
                    self.regressions.append(f"{told.job_id}: a stream ended well before the job did")
                    return
            except AioRpcError as error:
                self._note(f"a watch of {told.job_id}", ClientError.of(error))
                await asyncio.sleep(_PAUSE_SECONDS)

    def _in_turn(self) -> "Iterator[JobServiceAsyncStub]":
        """Every gateway in turn for one watcher, from any of them on."""
        first = self.rng.randrange(len(self._stubs))
        return itertools.cycle(self._stubs[first:] + self._stubs[:first])

    async def _watch_by_client(self, told: Told) -> None:
        """Follow a job as users do; the client itself must outlive whatever strikes."""
        try:
            async with aclosing(self._client.watch(told.job_id)) as versions:
                async for job in versions:
                    self._see(told, job)
        except ClientError as error:
            self.surprises.append(f"the client gave up its watch of {told.job_id}: {error!r}")
            return
        if told.end is None:
            self.regressions.append(f"{told.job_id}: the client's watch ended well before the job did")

    def _see(self, told: Told, job: Job) -> None:
        again = not told.by_client and job.version == told.seen and is_terminal(job)  # a resumed stream shows it again
        if told.end is not None or not (job.version > told.seen or again):
            self.regressions.append(f"{told.job_id}: version {job.version} after {told.seen}")
        told.seen = job.version
        if is_terminal(job):
            told.end = job
        elif job.state == JOB_STATE_AWAITING_REVIEW and told.script.kind is Kind.HUMAN and not told.decided:
            self._start(self._decide(told))

    # --- cancel and decide -------------------------------------------------------------------------------

    async def _cancel(self, told: Told) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 1.5 * told.script.seconds))

        async def once() -> None:
            told.cancelled = (await self._client.cancel(told.job_id)).state == JOB_STATE_CANCELLED

        await self._insist(once, "JOB_FINISHED")

    async def _decide(self, told: Told) -> None:
        async def once() -> None:
            await self._client.decide(told.job_id, DECISION_APPROVED, "seen, and fine", reviewer="ann")

        await self._insist(once, "ALREADY_DECIDED")
        told.decided = True

    async def _insist(self, call: Callable[[], Coroutine[None, None, None]], done_already: str) -> None:
        while True:
            try:
                return await call()
            except ClientError as error:
                if error.reason == done_already:
                    return None
                self._note("a cancellation or decision", error)
                await asyncio.sleep(_PAUSE_SECONDS)

    def _note(self, call: str, error: ClientError) -> None:
        """A system under attack may say "try again", or nothing in time. Any other refusal is a defect."""
        if not error.passing and error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self.surprises.append(f"{call} was answered {error!r}")
