"""What a gateway puts up for claiming and when, and that others in trouble do not keep it from that."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, update

from gateway import recovery
from gateway.dispatcher import Dispatcher
from gateway.recovery import Recovery
from imprimatur.broker.memory import MemoryBroker
from imprimatur.errors import Unavailable
from imprimatur.job import Job, State
from imprimatur.storage import clock, dispatch, turns, workers
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.dispatch import Work
from imprimatur.storage.schema import gateways, jobs, policies, tenants
from imprimatur.storage.schema import workers as worker_rows
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import on_postgresql, on_sqlite, running_system

#: No pass comes by itself.
NEVER_SECONDS = 3600.0


async def put_up(database: Database) -> int:
    counted = select(func.count()).where(jobs.c.state == State.QUEUED, jobs.c.released_at.is_not(None))
    async with database.read() as reader:
        return int((await reader.connection.execute(counted)).scalar_one())


async def limit_all(database: Database, number: int) -> None:
    async with database.begin() as tx:
        await tx.connection.execute(update(tenants).values(running_jobs=number))


async def live_slots(database: Database, slots: int) -> None:
    async with database.begin() as tx:
        await workers.seen(tx, makers.worker(slots=slots), running=0)


@contextmanager
def taken(*dispatchers: Dispatcher, wanted: int) -> Iterator[int]:
    """What submits at all these gateways get together."""
    with ExitStack() as stack:
        yield sum(stack.enter_context(one.room_for(wanted)) for one in dispatchers)


# --- room ------------------------------------------------------------------------------------------------


async def test_a_gateway_alone_gives_all_the_room_to_submits(database: Database) -> None:
    await live_slots(database, 16)
    alone = Dispatcher(database)
    await alone.pass_once()
    with taken(alone, wanted=100) as number:
        assert number == 16 + 1


@pytest.mark.parametrize("number", [2, 4, 9])
async def test_several_gateways_together_put_up_no_more_than_one_would(database: Database, number: int) -> None:
    await live_slots(database, 32)
    several = [Dispatcher(database) for _ in range(number)]
    for one in several:
        await one.pass_once()  # from here on it is known to the others
    for one in several:
        await one.pass_once()
    with taken(*several, wanted=1) as first:
        assert first > 0, "few submits need not wait"
        with taken(*several, wanted=100) as more:
            assert first + more <= 32 + 1


@on_postgresql
async def test_a_gateway_that_fell_silent_has_no_share_of_the_room(database: Database) -> None:
    await live_slots(database, 16)
    one = Dispatcher(database)
    await Dispatcher(database).pass_once()
    async with database.begin() as tx:
        await tx.connection.execute(update(gateways).values(seen_at=clock.after(-6.0)))
    await one.pass_once()
    with taken(one, wanted=100) as number:
        assert number == 16 + 1


async def test_who_waits_at_its_limit_closes_the_way_for_nobody_else(database: Database) -> None:
    await live_slots(database, 16)
    for tenant in (await makers.make_tenant(database), await makers.make_tenant(database)):
        await makers.submit(database, makers.new_job(tenant), makers.new_job(tenant), release_at_once=1)
    await limit_all(database, 1)
    one = Dispatcher(database)
    assert await one.pass_once() is None, "it need not look more often than at rest"
    assert await put_up(database) == 2
    with taken(one, wanted=100) as number:
        assert number == 16 + 1 - 2


async def test_what_could_start_if_there_were_room_comes_before_all_that_is_submitted_later(
    database: Database,
) -> None:
    await live_slots(database, 4)
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(6)), release_at_once=0)
    one = Dispatcher(database)
    pause = await one.pass_once()
    assert pause is not None
    assert await put_up(database) == 4 + 1
    with taken(one, wanted=1) as number:
        assert number == 0


@on_postgresql
async def test_what_another_put_up_before_the_lock_was_ours_is_reckoned_with(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(30)), release_at_once=0)
    one, another = Dispatcher(database), Dispatcher(database)
    is_mine = dispatch.is_mine

    async def after_the_other(tx: Transaction, work: Work) -> bool:
        """Between what was counted before and the lock, the other's whole pass."""
        monkeypatch.setattr(dispatch, "is_mine", is_mine)
        await another.pass_once()
        return await is_mine(tx, work)

    for slots in (4, 3):  # of one worker, and then of two; in the second round something is held back already
        await live_slots(database, slots)
        monkeypatch.setattr(dispatch, "is_mine", after_the_other)
        await one.pass_once()
    assert await put_up(database) == 4 + 3 + 1


async def test_who_has_something_to_put_up_counts_once_and_who_has_not_waits_for_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live_slots(database, 4)
    tenant = await makers.make_tenant(database)
    done: list[str] = []
    for name in ("is_mine", "backlog"):
        monkeypatch.setattr(dispatch, name, noted(done, name, getattr(dispatch, name)))
    one = Dispatcher(database)
    await one.pass_once()
    assert done == ["backlog"]
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(6)), release_at_once=0)
    await one.pass_once()
    done.clear()
    await one.pass_once()
    assert done == ["is_mine", "backlog"]


def noted(done: list[str], name: str, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def note(*given: object, **named: object) -> Any:
        done.append(name)
        return await work(*given, **named)

    return note


# --- waking ----------------------------------------------------------------------------------------------


async def test_jobs_of_a_tenant_with_a_limit_wait_for_no_pass(
    database: Database, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when they are submitted nor when another one makes room for them."""
    monkeypatch.setitem(Dispatcher.__init__.__kwdefaults__ or {}, "pass_seconds", NEVER_SECONDS)
    async with running_system(database) as system, system.reviewer(engine):
        me = await system.caller()
        await limit_all(database, 1)
        submitted = [await me.submit(engines.APPROVE, str(number)) for number in range(3)]
        for job in submitted:
            await me.until(job, SUCCEEDED)


# --- trouble ---------------------------------------------------------------------------------------------


@on_sqlite
async def test_jobs_of_silent_workers_are_queued_again_though_nothing_can_be_put_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise Unavailable("the look took too long")

    monkeypatch.setattr(turns, "next_ones", fail)
    async with running_system(database, lease_seconds=0.3) as system:
        held = await makers.running(database, system.tenant_id, lease_seconds=0.0)
        await makers.submit(database, makers.new_job(system.tenant_id), release_at_once=0)

        async def is_queued() -> bool:
            return (await makers.find(database, system.tenant_id, held.job_id)).state is State.QUEUED

        await makers.until(is_queued)


@asynccontextmanager
async def giving_up(database: Database) -> AsyncIterator[None]:
    """A gateway's recovery at work."""
    at_work = Recovery(database, MemoryBroker(), Dispatcher(database), pass_seconds=0.01)
    at_work.start()
    try:
        yield
    finally:
        await at_work.stop()


async def overdue(database: Database, tenant: UUID, number: int = 1) -> Job:
    """The last of so many jobs whose deadline has passed."""
    new = [makers.new_job(tenant, deadline_seconds=0.0) for _ in range(number)]
    return (await makers.submit(database, *new, release_at_once=0))[-1]


async def until_given_up(database: Database, job: Job) -> None:
    async def is_given_up() -> bool:
        return (await makers.find(database, job.tenant_id, job.id)).state is State.AWAITING_REVIEW

    await makers.until(is_given_up)


async def test_jobs_that_cannot_be_given_up_hide_nobody_elses(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_SWEEP_LIMIT", 2)
    broken, sound = await makers.make_tenant(database), await makers.make_tenant(database)
    async with database.begin() as tx:
        later = {"tenant_id": broken, "version": 2, "document": {"of": "a later version"}, "created_at": clock.now()}
        await tx.connection.execute(insert(policies).values(later))
        await tx.connection.execute(update(tenants).where(tenants.c.id == broken).values(policy_version=2))
    stuck = await overdue(database, broken, 5)
    first = await overdue(database, sound)
    async with giving_up(database):
        await until_given_up(database, first)
        await until_given_up(database, await overdue(database, sound))  # from the beginning again
    assert (await makers.find(database, broken, stuck.id)).state is State.QUEUED


@on_postgresql
async def test_who_has_its_tenant_locked_keeps_nobody_elses_jobs_from_being_given_up(
    database: Database, database_url: str
) -> None:
    locked, free = await makers.make_tenant(database), await makers.make_tenant(database)
    await overdue(database, locked)
    job = await overdue(database, free)
    patient = Database(database_url, command_timeout_seconds=NEVER_SECONDS)
    try:
        async with database.begin() as tx:
            await tx.connection.execute(select(tenants).where(tenants.c.id == locked).with_for_update())
            async with giving_up(patient):
                await until_given_up(database, job)
    finally:
        await patient.close()


async def test_workers_and_gateways_silent_for_an_hour_are_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(database)
    for age in (3700.0, 3500.0):
        async with database.begin() as tx:
            await workers.seen(tx, makers.worker(f"{age}"), running=0)
            await tx.connection.execute(
                update(worker_rows).where(worker_rows.c.name == f"{age}").values(seen_at=clock.after(-age))
            )
    await dispatcher.pass_once()
    async with database.begin() as tx:
        await tx.connection.execute(update(gateways).values(seen_at=clock.after(-3700.0)))
    monkeypatch.setattr(recovery, "_FORGET_EVERY_SECONDS", -1.0)
    await Recovery(database, MemoryBroker(), dispatcher).pass_once()
    async with database.read() as reader:
        assert list((await reader.connection.execute(select(worker_rows.c.name))).scalars()) == ["3500.0"]
        assert (await reader.connection.execute(select(gateways))).all() == []
