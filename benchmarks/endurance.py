"""Ten minutes at full load: whether throughput holds, and how fast each process grows."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.figures import slope
from benchmarks.fleet import Fleet
from benchmarks.load import MOST_IN_FLIGHT
from benchmarks.rounds import begin, round_of, turn
from benchmarks.servers import servers
from benchmarks.systems.ours import Ours

SECONDS = 600.0
#: Caches, pools and the interpreter's own memory fill first: no leak.
_SETTLING_SECONDS = 120.0
_SAMPLE_SECONDS = 5.0
_ROUND_SECONDS = 10.0


def measure(*, seconds: float = SECONDS) -> dict[str, Any]:
    """Rounds of 100 in flight, one after the other; each process's memory every 5 seconds, and its slope."""
    with servers() as under:
        system = Ours(under)
        begin(system)
        with turn(system), sampled(system.fleet) as samples:
            rates, jobs = _full_load(system, seconds)
        system.fleet.end()
    settled = min(_SETTLING_SECONDS, seconds / 5)
    found: dict[str, Any] = {
        "endurance_minutes": round(seconds / 60, 1),
        "endurance_jobs": jobs,
        "endurance_first_jobs_per_s": round(rates[0], 1),
        "endurance_last_jobs_per_s": round(rates[-1], 1),
    }
    for name in samples[0][1]:
        points = [(at, shown[name]) for at, shown in samples if name in shown]
        found[f"endurance_{name}_mb_per_hour"] = round(slope([one for one in points if one[0] >= settled]) * 3600, 1)
        found[f"endurance_{name}_mb"] = [[round(at), round(mb, 1)] for at, mb in points[::4]]
    return found


def _full_load(system: Ours, seconds: float) -> tuple[list[float], int]:
    """Jobs per second of each round, and how many jobs there were."""
    rates, jobs, began, number = [], 0, time.monotonic(), 300
    while time.monotonic() - began < seconds:
        one = round_of(system, number, in_flight=MOST_IN_FLIGHT)
        rates.append(one.jobs_per_second)
        jobs += number
        number = max(100, int(one.jobs_per_second * _ROUND_SECONDS))
    return rates, jobs


@contextmanager
def sampled(fleet: Fleet) -> Iterator[list[tuple[float, Mapping[str, float]]]]:
    """Inside the block the list grows: (seconds since the beginning, MB of each process)."""
    samples: list[tuple[float, Mapping[str, float]]] = [(0.0, fleet.memory_mb())]
    stopped, began = threading.Event(), time.monotonic()

    def sample() -> None:
        while not stopped.wait(_SAMPLE_SECONDS):
            samples.append((time.monotonic() - began, fleet.memory_mb()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()
