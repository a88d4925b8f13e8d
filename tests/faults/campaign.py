"""One campaign: a load of jobs, a fault that strikes again and again meanwhile, calm, and the audit; one row."""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass

from tests.contract.polling import eventually
from tests.faults import audit
from tests.faults.audit import Findings, Record
from tests.faults.faults import FAULTS, Fault, Recovery
from tests.faults.load import Load
from tests.faults.rows import Row
from tests.faults.strikes.struck import Struck
from tests.faults.world import World

_JOBS_PER_SECOND = 8.0
_WARM_JOBS = 5
_WARM_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What was seen."""

    load: Load
    record: Record
    findings: Findings
    probes: list[float]  #: seconds, after each strike
    struck: list[Struck]  #: what really hit something


async def campaign(world: World, fault: Fault, *, injections: int) -> tuple[Row, Findings]:
    """One fault, so often, under load."""
    attack = await attacked(world, [fault] * injections)
    if fault.recovery is Recovery.PROBE:
        seconds = attack.probes
    else:
        seconds = audit.restarts(attack.record, ((hit.at, hit.worker) for hit in attack.struck))
    return Row.of(fault, len(attack.struck), attack.load, attack.findings, seconds), attack.findings


async def attacked(world: World, strikes: Iterable[Fault]) -> Attack:
    """Strike in this order under load, wait for calm, and judge."""
    world.forget_the_living()
    world.sound = False
    load = Load(world=world, rng=world.rng)
    probes: list[float] = []
    struck: list[Struck] = []
    async with load.connected():
        async with load.running(_JOBS_PER_SECOND):
            await _warm(load)
            for fault in strikes:
                await asyncio.sleep(world.rng.uniform(0.1, 1.0))
                if hit := await fault.strike(world, load):
                    struck.append(hit)
                probes.append(await load.probe())
                await world.until_ready()
        record = await audit.calm(load)
        world.sound = True
        return Attack(load=load, record=record, findings=audit.judge(load, record), probes=probes, struck=struck)


def storm(rng: random.Random) -> list[Fault]:
    """The fast faults, once each in random order."""
    fast = [fault for fault in FAULTS if fault.fast]
    rng.shuffle(fast)
    return fast


async def _warm(load: Load) -> None:
    await eventually(
        lambda: sum(told.end is not None for told in load.told.values()) >= _WARM_JOBS, "warm", seconds=_WARM_SECONDS
    )
