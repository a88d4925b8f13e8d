"""A short storm for every run of the suite: half of the faults strike once each, in random order, under one load.
All of them, again and again, are in `test_soak`.
"""

import random

import pytest
from tests.faults.campaign import attacked
from tests.faults.conftest import Worlds
from tests.faults.faults import FAULTS, PLAIN

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]


async def test_nothing_is_lost_in_a_storm(worlds: Worlds) -> None:
    world = await worlds(PLAIN)
    strikes = [fault for fault in FAULTS if fault.fast]
    random.shuffle(strikes)
    attack = await attacked(world, strikes)
    assert attack.findings.all() == [], [fault.name for fault in strikes]
    assert len(attack.probes) == len(strikes)
    assert len(attack.record.jobs) > len(strikes)
