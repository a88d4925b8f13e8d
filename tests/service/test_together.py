"""What callers and workers ask for at once is written together; each is answered as if it had been alone."""

import asyncio
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from gateway import submissions
from imprimatur.gathering import Gathering
from imprimatur.storage import acceptance, claims
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_service_pb2 import BatchSubmitJobsRequest, BatchSubmitJobsResult, ListJobsRequest
from imprimatur.wire.jobs import job_to_wire
from reviewer import worker
from tests import makers
from tests.contract.leasing import lock
from tests.patience import PATIENCE_SECONDS
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_postgresql, on_sqlite, submission
from tests.service.test_reviewing import kinds, outcomes


class Turns:
    """Watches what is gathered, and holds up a transaction until a test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: defaultdict[str, list[asyncio.Future[Any]]] = defaultdict(list)  #: by what is gathered
        self.batches: list[list[Any]] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self._monkeypatch = monkeypatch
        put = Gathering.put

        def watched(gathering: Gathering[Any, Any], item: Any) -> "asyncio.Future[Any]":
            answer = put(gathering, item)
            self.waiting[gathering._name].append(answer)
            return answer

        monkeypatch.setattr(Gathering, "put", watched)

    def hold_up(self, module: Any, name: str, items_at: int) -> None:
        """Let the storage's function `name` do its work, and then wait for the gate with its transaction open.

        Args:
            items_at: which of its arguments the items are.
        """
        work: Callable[..., Awaitable[Any]] = getattr(module, name)

        async def held_up(*arguments: Any, **options: Any) -> Any:
            self.batches.append(list(arguments[items_at]))
            done = await work(*arguments, **options)
            self.begun.set()
            await self.gate.wait()
            self.check(arguments[items_at])
            return done

        self._monkeypatch.setattr(module, name, held_up)

    def check(self, items: Sequence[Any]) -> None:
        """Raises what a test has the storage raise."""

    async def until_waiting(self, what: str, number: int) -> None:
        async def arrived() -> bool:
            return len(self.waiting[what]) >= number

        try:
            await makers.until(arrived)
        except AssertionError:
            self.gate.set()  # else what is held up would hold up the end of the test
            raise


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return Turns(monkeypatch)


# --- submits ---------------------------------------------------------------------------------------------


async def listed(me: Caller) -> list[str]:
    found = (await me.jobs.ListJobs(ListJobsRequest(page_size=500))).jobs
    return sorted(job.subject_id for job in found)


async def test_a_hundred_submits_at_once_take_two_transactions(system: System, me: Caller, turns: Turns) -> None:
    turns.hold_up(acceptance, "submit", 1)
    names = [f"cr-{number:02}" for number in range(100)]
    calls = [asyncio.create_task(me.submit(engines.APPROVE, name, request_id=name)) for name in names]
    await turns.until_waiting("submits", 100)
    turns.gate.set()
    answers = await asyncio.gather(*calls)
    assert [job.subject_id for job in answers] == names
    assert len({job.id for job in answers}) == 100
    assert len(turns.batches) == 2
    assert sum(map(len, turns.batches)) == 100
    assert await listed(me) == names
    assert await me.get(answers[50]) == answers[50]


async def test_callers_of_several_tenants_who_are_written_together_are_answered_apart(
    system: System, me: Caller, turns: Turns
) -> None:
    turns.hold_up(acceptance, "submit", 1)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database, "globex"))
    first = asyncio.create_task(me.submit(engines.APPROVE, "first"))
    await turns.begun.wait()
    mine, theirs, clash = (
        one.jobs.SubmitJob(submission(headline, "cr-1", request_id="r-1"))
        for one, headline in ((me, "approve"), (stranger, "approve"), (me, "else"))
    )
    await turns.until_waiting("submits", 4)
    turns.gate.set()
    await first
    refused, my_job, their_job = await refusal(clash), (await mine).job, (await theirs).job
    assert refused.reason == "REQUEST_ID_REUSED"
    assert refused.metadata["job_id"] == my_job.id != their_job.id
    assert (their_job.tenant, my_job.tenant == "globex") == ("globex", False)
    assert len(turns.batches) == 2
    assert (await listed(me), await listed(stranger)) == (["cr-1", "first"], ["cr-1"])


def poisoned(items: Sequence[Any]) -> None:
    if "poison" in {new.subject_id for new in items}:
        raise ValueError("no database takes this")


async def test_a_submit_that_no_database_takes_fails_alone(
    system: System, me: Caller, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "check", poisoned)
    turns.hold_up(acceptance, "submit", 1)
    first = asyncio.create_task(me.submit(engines.APPROVE, "a first"))
    await turns.begun.wait()
    names = ["b", "c", "poison", "d"]
    calls = {name: me.jobs.SubmitJob(submission("approve", name)) for name in names}
    await turns.until_waiting("submits", 5)
    turns.gate.set()
    assert (await refusal(calls.pop("poison"))).code == grpc.StatusCode.INTERNAL
    await first
    for call in calls.values():
        await call
    assert sorted(map(len, turns.batches)) == [1, 1, 1, 1, 1, 4]
    assert await listed(me) == ["a first", "b", "c", "d"]


async def test_each_of_a_batch_is_answered_for_itself_when_no_database_takes_one_of_them(
    system: System, me: Caller, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "check", poisoned)
    turns.hold_up(acceptance, "submit", 1)
    turns.gate.set()
    names = ["a", "b", "poison", "d", "e"]
    batch = BatchSubmitJobsRequest(items=[submission("approve", name) for name in names])
    results = (await me.jobs.BatchSubmitJobs(batch)).results
    assert [one.accepted.job.subject_id for one in results] == ["a", "b", "", "d", "e"]
    assert results[2].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert "incident" in results[2].error.message
    assert await listed(me) == ["a", "b", "d", "e"]


@on_postgresql  # on SQLite nobody else could write meanwhile
async def test_whoever_submits_beside_a_key_that_others_keep_locked_is_answered(system: System, me: Caller) -> None:
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database, "globex"))
    async with system.database.begin() as tx:
        holder = makers.new_job(system.tenant_id, key="creative:held", subject_id="holder")
        await acceptance.submit(tx, [holder], release_at_once=0)
        waiting = asyncio.create_task(me.submit(engines.APPROVE, "held"))
        free = BatchSubmitJobsRequest(items=[submission("approve", name) for name in ("a", "held", "b")])
        batch = asyncio.create_task(batch_of(me, free))
        await asyncio.gather(*(stranger.submit(engines.APPROVE, f"theirs {number}") for number in range(3)))
        await makers.until(lambda: stored(me, "a", "b"))
        assert not waiting.done()
        assert not batch.done()
    assert (await waiting).subject_id == "held"
    assert [one.accepted.job.subject_id for one in await batch] == ["a", "held", "b"]
    assert (await listed(stranger)) == ["theirs 0", "theirs 1", "theirs 2"]


@on_sqlite
async def test_whoever_sends_many_at_once_leaves_others_their_turns(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    checked: list[int] = []
    answered: list[int] = []

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def noting(work: Callable[..., Any], turns: list[int]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            turns.append(turn)
            return work(*arguments)

        return noted

    monkeypatch.setattr(submissions, "new_job", noting(submissions.new_job, checked))
    monkeypatch.setattr("gateway.jobs.job_to_wire", noting(job_to_wire, answered))
    others = asyncio.create_task(take_turns())
    results = await batch_of(me, BatchSubmitJobsRequest(items=[submission() for _ in range(100)]))
    others.cancel()
    assert all(one.HasField("accepted") for one in results)
    assert (len(checked), len(answered)) == (100, 100)
    assert max(Counter(checked).values()) < 50
    assert max(Counter(answered).values()) < 50


async def batch_of(me: Caller, request: BatchSubmitJobsRequest) -> Sequence[BatchSubmitJobsResult]:
    return (await me.jobs.BatchSubmitJobs(request)).results


async def stored(me: Caller, *names: str) -> bool:
    return {*names} <= {*await listed(me)}


async def test_a_caller_who_hangs_up_before_its_turn_leaves_no_job(system: System, me: Caller, turns: Turns) -> None:
    turns.hold_up(acceptance, "submit", 1)
    first = asyncio.create_task(me.submit(engines.APPROVE, "first"))
    await turns.begun.wait()
    impatient = me.jobs.SubmitJob(submission("approve", "impatient"))
    await turns.until_waiting("submits", 2)
    impatient.cancel()

    async def taken_back() -> bool:
        return turns.waiting["submits"][1].cancelled()

    await makers.until(taken_back)
    patient = asyncio.create_task(me.submit(engines.APPROVE, "patient"))
    await turns.until_waiting("submits", 3)
    turns.gate.set()
    await asyncio.gather(first, patient)
    assert await listed(me) == ["first", "patient"]


async def test_a_caller_who_hangs_up_while_its_job_is_written_finds_it_by_its_request_id(
    system: System, me: Caller, turns: Turns
) -> None:
    turns.hold_up(acceptance, "submit", 1)
    impatient = me.jobs.SubmitJob(submission("approve", "impatient", request_id="r-1"))
    await turns.begun.wait()
    impatient.cancel()

    async def left() -> bool:
        return turns.waiting["submits"][0].cancelled()

    await makers.until(left)
    turns.gate.set()
    again = await me.jobs.SubmitJob(submission("approve", "impatient", request_id="r-1"))
    assert again.already_accepted
    assert await listed(me) == ["impatient"]


# --- claims and ends -------------------------------------------------------------------------------------


@on_postgresql  # on SQLite nothing is released while a claim holds the only writer
async def test_what_a_worker_claims_at_once_is_claimed_together(
    system: System, me: Caller, engine: ScriptedEngine, turns: Turns
) -> None:
    submitted = [await me.submit(engines.APPROVE, f"cr-{number}") for number in range(4)]
    turns.hold_up(claims, "claim", 2)
    async with system.reviewer(engine, slots=16):  # which has four messages of a queue in hand at most
        await turns.until_waiting("claims", 4)
        turns.gate.set()
        for job in submitted:
            assert outcomes(await me.until(job, SUCCEEDED)) == ["SUCCEEDED"]
    assert len(turns.batches) <= 2
    assert sum(map(len, turns.batches)) == 4


@on_postgresql  # on SQLite nobody else could write meanwhile
async def test_a_worker_that_stops_does_not_wait_for_ever_for_its_claims(
    system: System, me: Caller, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LAST_CLAIMS_SECONDS", 0.05)
    turns.hold_up(claims, "claim", 2)
    async with system.reviewer(ScriptedEngine()):
        await me.submit(engines.APPROVE)
        await turns.begun.wait()
    assert turns.waiting["claims"][0].cancelled()
    turns.gate.set()


async def test_a_worker_that_stops_while_it_claims_leaves_no_job_with_nobody(
    system: System, me: Caller, engine: ScriptedEngine, turns: Turns
) -> None:
    turns.hold_up(claims, "claim", 2)
    async with system.reviewer(ScriptedEngine()):
        job = await me.submit(engines.APPROVE)
        await turns.begun.wait()
        asyncio.get_running_loop().call_later(0.1, turns.gate.set)
    async with system.reviewer(engine):
        done = await me.until(job, SUCCEEDED)
    assert "lease_lost" not in await kinds(me, done)
    assert outcomes(done)[-1] == "SUCCEEDED"
    assert done.attempts == 1


# --- jobs that others keep locked --------------------------------------------------------------------------


@on_postgresql
async def test_a_job_that_others_keep_locked_is_claimed_and_ended_when_they_let_it_go_and_all_others_meanwhile(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    names = ["unclaimed", "a", "unended", "b"]
    unclaimed, early, unended, late = [await me.submit(engines.GATE, name) for name in names]
    for name in names:
        if name != "unended":
            engine.open(name)
    async with system.database.begin() as tx:
        await lock(tx, uuid.UUID(unclaimed.id))
        async with system.reviewer(engine, slots=16, drain_seconds=PATIENCE_SECONDS):
            for job in (early, late):
                await me.until(job, SUCCEEDED)
            await me.until(unended, RUNNING)
            await lock(tx, uuid.UUID(unended.id))
            engine.open("unended")
            other = await me.submit(engines.APPROVE)
            await me.until(other, SUCCEEDED)
            assert (await me.get(unended)).state == RUNNING
            await tx.connection.commit()
            for job in (unclaimed, unended):
                assert outcomes(await me.until(job, SUCCEEDED)) == ["SUCCEEDED"]
