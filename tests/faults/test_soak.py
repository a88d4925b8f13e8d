"""Every fault, again and again, under load: nothing is lost. Hours on a slow machine; `make soak`."""

import pytest

from docs.reliability import FIGURES
from tests.faults import report
from tests.faults.campaign import campaign
from tests.faults.conftest import INJECTIONS, Worlds
from tests.faults.faults import FAULTS, Fault
from tests.faults.rows import Row

pytestmark = [pytest.mark.soak, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(3600)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_nothing_is_lost_while_it_strikes_again_and_again(fault: Fault, worlds: Worlds, rows: list[Row]) -> None:
    report.begin(fault.name, FIGURES, injections=INJECTIONS)
    row, findings = await campaign(await worlds(fault.surface), fault, injections=INJECTIONS)
    rows.append(row)
    report.keep(row, FIGURES)
    print(f"\n{row}", *findings.defects(), sep="\n", flush=True)  # noqa: T201  (an hour is long without a word)
    assert findings.defects(cut_off=fault.cuts_off) == []
    assert row.struck > 0
    assert row.accepted > 0
    assert row.recovery_seconds
    assert row.keeps(fault.most_p99_seconds), f"{row.percentile(0.99)} s, promised are {fault.most_p99_seconds} s"
