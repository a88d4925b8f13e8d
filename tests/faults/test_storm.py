"""A short storm for every run of the suite: half of the faults strike once each, in random order, under one load.
All of them, again and again, are in `test_soak`.
"""

import pytest

from tests.faults.campaign import attacked, storm
from tests.faults.conftest import STORM_SEED, Worlds
from tests.faults.faults import PLAIN

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def test_nothing_is_lost_in_a_storm(worlds: Worlds) -> None:
    print(f"STORM_SEED={STORM_SEED}")  # noqa: T201  (shown when it fails)
    world = await worlds(PLAIN)
    world.rng.seed(STORM_SEED)
    strikes = storm(world.rng)
    attack = await attacked(world, strikes)
    cut_off = any(fault.cuts_off for fault in strikes)
    assert attack.findings.defects(cut_off=cut_off) == [], [fault.name for fault in strikes]
    assert len(attack.probes) == len(strikes)
    assert len(attack.record.jobs) > len(strikes)
