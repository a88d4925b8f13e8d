"""One campaign: a load of jobs, a fault that strikes again and again meanwhile, calm, and the audit; one row."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from tests.contract.polling import eventually
from tests.faults import audit
from tests.faults.audit import Findings, Record
from tests.faults.faults import Fault, Recovery, Struck
from tests.faults.load import Load
from tests.faults.world import World

_JOBS_PER_SECOND = 8.0
_WARM_JOBS = 5
_WARM_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one campaign came to. Counts of findings are to be 0; times are in seconds."""

    fault: str
    recovery: Recovery
    injected: int
    accepted: int
    unanswered: int  #: submits without an answer; each made one job or none
    lost: int
    applied_twice: int
    wrong_ends: int
    regressions: int
    ends_missed: int
    webhooks_missing: int
    innocents_charged: int
    surprises: int
    recovery_seconds: tuple[float, ...]

    @classmethod
    def of(cls, fault: Fault, injected: int, load: Load, findings: Findings, seconds: Sequence[float]) -> "Row":
        """From what was found."""
        return cls(
            fault=fault.name,
            recovery=fault.recovery,
            injected=injected,
            accepted=len(load.told),
            unanswered=load.unanswered,
            recovery_seconds=tuple(round(one, 3) for one in sorted(seconds)),
            **{name: len(found) for name, found in asdict(findings).items()},
        )


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What was seen."""

    load: Load
    record: Record
    findings: Findings
    probes: list[float]  #: seconds, after each strike
    struck: list[Struck]


async def campaign(world: World, fault: Fault, *, injections: int) -> tuple[Row, Findings]:
    """One fault, so often, under load."""
    attack = await attacked(world, [fault] * injections)
    if fault.recovery is Recovery.PROBE:
        seconds = attack.probes
    else:
        seconds = audit.restarts(attack.record, ((hit.at, hit.worker) for hit in attack.struck))
    return Row.of(fault, injections, attack.load, attack.findings, seconds), attack.findings


async def attacked(world: World, strikes: Iterable[Fault]) -> Attack:
    """Strike in this order under load, wait for calm, and judge."""
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
        return Attack(load=load, record=record, findings=audit.judge(load, record), probes=probes, struck=struck)


async def _warm(load: Load) -> None:
    await eventually(
        lambda: sum(told.end is not None for told in load.told.values()) >= _WARM_JOBS, "warm", seconds=_WARM_SECONDS
    )
