"""One round of one system, and whose turn it is: all others are frozen meanwhile."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.figures import Round
from benchmarks.load import MOST_IN_FLIGHT, Submits
from benchmarks.systems import System

_POLL_SECONDS = 0.05
_ASKING_SHARE = 20
_END_SECONDS = 300.0
_WARM_UP_JOBS = 40
_FIRST_WARM_UP_JOBS = 200


def round_of(system: System, number: int, *, in_flight: int) -> Round:
    """Submit so many jobs, so many submits under way, and wait until all have ended."""
    before, cpu = system.finished(), system.fleet.cpu_seconds()
    began = time.perf_counter()
    submits = system.loader.submit(number, in_flight=in_flight)
    wait_finished(system, before + number)
    seconds = time.perf_counter() - began
    return Round(
        jobs=number,
        submit_seconds=submits.seconds,
        end_to_end_seconds=seconds,
        latencies=submits.latencies,
        cpu_ms_per_job=_spent(cpu, system.fleet.cpu_seconds(), number),
    )


@dataclass(frozen=True, kw_only=True)
class Calm:
    """What a light load showed, in seconds for each job."""

    submits: list[float]  #: until the submit was answered
    starts: list[float]  #: from the call of submit to the beginning of the work


def calm(system: System, number: int, *, per_second: float) -> Calm:
    """Submit so many jobs at fixed times."""
    before = system.finished()
    submits: Submits = system.loader.submit_at(number, per_second=per_second)
    wait_finished(system, before + number)
    started = system.started_at(submits.ids)
    pairs = zip(submits.ids, submits.began_at, strict=True)
    return Calm(submits=submits.latencies, starts=[started[job_id] - began for job_id, began in pairs])


def wait_finished(system: System, number: int) -> None:
    """Until so many jobs have ended. Raises TimeoutError."""
    deadline = time.monotonic() + _END_SECONDS
    while True:
        asked = time.monotonic()
        if (found := system.finished()) >= number:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{system.name}: {found} of {number} jobs have ended; {system.states()}")
        # Asking shall not be what is measured.
        time.sleep(max(_POLL_SECONDS, _ASKING_SHARE * (time.monotonic() - asked)))


@contextmanager
def turn(system: System) -> Iterator[System]:
    """Inside the block the system works; it comes frozen and leaves frozen. A few jobs warm it up first."""
    system.fleet.thaw()
    deadline = time.monotonic() + _END_SECONDS
    while not system.ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{system.name} is not ready")
        time.sleep(_POLL_SECONDS)
    _work_through(system, _WARM_UP_JOBS, in_flight=10)
    try:
        yield system
    finally:
        system.fleet.freeze()


def begin(system: System) -> None:
    """Start it, let it make all its connections, and leave it frozen."""
    system.start()
    _work_through(system, _FIRST_WARM_UP_JOBS, in_flight=MOST_IN_FLIGHT)
    system.fleet.freeze()


def _work_through(system: System, number: int, *, in_flight: int) -> None:
    before = system.finished()
    system.loader.submit(number, in_flight=in_flight)
    wait_finished(system, before + number)


def _spent(before: Mapping[str, float], after: Mapping[str, float], number: int) -> dict[str, float]:
    return {name: round((after[name] - before[name]) * 1000 / number, 3) for name in before}
