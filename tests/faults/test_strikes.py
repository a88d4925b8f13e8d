"""The strikes of the fault suite hit what they say, forget nothing, and find what they should; on idle processes."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imprimatur.broker import EVENTS, Queue
from imprimatur.identity import new_id
from imprimatur.job import LOSSES_OF_A_SUSPECT
from imprimatur.storage.database import OutboxRow
from tests.contract.polling import eventually
from tests.faults import audit
from tests.faults.audit import Record
from tests.faults.campaign import storm
from tests.faults.failpoints import asks_for_a_submitted_job
from tests.faults.faults import FAULTS
from tests.faults.load import Load
from tests.faults.strikes.processes import charge_to_the_poison, replaced_in_turn
from tests.faults.test_audit import a_world_without_servers
from tests.faults.world import Seat, World, supervise

_NOTHING = Record(jobs={}, events={}, attempts={}, deliveries={}, outbox=0)


class Idle(Seat):
    """A reviewer's seat with an idle shell in it, which ends with `exit_code` after SIGTERM."""

    exit_code = 0

    def _command(self) -> list[str]:
        return ["sh", "-c", f"trap 'exit {self.exit_code}' TERM; echo ready; while :; do sleep 0.02; done"]

    def is_ready(self) -> bool:
        return self.process.output == "ready\n"

    async def die(self) -> None:
        """By nobody's strike; another starts."""
        await asyncio.to_thread(self.process.kill)
        self.supervise()


class Failing(Idle):
    """Ends badly after SIGTERM."""

    exit_code = 3


@asynccontextmanager
async def _seated(kind: type[Idle], folder: Path) -> AsyncIterator[tuple[World, Load, Idle]]:
    world = a_world_without_servers()
    seat = kind("reviewer", 1, {"PATH": "/usr/bin:/bin"}, folder)
    world.seats.append(seat)
    try:
        await world.until_ready()
        yield world, Load(world=world, rng=random.Random(1)), seat
    finally:
        seat.process.discard()


async def test_a_poison_that_kills_as_many_reviewers_as_make_a_suspect_is_in_order(tmp_path: Path) -> None:
    async with _seated(Idle, tmp_path) as (world, load, seat):
        first = seat.worker
        for _ in range(LOSSES_OF_A_SUSPECT):
            await seat.die()
        assert charge_to_the_poison(world, load, {seat.name: 1}) == LOSSES_OF_A_SUSPECT
        assert audit.judge(load, _NOTHING).defects() == []
        assert first in world.struck_workers
        assert seat.worker not in world.struck_workers


async def test_a_poison_that_kills_one_reviewer_more_is_found(tmp_path: Path) -> None:
    async with _seated(Idle, tmp_path) as (world, load, seat):
        for _ in range(LOSSES_OF_A_SUSPECT + 1):
            await seat.die()
        charge_to_the_poison(world, load, {seat.name: 1})
        assert len(audit.judge(load, _NOTHING).surprises) == 1


async def test_a_death_before_the_poison_stays_unmeant(tmp_path: Path) -> None:
    async with _seated(Idle, tmp_path) as (world, load, seat):
        early = seat.worker
        await seat.die()
        starts = {seat.name: seat.starts}
        await seat.die()
        assert charge_to_the_poison(world, load, starts) == 1
        assert seat.deaths_unmeant == 1
        assert early not in world.struck_workers
        assert len(audit.judge(load, _NOTHING).surprises) == 1


@pytest.mark.parametrize(("kind", "findings"), [(Idle, 0), (Failing, 1)])
async def test_a_service_that_ends_badly_after_sigterm_is_found(
    kind: type[Idle], findings: int, tmp_path: Path
) -> None:
    async with _seated(kind, tmp_path) as (world, load, seat):
        supervisor = asyncio.create_task(supervise(world))
        try:
            assert await replaced_in_turn()(world, load)
        finally:
            supervisor.cancel()
        assert seat.starts == 2
        assert len(load.surprises) == findings


async def test_who_was_struck_and_lives_is_not_excused_in_the_next_campaign(tmp_path: Path) -> None:
    async with _seated(Idle, tmp_path) as (world, _load, seat):
        world.mark(seat, dies=True)
        dead = seat.worker
        seat.process.send(signal.SIGKILL)
        await eventually(lambda: not seat.process.alive(), "it died")
        seat.supervise()
        world.mark(seat, dies=False)
        world.forget_the_living()
        assert world.struck_workers == {dead}


def _row(exchange: str, key: str) -> OutboxRow:
    return OutboxRow(id=new_id(), exchange=exchange, routing_key=key, body=b"", stored=True)


def test_the_place_after_a_submit_is_none_after_a_dispatchers_release() -> None:
    request, submitted = _row("", Queue.REVIEW_HIGH), _row(EVENTS, "state.submitted")
    assert asks_for_a_submitted_job([submitted, request])
    assert not asks_for_a_submitted_job([request])
    assert not asks_for_a_submitted_job([_row(EVENTS, "state.released"), request])
    assert not asks_for_a_submitted_job([submitted])


def test_a_storm_is_repeated_by_its_seed() -> None:
    once, again, other = (storm(random.Random(seed)) for seed in (7, 7, 8))
    assert once == again != other
    assert {fault.name for fault in once} == {fault.name for fault in FAULTS if fault.fast}
