"""Every fault, again and again, under load: nothing is lost. Hours on a slow machine; `make soak`."""

import pytest
from tests.faults.campaign import Row, campaign
from tests.faults.conftest import INJECTIONS, Worlds
from tests.faults.faults import FAULTS, Fault

pytestmark = [pytest.mark.soak, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(3600)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_nothing_is_lost_while_it_strikes_again_and_again(fault: Fault, worlds: Worlds, rows: list[Row]) -> None:
    row, findings = await campaign(await worlds(fault.surface), fault, injections=INJECTIONS)
    rows.append(row)
    print(f"\n{row}", *findings.all(), sep="\n", flush=True)  # noqa: T201  (an hour is long without a word)
    assert findings.all() == []
    assert row.accepted > 0
    assert row.recovery_seconds
