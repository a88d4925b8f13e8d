"""Losing leases, for the tests of claims and of leases."""

import uuid

from sqlalchemy import select, update

from imprimatur.job import Attempt, Claim, Job
from imprimatur.storage import attempts, claims, clock
from imprimatur.storage.claims import Held, Renewal
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.schema import jobs
from imprimatur.storage.workers import Worker
from tests import makers


async def attempts_of(database: Database, job_id: uuid.UUID) -> list[Attempt]:
    async with database.read() as reader:
        return await attempts.of_job(reader, job_id)


async def renew(database: Database, *held: Claim, lease_seconds: float = 30.0) -> frozenset[Held]:
    """Those that were renewed."""
    return (await renewal_of(database, makers.worker(), *held, lease_seconds=lease_seconds)).renewed


async def renewal_of(database: Database, worker: Worker, *held: Claim, lease_seconds: float = 30.0) -> Renewal:
    pairs = [(claim.job_id, claim.claim_no) for claim in held]
    async with database.begin() as tx:
        return await claims.renew(tx, worker, pairs, lease_seconds=lease_seconds)


async def lock(tx: Transaction, job_id: uuid.UUID) -> None:
    """Keep others from changing this job until the transaction ends."""
    await tx.connection.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())


async def sweep(database: Database, *, limit: int = 100) -> list[uuid.UUID]:
    async with database.begin() as tx:
        rows = await claims.lost_leases(tx, as_of=await clock.present(tx), limit=limit)
        return [row.id for row in rows]


async def sweep_until_lost(database: Database, number: int) -> list[uuid.UUID]:
    lost: list[uuid.UUID] = []

    async def swept() -> bool:
        lost.extend(await sweep(database))
        return len(lost) >= number

    await makers.until(swept)
    return lost


async def make_due(database: Database, job_id: uuid.UUID) -> None:
    """End the pause that a job is in."""
    async with database.begin() as tx:
        await tx.connection.execute(update(jobs).where(jobs.c.id == job_id).values(run_at=clock.now()))


async def lose(database: Database, job: Job, *, release_no: int) -> Claim:
    """Claim a job with a lease that runs out at once, and let it be swept."""
    claim = await makers.claim(database, job, release_no=release_no, lease_seconds=0.0)
    assert claim is not None
    assert await sweep_until_lost(database, 1) == [job.id]
    return claim
