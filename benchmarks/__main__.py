"""`python -m benchmarks quick|full|long|report|PART …`: measure, keep in results.json, write docs/performance.md.

`quick` prints the peer ratios in under three minutes and keeps nothing.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import batches, comparison, endurance, fairness, fan_out, floor, growth, report
from benchmarks.load import MOST_IN_FLIGHT
from benchmarks.servers import servers

_QUICK_BUDGET_SECONDS = 75.0


def compare() -> dict[str, Any]:
    """Imprimatur beside its peers."""
    with servers() as under:
        return {**under.settings(), **comparison.compare(under, sweep=comparison.SWEEP, cycles=5, seconds=4.0)}


def embedded() -> dict[str, Any]:
    """`imprimatur serve`."""
    return comparison.embedded(cycles=3, seconds=3.0)


#: What `full` measures, in order.
PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "compare": compare,
    "batches": batches.measure,
    "streams": fan_out.measure,
    "floor": floor.measure,
    "growth": growth.measure,
    "fairness": fairness.measure,
    "embedded": embedded,
}


def quick() -> None:
    """The ratios at 100 in flight."""
    with servers() as under:
        figures = under.settings() | comparison.compare(
            under, sweep=[MOST_IN_FLIGHT], cycles=3, seconds=2.5, budget_seconds=_QUICK_BUDGET_SECONDS
        )
    print()
    print(report.settings(figures))
    print("\n".join(report.ratio_lines(figures)))


def run(name: str, part: Callable[[], dict[str, Any]]) -> None:
    """Measure one part and keep it."""
    began, load = time.monotonic(), os.getloadavg()[0]
    print(f"--- {name}", flush=True)
    figures = part()
    report.keep(name, figures, load_before=load)
    for key, value in figures.items():
        if not isinstance(value, list):
            print(f"{key:45} {value}")
    print(f"--- {name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="+", choices=["quick", "full", "long", "report", *PARTS])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and their data are cleared away
    for what in parser.parse_args().what:
        if what == "quick":
            quick()
            continue
        if what == "long":
            run("endurance", endurance.measure)
        elif what != "report":
            for name in PARTS if what == "full" else [what]:
                run(name, PARTS[name])
        report.write()


if __name__ == "__main__":
    main()
