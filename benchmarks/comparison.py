"""Imprimatur beside its peers: rounds in turn (A B C D A B C D), each figure the median over the cycles.

A ratio is taken within each cycle, and its median over the cycles is told: what else the machine does moves all
systems of one cycle alike. A round lasts about as long for each system, so that none is judged by its first moment.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison
from benchmarks.fleet import Fleet
from benchmarks.load import MOST_IN_FLIGHT
from benchmarks.rounds import begin, calm, round_of, turn
from benchmarks.servers import Servers
from benchmarks.systems import System
from benchmarks.systems.celery_app import CeleryPeer
from benchmarks.systems.embedded import Embedded
from benchmarks.systems.handwritten import Handwritten
from benchmarks.systems.ours import Ours
from benchmarks.systems.procrastinate_app import ProcrastinatePeer

SWEEP = (1, 16, MOST_IN_FLIGHT)
SYSTEMS: Sequence[Callable[[Servers], System]] = (Ours, CeleryPeer, ProcrastinatePeer, Handwritten)
LIGHT_PER_SECOND = 20.0
_LIGHT_JOBS = 40


def compare(
    servers: Servers, *, sweep: Sequence[int], cycles: int, seconds: float, budget_seconds: float = float("inf")
) -> dict[str, Any]:
    """Every system's rounds, of about `seconds` each; after the budget no further cycle begins."""
    began = time.monotonic()
    systems = [make(servers) for make in SYSTEMS]
    try:
        for system in systems:
            begin(system)
            _say(f"{system.name} is up")
        seen = Comparison([system.name for system in systems])
        for cycle in range(cycles):
            if cycle and time.monotonic() - began > budget_seconds:
                _say(f"{cycle} of {cycles} cycles, for want of time")
                break
            for in_flight in sweep:
                for system in systems:
                    _one_turn(seen, system, in_flight, seconds)
        settings = {f"settings_{system.name}": "; ".join(system.settings().values()) for system in systems}
        return {**seen.figures(), **settings, "cycles": len(seen.rounds[systems[0].name, sweep[0]])}
    finally:
        for system in systems:
            system.fleet.end()


def embedded(*, cycles: int, seconds: float) -> dict[str, Any]:
    """The same figures of `imprimatur serve`, which nothing else is compared with."""
    folder = Path(tempfile.mkdtemp(prefix="imprimatur-bench-"))
    system = Embedded(Fleet(folder))
    try:
        begin(system)
        seen = Comparison([system.name])
        for _ in range(cycles):
            for in_flight in SWEEP:
                _one_turn(seen, system, in_flight, seconds)
        return seen.figures()
    finally:
        system.fleet.end()
        shutil.rmtree(folder, ignore_errors=True)


def _one_turn(seen: Comparison, system: System, in_flight: int, seconds: float) -> None:
    with turn(system):
        one = round_of(system, seen.number(system.name, in_flight, seconds), in_flight=in_flight)
        seen.rounds[system.name, in_flight].append(one)
        if in_flight == MOST_IN_FLIGHT:
            light = calm(system, _LIGHT_JOBS, per_second=LIGHT_PER_SECOND)
            seen.starts[system.name] += light.starts
            seen.submits[system.name] += light.submits
    _say(
        f"{system.name:13} {in_flight:3} in flight: {one.jobs} jobs, {one.submits_per_second:.0f} submits/s, "
        f"{one.jobs_per_second:.0f} jobs/s, {one.cpu_ms:.1f} CPU ms a job"
    )


def _say(line: str) -> None:
    print(line, flush=True)
