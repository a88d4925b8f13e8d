"""What strikes PostgreSQL."""

import asyncio
from functools import partial

import asyncpg  # type: ignore[import-untyped]  # ships no types

from tests import makers
from tests.faults.load import Load
from tests.faults.scripts import Kind, Script
from tests.faults.strikes.struck import REACHED_SECONDS, Struck, now
from tests.faults.world import LEASE_SECONDS, World


async def database_killed(world: World, _load: Load) -> Struck:
    """SIGKILL to the server, and started: it recovers from its log."""
    await asyncio.to_thread(world.postgres.kill)
    await asyncio.to_thread(world.postgres.restart)
    return now()


async def database_frozen(world: World, _load: Load) -> Struck:
    """SIGSTOP for longer than a lease."""
    await asyncio.to_thread(world.postgres.suspend)
    try:
        await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(0.5, 3.0))
    finally:
        await asyncio.to_thread(world.postgres.resume)
    return now()


async def connections_exhausted(world: World, _load: Load) -> Struck:
    """Somebody takes every connection, while the services' own are cut."""
    held = []
    try:
        for _ in range(2):
            with_room = True
            while with_room:
                try:
                    held.append(await asyncpg.connect(world.dsn))
                except asyncpg.TooManyConnectionsError:
                    with_room = False
            await held[0].execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'imprimatur'"
            )
        await asyncio.sleep(world.rng.uniform(1.0, 4.0))
    finally:
        for connection in held:
            await connection.close()
    return now()


async def table_locked(world: World, _load: Load) -> Struck:
    """Somebody locks the jobs against everybody for longer than a lease."""
    connection = await asyncpg.connect(world.dsn)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(0.5, 3.0))
    finally:
        await connection.close()
    return now()


async def job_locked(world: World, load: Load) -> Struck | None:
    """Somebody locks a running job for longer than its lease, and until another job has come and gone."""
    ends_soon, ends_later = 1.0, LEASE_SECONDS + 2.0
    told = await load.submit(Script(kind=Kind.APPROVE, seconds=world.rng.choice((ends_soon, ends_later))))
    if told is None:
        return None
    connection = await asyncpg.connect(world.dsn)
    try:
        await makers.until(partial(_begun, connection, told.job_id), seconds=REACHED_SECONDS)
        async with connection.transaction():
            locking = "SELECT id FROM jobs WHERE id = $1 AND state = 'running' FOR UPDATE"
            if await connection.fetchval(locking, told.job_id) is None:
                return None
            await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(0.2, 1.0))
            await load.probe()
    finally:
        await connection.close()
    return now()


async def _begun(connection: asyncpg.Connection, job_id: str) -> bool:
    return bool(await connection.fetchval("SELECT state <> 'queued' FROM jobs WHERE id = $1", job_id))
