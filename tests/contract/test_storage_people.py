"""The human queue: its order, holds that keep two people apart, and decisions that stand."""

import asyncio
import uuid

from imprimatur.human import DueHours
from imprimatur.identity import new_id
from imprimatur.job import Job, Priority, State
from imprimatur.storage import clock, people, review_queue
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.review_queue import Place, Waiting, Wanted
from tests import makers

DUE = DueHours()


async def queue(
    database: Database,
    owner: Owner,
    *,
    reviewer: str = "ada",
    unclaimed_only: bool = False,
    after: Place | None = None,
    limit: int = 100,
) -> list[Waiting]:
    wanted = Wanted(free_for=reviewer if unclaimed_only else "")
    async with database.read() as reader:
        as_of = after.as_of if after is not None else await clock.present(reader)
        return await review_queue.page(reader, owner, wanted, due=DUE, as_of=as_of, after=after, limit=limit)


async def decide(
    database: Database, job: Job, *, reviewer: str, decision: str = "approved", token: uuid.UUID | None = None
) -> Job | None:
    async with database.begin() as tx:
        owner = Owner(tenant_id=job.tenant_id)
        locked = await people.lock_waiting(tx, owner, job.id, reviewer=reviewer, token=token)
        if locked is None:
            return None
        made = HumanDecision(
            reviewer=reviewer,
            decision=decision,
            reason="It is fine.",
            ai_recommendation="reject",
            overrides_ai=True,
            decided_at=await clock.present(tx),
        )
        return await people.decide(tx, locked, made, result=b"decided")


async def holder(database: Database, job: Job) -> str:
    async with database.read() as reader:
        return await people.holder(reader, job.id)


# --- the queue -------------------------------------------------------------------------------------------


async def test_high_priority_comes_first_then_the_longest_waiting(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    normal = await makers.awaiting(database, tenant)
    low = await makers.awaiting(database, tenant, priority=Priority.LOW)
    younger = await makers.awaiting(database, tenant)
    high = await makers.awaiting(database, tenant, priority=Priority.HIGH)
    await makers.running(database, tenant)
    found = await queue(database, Owner(tenant_id=tenant))
    assert [item.job for item in found] == [high, normal, younger, low]
    assert found[0].input == b"a creative"


async def test_the_queue_is_read_page_by_page_without_gaps_or_repeats(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    owner = Owner(tenant_id=tenant)
    for priority in (Priority.LOW, Priority.HIGH, Priority.NORMAL, Priority.HIGH, Priority.LOW):
        await makers.awaiting(database, tenant, priority=priority)
    everything = [item.job.id for item in await queue(database, owner)]
    for size in (1, 2, 3):
        pages: list[Waiting] = []
        after: Place | None = None
        while page := await queue(database, owner, after=after, limit=size):
            pages += page
            as_of = after.as_of if after is not None else pages[0].since
            after = review_queue.place_of(pages[-1], DUE, as_of)
        assert [item.job.id for item in pages] == everything


async def test_each_sees_only_what_waits_for_their_own_tenant_and_user(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    mine = await makers.awaiting(database, acme, user_id="ada")
    hers = await makers.awaiting(database, acme, user_id="grace")
    theirs = await makers.awaiting(database, globex, user_id="ada")
    assert [item.job for item in await queue(database, Owner(tenant_id=acme))] == [mine, hers]
    assert [item.job for item in await queue(database, Owner(tenant_id=acme, user_id="ada"))] == [mine]
    assert [item.job for item in await queue(database, Owner(tenant_id=globex))] == [theirs]


# --- holds -----------------------------------------------------------------------------------------------


async def test_what_one_holds_another_cannot_hold_or_decide(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    held = await makers.hold(database, job, reviewer="ada")
    assert held is not None
    assert (held.held_by, held.job.version) == ("ada", job.version + 1)
    assert held.held_until is not None
    assert await makers.hold(database, job, reviewer="grace") is None
    assert await decide(database, job, reviewer="grace") is None
    assert await holder(database, job) == "ada"


async def test_a_hold_can_be_prolonged_by_its_holder(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    short = await makers.hold(database, job, reviewer="ada", seconds=10)
    longer = await makers.hold(database, job, reviewer="ada", seconds=60)
    assert short is not None
    assert longer is not None
    assert short.held_until is not None
    assert longer.held_until is not None
    assert longer.held_until > short.held_until


async def test_of_many_who_want_to_hold_at_once_one_does(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    held = await asyncio.gather(*(makers.hold(database, job, reviewer=f"person-{number}") for number in range(10)))
    [winner] = [item for item in held if item is not None]
    assert await holder(database, job) == winner.held_by


async def test_a_hold_ends_by_itself(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    await makers.hold(database, job, reviewer="ada", seconds=0.1)

    async def free() -> bool:
        return await makers.hold(database, job, reviewer="grace") is not None

    await makers.until(free)
    assert await holder(database, job) == "grace"
    assert await decide(database, job, reviewer="ada") is None


async def test_the_unclaimed_are_those_free_for_the_one_who_asks(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    mine, hers, free = [await makers.awaiting(database, tenant) for _ in range(3)]
    await makers.hold(database, mine, reviewer="ada")
    await makers.hold(database, hers, reviewer="grace")
    found = await queue(database, Owner(tenant_id=tenant), reviewer="ada", unclaimed_only=True)
    assert [item.job.id for item in found] == [mine.id, free.id]


async def test_only_what_waits_for_a_person_can_be_held(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [queued] = await makers.submit(database, makers.new_job(tenant))
    assert await makers.hold(database, queued, reviewer="ada") is None
    assert await holder(database, queued) == ""
    async with database.begin() as tx:
        assert await people.hold(tx, Owner(tenant_id=tenant), new_id(), by=Actor(person="ada"), seconds=1.0) is None


async def test_another_tenant_cannot_hold_or_decide(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    stranger = Owner(tenant_id=await makers.make_tenant(database))
    async with database.begin() as tx:
        assert await people.hold(tx, stranger, job.id, by=Actor(person="ada"), seconds=60.0) is None
        assert await people.lock_waiting(tx, stranger, job.id, reviewer="ada") is None


# --- decisions -------------------------------------------------------------------------------------------


async def test_a_decision_finishes_the_job_and_is_on_record(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job = await makers.awaiting(database, tenant)
    held = await makers.hold(database, job, reviewer="ada")
    assert held is not None
    decided = await decide(database, job, reviewer="ada", decision="rejected", token=held.token)
    assert decided is not None
    assert (decided.state, decided.decision, decided.result) == (State.SUCCEEDED, "rejected", b"decided")
    assert decided.finished_at is not None
    assert await holder(database, job) == ""
    async with database.read() as reader:
        record = await people.latest_decision(reader, job.id)
    assert record is not None
    assert (record.reviewer, record.decision, record.ai_recommendation) == ("ada", "rejected", "reject")
    assert record.overrides_ai
    assert abs((record.decided_at - decided.updated_at).total_seconds()) < 5


async def test_a_name_without_the_token_decides_nothing_that_is_held_in_that_name(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    assert await makers.hold(database, job, reviewer="ada") is not None
    assert await decide(database, job, reviewer="ada") is None
    again = await makers.hold(database, job, reviewer="ada")
    assert again is not None
    assert await decide(database, job, reviewer="ada", token=again.token) is not None


async def test_no_hold_is_needed_to_decide_what_nobody_holds(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    assert await decide(database, job, reviewer="ada") is not None


async def test_a_decided_job_is_not_decided_again(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    decided = await decide(database, job, reviewer="ada")
    assert await decide(database, job, reviewer="ada", decision="rejected") is None
    assert await makers.find(database, job.tenant_id, job.id) == decided


async def test_of_many_decisions_at_once_one_stands(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    decided = await asyncio.gather(*(decide(database, job, reviewer=f"person-{number}") for number in range(8)))
    assert len([item for item in decided if item is not None]) == 1


async def test_a_job_without_a_decision_has_none(database: Database) -> None:
    async with database.read() as reader:
        assert await people.latest_decision(reader, new_id()) is None
