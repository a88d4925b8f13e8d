"""How attempts end in the database: many together, each for itself, and again while the database is away."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from imprimatur.errors import Unavailable
from imprimatur.job import AttemptOutcome, Claim, Happening, State
from imprimatur.policy import LivePolicy, Mode, Policy
from imprimatur.storage import conclusions, jobs, tenants
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion, Ended, Ending
from imprimatur.storage.database import Database, Transaction
from reviewer import endings
from reviewer.endings import Endings
from reviewer.tasks import NotEnough
from tests import makers
from tests.contract.leasing import attempts_of, lose
from tests.contract.polling import lock_waiters

APPROVED = Conclusion(
    happening=Happening.COMPLETED,
    outcome=AttemptOutcome.SUCCEEDED,
    shown=makers.shown("approved", "auto_approve", result=b"yes", result_count=1),
)
HANDED_BACK = Conclusion(
    happening=Happening.HANDED_BACK, outcome=AttemptOutcome.HANDED_BACK, spends_attempt=False, details={"why": "a test"}
)
SPENT = Spent(engine="test", cost_micros=7)


class Watched:
    """`conclusions.conclude`, watched: which claims were written together, and what a test has happen afterwards, while
    the transaction is open."""

    def __init__(self) -> None:
        self.batches: list[list[Claim]] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.faults: list[Exception] = []  #: of the next batches, one each
        self.poisoned: Claim | None = None
        self._conclude = conclusions.conclude

    async def conclude(self, tx: Transaction, ends: Sequence[Ending]) -> list[Ended | None]:
        self.batches.append([ending.claim for ending in ends])
        written = await self._conclude(tx, ends)
        self.begun.set()
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        if self.poisoned in self.batches[-1]:
            raise ValueError("no database takes this")
        return written


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr(conclusions, "conclude", made.conclude)
    return made


@pytest.fixture
async def held(database: Database) -> list[Claim]:
    """Five jobs of one tenant, claimed."""
    tenant = await makers.make_tenant(database)
    return [await makers.running(database, tenant) for _ in range(5)]


async def states(database: Database, claimed: Sequence[Claim]) -> list[State]:
    return [(await makers.find(database, one.tenant_id, one.job_id)).state for one in claimed]


async def all_are_written_once(database: Database, claimed: Sequence[Claim]) -> None:
    for one in claimed:
        async with database.read() as reader:
            history = await jobs.history(reader, one.job_id, after_version=0, limit=10)
        assert [event.kind for event in history] == ["submitted", "started", "succeeded"]
        [attempt] = await attempts_of(database, one.job_id)
        assert (attempt.outcome, attempt.cost_micros) == (AttemptOutcome.SUCCEEDED, 7)


def raising(fault: Exception) -> Callable[[LivePolicy], Conclusion]:
    def decide(_live: LivePolicy) -> Conclusion:
        raise fault

    return decide


def fenced_writes() -> float:
    return REGISTRY.get_sample_value("imprimatur_fenced_writes_total") or 0.0


# --- together --------------------------------------------------------------------------------------------


async def test_ends_that_come_at_once_are_written_in_one_transaction(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    ending = Endings(database)
    ways = [APPROVED, HANDED_BACK, APPROVED, HANDED_BACK, APPROVED]
    written = await asyncio.gather(*(ending.write(one, way, SPENT) for one, way in zip(held, ways, strict=True)))
    assert written == ways
    assert watched.batches == [held]
    succeeded, queued = State.SUCCEEDED, State.QUEUED
    assert await states(database, held) == [succeeded, queued, succeeded, queued, succeeded]


async def test_each_is_decided_by_its_own_tenants_live_policy(database: Database, watched: Watched) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    async with database.begin() as tx:
        await tenants.put_policy(tx, globex, Policy(mode=Mode.REQUIRE_HUMAN))
    held = [await makers.running(database, tenant) for tenant in (acme, globex, acme)]
    seen: list[tuple[int, Mode]] = []

    def decide(live: LivePolicy) -> Conclusion:
        seen.append((live.version, live.policy.mode))
        return APPROVED

    ending = Endings(database)
    await asyncio.gather(*(ending.write(one, decide, SPENT) for one in held))
    assert seen == [(1, Mode.AI_POWERED), (2, Mode.REQUIRE_HUMAN), (1, Mode.AI_POWERED)]
    assert watched.batches == [held]


async def test_a_policy_is_not_switched_between_a_decision_and_its_commit(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    watched.gate.clear()
    order: list[str] = []

    async def switch() -> None:
        async with database.begin() as tx:
            await tenants.put_policy(tx, held[0].tenant_id, Policy(mode=Mode.REQUIRE_HUMAN))
        order.append("switched")

    async def write() -> None:
        await Endings(database).write(held[0], lambda live: APPROVED, SPENT)
        order.append("written")

    writing = asyncio.create_task(write())
    await watched.begun.wait()
    switching = asyncio.create_task(switch())
    await lock_waiters(database, 1)
    watched.gate.set()
    await asyncio.gather(writing, switching)
    assert order == ["written", "switched"]


@pytest.mark.parametrize("fault", [NotEnough(), ValueError("a task's own fault")], ids=["not enough", "a fault"])
async def test_what_cannot_be_decided_is_its_own_attempts_matter_and_disturbs_no_other(
    database: Database, held: list[Claim], watched: Watched, fault: Exception
) -> None:
    ending = Endings(database)
    decisions: list[Any] = [lambda live: APPROVED, raising(fault), APPROVED, lambda live: HANDED_BACK, APPROVED]
    answers = await asyncio.gather(
        *(ending.write(one, decide, SPENT) for one, decide in zip(held, decisions, strict=True)),
        return_exceptions=True,
    )
    assert answers == [APPROVED, fault, APPROVED, HANDED_BACK, APPROVED]
    assert watched.batches == [[held[0], *held[2:]]]
    assert (await states(database, held))[1] is State.RUNNING
    [attempt] = await attempts_of(database, held[1].job_id)
    assert (attempt.outcome, attempt.cost_micros) == (None, 0)
    assert await ending.write(held[1], lambda live: APPROVED, SPENT) == APPROVED  # done again, in full


async def test_when_nothing_of_a_batch_can_be_decided_nothing_is_written(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    ending = Endings(database)
    answers = await asyncio.gather(
        *(ending.write(one, raising(NotEnough()), SPENT) for one in held), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [NotEnough] * 5
    assert set(await states(database, held)) == {State.RUNNING}


async def test_one_that_was_taken_over_counts_for_nothing_and_disturbs_no_other(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    [job] = await makers.submit(database, makers.new_job(held[0].tenant_id))
    stale = await lose(database, job, release_no=1)
    ending, before = Endings(database), fenced_writes()
    together = [held[0], stale, held[1]]
    written = await asyncio.gather(*(ending.write(one, APPROVED, SPENT) for one in together))
    assert written == [APPROVED, None, APPROVED]
    assert watched.batches == [together]
    assert fenced_writes() == before + 1
    assert [one.cost_micros for one in await attempts_of(database, job.id)] == [7]


async def test_one_that_no_database_takes_fails_alone(database: Database, held: list[Claim], watched: Watched) -> None:
    watched.poisoned = held[3]
    ending = Endings(database)
    answers = await asyncio.gather(*(ending.write(one, APPROVED, SPENT) for one in held), return_exceptions=True)
    assert [type(answer) for answer in answers] == [*[Conclusion] * 3, ValueError, Conclusion]
    assert watched.batches == [held, *([one] for one in held)]
    assert (await states(database, held))[3] is State.RUNNING
    await all_are_written_once(database, [*held[:3], held[4]])


# --- again -----------------------------------------------------------------------------------------------


async def test_what_waits_while_the_database_is_away_is_all_written_once(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    watched.faults = [Unavailable("out of reach")] * 2
    ending = Endings(database)
    first = [asyncio.create_task(ending.write(one, APPROVED, SPENT)) for one in held[:3]]
    await watched.begun.wait()
    later = [asyncio.create_task(ending.write(one, lambda live: APPROVED, SPENT)) for one in held[3:]]
    assert await asyncio.gather(*first, *later) == [APPROVED] * 5
    assert not watched.faults
    await all_are_written_once(database, held)


async def test_an_end_that_is_never_written_is_given_up_and_its_lease_runs_out(
    database: Database, held: list[Claim], watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_INSIST_WHEN_STOPPING_SECONDS", 0.0)
    watched.faults = [Unavailable("out of reach")] * 9
    ending = Endings(database)
    ending.stop()
    written = await asyncio.gather(*(ending.write(one, APPROVED, SPENT) for one in held))
    assert written == [None] * 5
    assert set(await states(database, held)) == {State.RUNNING}


# --- stopping --------------------------------------------------------------------------------------------


async def begun_with(ending: Endings, watched: Watched, held: list[Claim]) -> list[asyncio.Task[Conclusion | None]]:
    """The first of them is being written, and the others wait."""
    watched.gate.clear()
    first = asyncio.create_task(ending.write(held[0], APPROVED, SPENT))
    await watched.begun.wait()
    others = [asyncio.create_task(ending.write(one, APPROVED, SPENT)) for one in held[1:]]
    await asyncio.sleep(0)
    return [first, *others]


async def test_ends_that_wait_when_the_process_stops_are_written(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    ending = Endings(database)
    writing = await begun_with(ending, watched, held)
    ending.stop()
    for task in writing:
        task.cancel()
    await asyncio.sleep(0)
    watched.gate.set()
    assert await asyncio.gather(*writing) == [APPROVED] * 5
    assert watched.batches == [held[:1], held[1:]]
    await all_are_written_once(database, held)


async def test_an_end_whose_attempt_is_aborted_before_its_turn_is_not_written(
    database: Database, held: list[Claim], watched: Watched
) -> None:
    ending = Endings(database)
    writing = await begun_with(ending, watched, held)
    writing[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing[2]
    watched.gate.set()
    answers = await asyncio.gather(*writing, return_exceptions=True)
    assert [type(answer) for answer in answers].count(Conclusion) == 4
    assert watched.batches == [held[:1], [held[1], *held[3:]]]
    assert (await states(database, held))[2] is State.RUNNING
