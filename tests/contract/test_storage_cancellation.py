"""Cancellation: of a task in the middle of a transaction, which leaves no lock behind, and of a running job."""

import asyncio
import gc

from sqlalchemy import text

from imprimatur.job import AttemptOutcome
from imprimatur.storage import attempts
from imprimatur.storage.database import Database
from tests import makers
from tests.patience import PATIENCE_SECONDS


async def test_a_cancelled_transaction_holds_no_lock(database: Database) -> None:
    for _ in range(20):
        await makers.make_tenant(database)

    async def write() -> None:
        async with database.begin() as tx:
            for _ in range(5):
                await tx.connection.execute(text("UPDATE tenants SET name = name RETURNING id, name"))

    gc.disable()  # or it may clean up in time
    try:
        for place in range(20):
            tasks = [asyncio.create_task(write()) for _ in range(3)]
            for _ in range(5 * place):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0002 * place)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await write()
    finally:
        gc.enable()


async def test_cancelling_ends_the_open_attempt_even_if_its_worker_is_dead(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await makers.running(database, tenant)
    await makers.cancel(database, await makers.find(database, tenant, held.job_id))
    async with database.read() as reader:
        [attempt] = await attempts.of_job(reader, held.job_id)
    assert attempt.outcome is AttemptOutcome.CANCELLED
    assert attempt.finished_at is not None
