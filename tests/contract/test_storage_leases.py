"""Leases: who holds a job, who lost it, and which workers live."""

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from imprimatur.identity import new_id
from imprimatur.job import MOST_LOSSES, AttemptOutcome, Claim, Happening, JobType, State
from imprimatur.storage import claims, clock, dispatch, jobs, schema, workers
from imprimatur.storage.attempts import Spent
from imprimatur.storage.claims import Held, Renewal
from imprimatur.storage.database import Database
from imprimatur.storage.workers import Worker
from tests import makers
from tests.contract.leasing import (
    attempts_of,
    lock,
    lose,
    make_due,
    renew,
    renewal_of,
    sweep,
    sweep_until_lost,
)

#: On SQLite whoever writes is alone.
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
NOBODY: frozenset[Held] = frozenset()


async def test_renewing_returns_only_what_is_still_held(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    kept, cancelled, done, lost = [await makers.running(database, tenant) for _ in range(4)]
    await makers.cancel(database, await makers.find(database, tenant, cancelled.job_id))
    await makers.conclude(database, done, Happening.COMPLETED)
    foreign = [replace(lost, claim_no=lost.claim_no + 1), replace(lost, job_id=new_id())]
    assert await renewal_of(database, makers.worker(), *foreign) == Renewal(renewed=NOBODY, locked_out=NOBODY)
    assert await renew(database, kept, cancelled, done) == {(kept.job_id, kept.claim_no)}
    assert await renew(database) == NOBODY


async def test_a_renewed_lease_does_not_run_out(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant, lease_seconds=0.0)
    assert await renew(database, claim) == {(claim.job_id, claim.claim_no)}
    assert await sweep(database) == []


async def two_running(database: Database, worker: Worker, *, lease_seconds: float) -> list[Claim]:
    tenant = await makers.make_tenant(database)
    submitted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(2)))
    claimed = [await makers.claim(database, job, by=worker, lease_seconds=lease_seconds) for job in submitted]
    return [one for one in claimed if one is not None]


def pairs(*held: Claim) -> frozenset[Held]:
    return frozenset((one.job_id, one.claim_no) for one in held)


@on_postgresql
async def test_who_keeps_a_job_locked_neither_takes_it_from_its_worker_nor_keeps_other_leases_from_being_renewed(
    database: Database,
) -> None:
    worker = makers.worker()
    locked, other = await two_running(database, worker, lease_seconds=30.0)
    async with database.begin() as tx:
        await lock(tx, locked.job_id)
        renewal = await renewal_of(database, worker, locked, other)
    assert renewal == Renewal(renewed=pairs(other), locked_out=pairs(locked))
    async with database.begin() as tx:
        assert await jobs.cancel(tx, jobs.Owner(tenant_id=locked.tenant_id), locked.job_id, reason="")
        assert (await renewal_of(database, worker, locked)).locked_out == pairs(locked)
    assert await renewal_of(database, worker, locked, other) == Renewal(renewed=pairs(other), locked_out=NOBODY)


@on_postgresql
async def test_a_lease_that_ran_out_while_its_job_was_locked_is_not_swept_before_its_worker_could_renew_it(
    database: Database,
) -> None:
    worker = makers.worker()
    locked, other = await two_running(database, worker, lease_seconds=0.0)
    async with database.begin() as tx:
        await lock(tx, locked.job_id)
        assert await sweep(database) == [other.job_id]
        await renewal_of(database, worker, locked)
    assert await sweep(database) == []
    await lose_nearly_all(database, locked.job_id)
    assert await lost_too_often(database) == []
    assert await renewal_of(database, worker, locked) == Renewal(renewed=pairs(locked), locked_out=NOBODY)
    assert await sweep(database) == []


@on_postgresql
async def test_a_worker_that_is_locked_out_and_dies_loses_its_jobs_as_others_do(database: Database) -> None:
    worker = makers.worker()
    locked, _ = await two_running(database, worker, lease_seconds=0.0)
    async with database.begin() as tx:
        await lock(tx, locked.job_id)
        await renewal_of(database, worker, locked, lease_seconds=0.0)
    assert len(await sweep_until_lost(database, 2)) == 2


async def lose_nearly_all(database: Database, job_id: uuid.UUID) -> None:
    async with database.begin() as tx:
        row = schema.jobs.c.id == job_id
        await tx.connection.execute(update(schema.jobs).where(row).values(losses=MOST_LOSSES - 1))


async def lost_too_often(database: Database) -> list[uuid.UUID]:
    async with database.read() as reader:
        hopeless, of_type = dispatch.LOST_TOO_OFTEN, JobType.CREATIVE_REVIEW
        return (await dispatch.tenants_with(reader, hopeless, of_type, limit=10)).tenants


async def test_a_job_whose_lease_ran_out_is_queued_again_and_spends_no_attempt(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    await lose(database, job, release_no=1)
    queued = await makers.find(database, tenant, job.id)
    assert (queued.state, queued.attempts, queued.version) == (State.QUEUED, 0, 3)
    [attempt] = await attempts_of(database, job.id)
    assert attempt.outcome is AttemptOutcome.LOST
    assert attempt.error is not None
    assert attempt.error.code == "worker_lost"
    assert attempt.finished_at is not None
    assert await sweep(database) == []
    assert await makers.release(database) == 1


async def test_only_as_many_lost_jobs_as_asked_for_are_swept_at_once(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for _ in range(5):
        await makers.running(database, tenant, lease_seconds=0.0)

    async def all_expired() -> bool:
        async with database.read() as reader:
            now = await clock.present(reader)
        return now > started + timedelta(milliseconds=5)

    async with database.read() as reader:
        started = await clock.present(reader)
    await makers.until(all_expired)
    assert [len(await sweep(database, limit=2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_two_sweepers_never_sweep_the_same_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = [await makers.running(database, tenant, lease_seconds=0.0) for _ in range(12)]
    lost = await sweep_until_lost(database, 0)

    async def swept() -> bool:
        for batch in await asyncio.gather(*(sweep(database, limit=5) for _ in range(3))):
            lost.extend(batch)
        return len(lost) >= len(held)

    await makers.until(swept)
    assert sorted(lost) == sorted(claim.job_id for claim in held)


async def test_losses_are_counted_apart_and_claim_numbers_only_rise(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    for number in range(1, MOST_LOSSES):
        claim = await lose(database, job, release_no=number)
        assert (claim.claim_no, claim.losses, claim.attempts) == (number, number - 1, 0)
        await make_due(database, job.id)
        await makers.release(database)
    assert [attempt.claim_no for attempt in await attempts_of(database, job.id)] == list(range(1, MOST_LOSSES))


async def test_a_suspect_that_loses_more_workers_waits_ever_longer(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    pauses = []
    for number in range(1, 6):
        await lose(database, job, release_no=number)
        now = await makers.find(database, tenant, job.id)
        pauses.append(round((now.run_at - now.updated_at).total_seconds()))
        await make_due(database, job.id)
        await makers.release(database)
    assert pauses == [0, 0, 2, 4, 8]


async def test_a_job_that_lost_two_workers_is_a_suspect_whatever_becomes_of_its_next_attempts(
    database: Database,
) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    for number in (1, 2):
        assert not (await lose(database, job, release_no=number)).suspect
        await makers.release(database)
    for number, end in enumerate((Happening.RETRY_SCHEDULED, Happening.HANDED_BACK), start=3):
        claim = await makers.claim(database, job, release_no=number)
        assert claim is not None
        assert (claim.suspect, claim.losses) == (True, 2)
        await makers.conclude(database, claim, end)
        await makers.release(database)
    assert not (await makers.running(database, tenant)).suspect


@pytest.mark.parametrize("end", [Happening.COMPLETED, Happening.RETRY_SCHEDULED])
async def test_a_silent_worker_that_comes_back_takes_its_loss_back(database: Database, end: Happening) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    dead = await lose(database, job, release_no=1)
    await makers.release(database)
    slow = await lose(database, job, release_no=2)
    assert await makers.conclude(database, slow, end) is None
    await makers.release(database)
    third = await makers.claim(database, job, release_no=3)
    assert third is not None
    assert (third.losses, third.attempts, dead.claim_no) == (1, 0, 1)
    assert [one.outcome for one in await attempts_of(database, job.id)] == [
        AttemptOutcome.LOST,
        AttemptOutcome.LOST,
        None,
    ]


async def test_a_worker_that_comes_back_again_and_again_takes_one_loss_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    stalled = []
    for number in (1, 2, 3):
        stalled.append(await lose(database, job, release_no=number))
        for claim in stalled:
            await makers.conclude(database, claim, Happening.COMPLETED)
        await make_due(database, job.id)
        await makers.release(database)
    last = await makers.claim(database, job, release_no=4)
    assert last is not None
    assert (last.losses, last.suspect) == (2, True)


async def test_a_late_booking_adds_to_what_is_booked_and_takes_nothing_from_it(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    paid = Spent(engine="llm", input_tokens=1000, output_tokens=10, cost_micros=7)
    assert await makers.conclude(database, claim, Happening.COMPLETED, spent=paid) is not None
    assert await makers.conclude(database, claim, Happening.HANDED_BACK, spent=Spent(engine="")) is None
    [attempt] = await attempts_of(database, claim.job_id)
    assert (attempt.engine, attempt.input_tokens, attempt.output_tokens, attempt.cost_micros) == ("llm", 1000, 10, 7)
    assert attempt.outcome is AttemptOutcome.SUCCEEDED


async def test_a_sweep_that_was_held_up_on_its_way_sweeps_nothing(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await makers.running(database, tenant, lease_seconds=-1.0)
    async with database.begin() as tx:
        long_ago = await clock.present(tx) - timedelta(seconds=2)
        assert await claims.lost_leases(tx, as_of=long_ago, limit=10) == []
    assert len(await sweep(database)) == 1


async def test_an_attempt_that_ended_otherwise_takes_no_loss_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    await lose(database, job, release_no=1)
    await makers.release(database)
    back = await makers.claim(database, job, release_no=2)
    assert back is not None
    assert await makers.conclude(database, back, Happening.HANDED_BACK) is not None
    assert await makers.conclude(database, back, Happening.COMPLETED) is None
    await makers.release(database)
    again = await makers.claim(database, job, release_no=3)
    assert again is not None
    assert again.losses == 1


async def test_a_claim_found_again_is_as_suspect_as_it_was(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    for number in (1, 2):
        await lose(database, job, release_no=number)
        await makers.release(database)
    claim_id = new_id()
    first, again = [await makers.claim(database, job, release_no=3, claim_id=claim_id) for _ in range(2)]
    assert first == again
    assert again is not None
    assert again.suspect


# --- workers ---------------------------------------------------------------------------------------------


async def capacity(database: Database, *, silent_seconds: float = 30.0) -> tuple[int, int]:
    async with database.read() as reader:
        return await workers.live_capacity(reader, silent_seconds=silent_seconds)


async def test_live_workers_are_those_heard_of_lately(database: Database) -> None:
    assert await capacity(database) == (0, 0)
    first, second = makers.worker("a", slots=4), makers.worker("b", slots=2)
    async with database.begin() as tx:
        await workers.seen(tx, first, running=0)
        await workers.seen(tx, second, running=2)
        await workers.seen(tx, first, running=1)
    assert await capacity(database) == (2, 6)

    async def silent() -> bool:
        return await capacity(database, silent_seconds=0.001) == (0, 0)

    await makers.until(silent)
    async with database.begin() as tx:
        await workers.gone(tx, second)
    assert await capacity(database) == (1, 4)
