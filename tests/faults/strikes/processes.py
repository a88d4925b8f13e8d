"""What strikes the services' own processes."""

import asyncio
import itertools
import signal
from collections.abc import Mapping
from functools import partial

import asyncpg  # type: ignore[import-untyped]  # ships no types

from imprimatur.job import LOSSES_OF_A_SUSPECT, State
from tests import makers
from tests.contract.polling import eventually
from tests.faults import failpoints
from tests.faults.failpoints import Point
from tests.faults.load import Load
from tests.faults.scripts import Kind, Script
from tests.faults.strikes.struck import REACHED_SECONDS, READY_SECONDS, Strike, Struck, now
from tests.faults.world import LEASE_SECONDS, REVIEWER_SLOTS, Seat, World


async def _until_busy(world: World, seat: Seat) -> None:
    """Wait until this reviewer has something to lose."""

    async def busy() -> bool:
        connection = await asyncpg.connect(world.dsn)
        try:
            query = "SELECT running FROM workers WHERE name = $1"
            return bool(await connection.fetchval(query, seat.worker))
        finally:
            await connection.close()

    await makers.until(busy, seconds=READY_SECONDS)


def killed(service: str, *, once_recovered: bool = True) -> Strike:
    """SIGKILL to one process of a service; the supervisor starts another.

    Args:
        once_recovered: not before the jobs that were lost at an earlier strike are through.
    """

    async def strike(world: World, _load: Load) -> Struck:
        if once_recovered:
            await makers.until(partial(_recovered, world), seconds=READY_SECONDS)
        seat = world.any_of(service)
        if service == "reviewer":
            await _until_busy(world, seat)
        struck = now(seat)
        world.mark(seat, dies=True)
        await asyncio.to_thread(seat.process.kill)
        return struck

    return strike


def at(point: Point, service: str, *, dies: bool = True) -> Strike:
    """Strike one process of a service at a named place; proves that it was reached."""

    async def strike(world: World, _load: Load) -> Struck:
        seat = world.any_of(service)
        before = failpoints.reached(world.folder, point)
        if dies:
            world.mark(seat, dies=True)
        failpoints.arm(world.folder, seat.process.pid, point)
        await eventually(
            lambda: failpoints.reached(world.folder, point) > before, f"{point} reached", seconds=REACHED_SECONDS
        )
        return now()

    return strike


async def frozen_inside_a_submit(world: World, load: Load) -> Struck:
    """SIGSTOP a gateway with a submit written and not committed. Its caller repeats it at the other gateway, again and
    again, among other submits there; SIGCONT when these have their answers."""
    gateways = world.of("gateway")
    seat = world.any_of("gateway")
    other = next(place for place, one in enumerate(gateways) if one is not seat)
    before = failpoints.reached(world.folder, Point.SUBMIT_WRITTEN)
    failpoints.arm(world.folder, seat.process.pid, Point.SUBMIT_WRITTEN)
    try:
        await eventually(
            lambda: failpoints.reached(world.folder, Point.SUBMIT_WRITTEN) > before, "frozen", seconds=REACHED_SECONDS
        )
        struck = now()
        repeating = [asyncio.create_task(load.repeat(one, at=other)) for one in (*load.in_flight.values(),) * 3]
        innocent = [load.submit(Script(kind=Kind.APPROVE, seconds=0.0), at=other) for _ in range(5)]
        if None in await asyncio.gather(*innocent):
            load.surprises.append("who came to one gateway got no answer while another was frozen")
    finally:
        seat.process.send(signal.SIGCONT)
    await asyncio.gather(*repeating)
    return struck


async def stopped_beyond_lease(world: World, _load: Load) -> Struck:
    """SIGSTOP a reviewer for longer than its lease; SIGCONT then, when others have its jobs."""
    seat = world.any_of("reviewer")
    await _until_busy(world, seat)
    struck = now(seat)
    world.mark(seat, dies=False)
    seat.process.send(signal.SIGSTOP)
    await asyncio.sleep(LEASE_SECONDS + world.rng.uniform(1.0, 3.0))
    seat.process.send(signal.SIGCONT)
    return struck


def replaced_in_turn() -> Strike:
    """SIGTERM to the next process in turn, which must end well; returns when its successor is ready."""
    turns = itertools.count()

    async def strike(world: World, load: Load) -> Struck:
        seat = world.seats[next(turns) % len(world.seats)]
        starts, process = seat.starts, seat.process
        struck = now()
        world.mark(seat, dies=True)
        process.send(signal.SIGTERM)
        await eventually(lambda: seat.starts > starts, "a successor", seconds=READY_SECONDS)
        if process.exit_code != 0:
            load.surprises.append(f"{seat.name} ended with {process.exit_code} after SIGTERM")
        await world.until_ready()
        return struck

    return strike


async def poisoned(world: World, load: Load) -> Struck | None:
    """A creative that kills whatever process looks at it, beside fifteen innocent ones in each reviewer."""
    struck = now()
    starts = {seat.name: seat.starts for seat in world.of("reviewer")}
    innocent = [Script(kind=Kind.APPROVE, seconds=1.0)] * (REVIEWER_SLOTS - 1) * len(starts)
    await asyncio.gather(*(load.submit(script) for script in innocent))
    told = await load.submit(Script(kind=Kind.POISON, seconds=0.0))
    assert told is not None, "the poison was not accepted"

    # Until all that ran apart for its sake are through as well: each strike is one poison among innocents.
    await makers.until(partial(_over, world, told.job_id), seconds=READY_SECONDS)
    return struck if charge_to_the_poison(world, load, starts) else None


def charge_to_the_poison(world: World, load: Load, starts: Mapping[str, int]) -> int:
    """How many reviewers died since they had so many `starts`; more than one poison may kill are a finding."""
    died = 0
    for seat in world.of("reviewer"):
        seat.supervise()
        dead = seat.workers[starts[seat.name] - 1 : -1]
        seat.deaths_meant += len(dead)
        world.struck_workers.update(dead)
        died += len(dead)
    if died > LOSSES_OF_A_SUSPECT:
        load.surprises.append(f"one poison killed {died} whole reviewers")
    return died


async def _over(world: World, poison_id: str) -> bool:
    connection = await asyncpg.connect(world.dsn)
    try:
        state = await connection.fetchval("SELECT state FROM jobs WHERE id = $1", poison_id)
    finally:
        await connection.close()
    return bool(state == State.AWAITING_REVIEW and await _recovered(world))


async def _recovered(world: World) -> bool:
    """Whether every job that lost a worker is through."""
    connection = await asyncpg.connect(world.dsn)
    try:
        query = "SELECT count(*) FROM jobs WHERE losses > 0 AND state IN ('queued', 'running')"
        return bool(await connection.fetchval(query) == 0)
    finally:
        await connection.close()
