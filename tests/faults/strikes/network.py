"""What strikes the wires between clients, services and servers, by the proxies of a world that has them."""

import asyncio

from tests.contract.polling import eventually
from tests.faults.load import Load
from tests.faults.strikes.struck import REACHED_SECONDS, Strike, Struck, now
from tests.faults.world import World


async def network_slow(world: World, _load: Load) -> Struck:
    """A tenth of a second each way to database and broker, and jitter as much again."""
    for name in ("postgresql", "rabbitmq"):
        world.proxies[name].delay(0.1, 0.1)
    try:
        await asyncio.sleep(world.rng.uniform(2.0, 4.0))
    finally:
        for name in ("postgresql", "rabbitmq"):
            world.proxies[name].pass_on()
    return now()


def cut(*names: str) -> Strike:
    """Every connection that passes these proxies is reset."""

    async def strike(world: World, _load: Load) -> Struck:
        for name in names:
            world.proxies[name].cut()
        return now()

    return strike


def half_open(name: str) -> Strike:
    """Connections stand, and bytes vanish in them both ways."""

    async def strike(world: World, _load: Load) -> Struck:
        world.proxies[name].swallow()
        try:
            await asyncio.sleep(world.rng.uniform(3.0, 6.0))
        finally:
            world.proxies[name].pass_on()
        return now()

    return strike


async def commit_reply_lost(world: World, _load: Load) -> Struck:
    """The database commits, and the reply to it never arrives; whichever service it was for."""
    proxy = world.proxies["postgresql"]
    before = proxy.struck
    proxy.cut_after(b"COMMIT", 1)
    await eventually(lambda: proxy.struck > before, "a commit cut off", seconds=REACHED_SECONDS)
    return now()
