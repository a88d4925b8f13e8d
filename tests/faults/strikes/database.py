"""What strikes PostgreSQL."""

import asyncio

import asyncpg  # type: ignore[import-untyped]  # ships no types

from tests.faults.load import Load
from tests.faults.strikes.struck import Struck, now
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
