"""Claims, and ends of attempts, many in one transaction: each as if it were alone."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from imprimatur.errors import Locked
from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Claim, Happening, Job, JobError, JobEvent, State
from imprimatur.storage import claims, conclusions, jobs, schema
from imprimatur.storage.attempts import Spent
from imprimatur.storage.claims import Wanted
from imprimatur.storage.conclusions import Conclusion, Ended, Ending
from imprimatur.storage.database import Database
from imprimatur.storage.workers import Worker
from tests import makers
from tests.contract.leasing import attempts_of, lock, lose, make_due
from tests.contract.polling import lock_waiters

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

FAULT = JobError(code="transient", message="The provider is down.", stage="engine", retryable=True)
APPROVED = Conclusion(
    happening=Happening.COMPLETED,
    outcome=AttemptOutcome.SUCCEEDED,
    shown=makers.shown("approved", "auto_approve", result=b"yes", result_count=1),
    details={"decision": "approved"},
)
HANDED_BACK = Conclusion(
    happening=Happening.HANDED_BACK,
    outcome=AttemptOutcome.HANDED_BACK,
    spends_attempt=False,
    details={"reason": "stopping"},
)


def wanted(job: Job | uuid.UUID, *, release_no: int = 1, claim_id: uuid.UUID | None = None) -> Wanted:
    job_id = job if isinstance(job, uuid.UUID) else job.id
    return Wanted(job_id=job_id, release_no=release_no, claim_id=claim_id or new_id())


async def claim(database: Database, asked: Sequence[Wanted], *, by: Worker | None = None) -> list[Claim | None]:
    async with database.begin() as tx:
        answers = await claims.claim(tx, by or makers.worker(), asked, lease_seconds=30.0)
    return [makers.unlocked(answer) for answer in answers]


async def running(database: Database, tenant: uuid.UUID, number: int) -> list[Claim]:
    submitted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(number)))
    claimed = await claim(database, [wanted(job) for job in submitted])
    assert None not in claimed
    return [one for one in claimed if one is not None]


def end(claim: Claim, conclusion: Conclusion, *, cost_micros: int = 0) -> Ending:
    return Ending(claim=claim, conclusion=conclusion, spent=Spent(engine="test", cost_micros=cost_micros))


async def conclude(database: Database, endings: Sequence[Ending]) -> list[Ended | None]:
    async with database.begin() as tx:
        return await conclusions.conclude(tx, endings)


async def found(database: Database, claim: Claim) -> Job:
    return await makers.find(database, claim.tenant_id, claim.job_id)


async def last_event(database: Database, job_id: uuid.UUID) -> JobEvent:
    async with database.read() as reader:
        return (await jobs.history(reader, job_id, after_version=0, limit=100))[-1]


# --- claiming --------------------------------------------------------------------------------------------


async def test_each_that_is_wanted_is_answered_in_order_with_its_own_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    submitted = await makers.submit(database, *(makers.new_job(tenant, content=bytes([place])) for place in range(20)))
    asked = [submitted[place] for place in (7, 3, 19, 0, 12)]
    claimed = await claim(database, [wanted(job) for job in asked], by=makers.worker("reviewer-7"))
    assert [one and (one.job_id, one.claim_no, one.input) for one in claimed] == [
        (job.id, 1, bytes([submitted.index(job)])) for job in asked
    ]
    for job in submitted:
        assert (await makers.find(database, tenant, job.id)).state is (State.RUNNING if job in asked else State.QUEUED)
    for job in asked:
        assert [(one.claim_no, one.worker) for one in await attempts_of(database, job.id)] == [(1, "reviewer-7")]
        assert (await last_event(database, job.id)).details == {"worker": "reviewer-7"}


async def test_what_cannot_be_claimed_takes_nothing_from_what_can(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    stale, early, good, taken, cancelled, last = await makers.submit(
        database, *(makers.new_job(tenant) for _ in range(6))
    )
    [overdue] = await makers.submit(database, makers.new_job(tenant, deadline_seconds=0.0))
    [held_back] = await makers.submit(database, makers.new_job(tenant), release_at_once=0)
    await makers.claim(database, taken)
    await makers.cancel(database, cancelled)
    claimed = await claim(
        database,
        [
            *(wanted(stale, release_no=0), wanted(early, release_no=2), wanted(good), wanted(taken)),
            *(wanted(cancelled), wanted(overdue), wanted(held_back, release_no=0), wanted(new_id()), wanted(last)),
        ],
    )
    assert [one and one.job_id for one in claimed] == [None, None, good.id, *[None] * 5, last.id]
    for job in (stale, early, overdue, held_back):
        assert await makers.find(database, tenant, job.id) == job
        assert await attempts_of(database, job.id) == []
    assert len(await attempts_of(database, taken.id)) == 1


async def test_of_two_who_want_the_same_job_in_one_batch_one_gets_it(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, other = await makers.submit(database, makers.new_job(tenant), makers.new_job(tenant))
    first, between, second = await claim(database, [wanted(job), wanted(other), wanted(job)])
    assert between is not None
    assert between.job_id == other.id
    [winner] = [one for one in (first, second) if one is not None]
    assert (winner.job_id, winner.claim_no) == (job.id, 1)
    assert len(await attempts_of(database, job.id)) == 1
    assert (await makers.find(database, tenant, job.id)).version == 2


async def test_claims_whose_answers_were_lost_are_found_again_among_new_ones(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    lost, fresh, ended, other = await makers.submit(database, *(makers.new_job(tenant) for _ in range(4)))
    before = [wanted(lost), wanted(ended), wanted(other)]
    first = await claim(database, before)
    assert first[1] is not None
    await makers.conclude(database, first[1], Happening.COMPLETED)
    asked = [before[1], wanted(fresh), before[0], before[2], wanted(lost)]
    again = await claim(database, asked)
    assert [one and one.job_id for one in again] == [None, fresh.id, lost.id, other.id, None]
    assert (again[2], again[3]) == (first[0], first[2])
    for job in (lost, other):
        assert len(await attempts_of(database, job.id)) == 1
        assert (await makers.find(database, tenant, job.id)).version == 2


async def test_a_claim_that_is_asked_for_twice_in_one_batch_is_one_claim(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    same = wanted(job)
    first, again = await claim(database, [same, same])
    assert first is not None
    assert first == again
    assert len(await attempts_of(database, job.id)) == 1


@on_postgresql
async def test_jobs_are_locked_in_the_order_of_their_ids_however_they_lie(database: Database) -> None:
    """Else two who end the same attempts might wait for each other in a circle."""
    tenant = await makers.make_tenant(database)
    low, high = sorted((new_id(), new_id()))
    batch = [makers.new_job(tenant, job_id=low, request_id="2"), makers.new_job(tenant, job_id=high, request_id="1")]
    await makers.submit(database, *batch)  # written in the order of the request ids
    held = [one for one in await claim(database, [wanted(high), wanted(low)]) if one is not None]
    async with database.begin() as tx:
        await lock(tx, low)
        ending = asyncio.create_task(conclude(database, [end(one, APPROVED) for one in held]))
        await lock_waiters(database, 1)
        assert await is_free(database, high)
    assert None not in await ending


async def is_free(database: Database, job_id: uuid.UUID) -> bool:
    one = select(schema.jobs.c.id).where(schema.jobs.c.id == job_id)
    async with database.begin() as tx:
        return (await tx.connection.execute(one.with_for_update(skip_locked=True))).one_or_none() is not None


@on_postgresql
async def test_a_job_that_others_keep_locked_is_told_from_one_that_is_gone_and_holds_up_no_other(
    database: Database,
) -> None:
    tenant = await makers.make_tenant(database)
    first, cancelled, last = await makers.submit(database, *(makers.new_job(tenant) for _ in range(3)))
    asked = [wanted(last), wanted(cancelled, release_no=2), wanted(cancelled), wanted(first)]
    async with database.begin() as tx, database.begin() as meanwhile:
        assert await jobs.cancel(tx, jobs.Owner(tenant_id=tenant), cancelled.id, reason="")
        answers = await claims.claim(meanwhile, makers.worker(), asked, lease_seconds=30.0)
    told = [one.job_id if isinstance(one, Claim) else type(one) for one in answers]
    assert told == [last.id, type(None), Locked, first.id]
    assert await claim(database, asked[1:3]) == [None, None]
    assert await attempts_of(database, cancelled.id) == []


async def test_no_claims_are_no_fault(database: Database) -> None:
    assert await claim(database, []) == []


# --- ending ----------------------------------------------------------------------------------------------


async def test_attempts_may_end_in_every_way_together(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    completed, referred, gave_up, later, back, again = await running(database, tenant, 6)
    seen = makers.shown("pending", "low_confidence", result=b"who knows")
    ways = {
        referred: Conclusion(happening=Happening.REFERRED, outcome=AttemptOutcome.SUCCEEDED, shown=seen),
        later: Conclusion(
            happening=Happening.RETRY_SCHEDULED,
            outcome=AttemptOutcome.FAILED,
            delay_seconds=300.0,
            error=FAULT,
            details={"error": "transient"},
        ),
        completed: APPROVED,
        back: HANDED_BACK,
        gave_up: Conclusion(happening=Happening.GAVE_UP, outcome=AttemptOutcome.FAILED, error=FAULT),
        again: Conclusion(
            happening=Happening.RETRY_SCHEDULED, outcome=AttemptOutcome.TIMED_OUT, delay_seconds=600.0, error=FAULT
        ),
    }
    endings = [end(one, way, cost_micros=place) for place, (one, way) in enumerate(ways.items(), 1)]
    answers = await conclude(database, endings)

    expected = {
        referred: (State.AWAITING_REVIEW, 1, None, "pending", b"who knows"),
        later: (State.QUEUED, 1, FAULT, "", None),
        completed: (State.SUCCEEDED, 1, None, "approved", b"yes"),
        back: (State.QUEUED, 0, None, "", None),
        gave_up: (State.FAILED, 1, FAULT, "", None),
        again: (State.QUEUED, 1, FAULT, "", None),
    }
    for ending, answer in zip(endings, answers, strict=True):
        job = await found(database, ending.claim)
        assert (job.state, job.attempts, job.error, job.decision, job.result) == expected[ending.claim]
        assert answer == Ended(
            type=job.type,
            state=job.state,
            priority=job.priority,
            decision=job.decision,
            policy_triggered=job.policy_triggered,
            created_at=job.created_at,
            at=job.updated_at,
        )
        event = await last_event(database, job.id)
        assert (event.version, event.kind, event.state) == (3, ending.conclusion.happening, job.state)
        assert event.details == (ending.conclusion.details or {})
        [attempt] = await attempts_of(database, job.id)
        assert (attempt.outcome, attempt.error) == (ending.conclusion.outcome, ending.conclusion.error)
        assert (attempt.engine, attempt.cost_micros) == ("test", ending.spent.cost_micros)
        assert attempt.finished_at is not None
    for claim_, delay in ((later, 300), (again, 600), (back, 0)):
        job = await found(database, claim_)
        assert job.run_at - job.updated_at == pytest.approx(timedelta(seconds=delay), abs=timedelta(seconds=1))


async def test_of_many_that_end_alike_each_has_its_own_result_and_history(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await running(database, tenant, 30)
    endings = [
        end(
            one,
            Conclusion(
                happening=Happening.COMPLETED,
                outcome=AttemptOutcome.SUCCEEDED,
                shown=makers.shown(f"decision {place}", "auto_approve", result=bytes([place]), result_count=place),
                details={"place": str(place)} if place else None,
            ),
        )
        for place, one in enumerate(held)
    ]
    order = endings[::-1]
    answers = await conclude(database, order)
    assert [answer and answer.decision for answer in answers] == [f"decision {29 - place}" for place in range(30)]
    for place, one in enumerate(held):
        job = await found(database, one)
        assert (job.decision, job.result, job.result_count) == (f"decision {place}", bytes([place]), place)
        assert (await last_event(database, job.id)).details == ({"place": str(place)} if place else {})


async def test_what_is_shown_stays_where_an_end_shows_nothing(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await running(database, tenant, 2)
    async with database.begin() as tx:
        everything = update(schema.jobs).values(decision="pending", policy_triggered="engine_error", result=b"before")
        await tx.connection.execute(everything)
    silent = Conclusion(happening=Happening.COMPLETED, outcome=AttemptOutcome.SUCCEEDED)
    await conclude(database, [end(held[0], silent), end(held[1], APPROVED)])
    shown = [await found(database, one) for one in held]
    assert [(job.decision, job.policy_triggered, job.result) for job in shown] == [
        ("pending", "engine_error", b"before"),
        ("approved", "auto_approve", b"yes"),
    ]


@pytest.mark.parametrize("others", [APPROVED, HANDED_BACK], ids=["alike", "in another way"])
async def test_one_that_is_fenced_off_changes_nothing_and_keeps_no_other_from_ending(
    database: Database, others: Conclusion
) -> None:
    tenant = await makers.make_tenant(database)
    first, cancelled, last = await running(database, tenant, 3)
    before = await makers.cancel(database, await found(database, cancelled))
    answers = await conclude(
        database, [end(first, others), end(cancelled, APPROVED, cost_micros=7), end(last, others, cost_micros=8)]
    )
    assert [answer is not None for answer in answers] == [True, False, True]
    assert await found(database, cancelled) == before
    [attempt] = await attempts_of(database, cancelled.job_id)
    assert (attempt.outcome, attempt.cost_micros) == (AttemptOutcome.CANCELLED, 7)
    assert (await found(database, last)).state is (await found(database, first)).state is not State.RUNNING
    assert (await attempts_of(database, last.job_id))[0].cost_micros == 8


@pytest.mark.parametrize("stale_first", [True, False])
async def test_of_an_old_and_a_new_claim_that_end_together_the_new_one_counts(
    database: Database, stale_first: bool
) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    stale = await lose(database, job, release_no=1)
    await makers.release(database)
    [live] = await claim(database, [wanted(job, release_no=2)])
    assert live is not None
    late = Conclusion(
        happening=Happening.COMPLETED,
        outcome=AttemptOutcome.SUCCEEDED,
        shown=makers.shown("rejected", "auto_reject", result=b"no"),
        details={"decision": "rejected"},
    )
    both = [end(stale, late, cost_micros=5), end(live, APPROVED, cost_micros=6)]
    answers = await conclude(database, both if stale_first else both[::-1])
    assert [answer is not None for answer in answers] == ([False, True] if stale_first else [True, False])
    done = await found(database, live)
    assert (done.decision, done.result, done.version) == ("approved", b"yes", 5)
    assert (await last_event(database, job.id)).details == {"decision": "approved"}
    assert [(one.outcome, one.cost_micros) for one in await attempts_of(database, job.id)] == [
        (AttemptOutcome.LOST, 5),
        (AttemptOutcome.SUCCEEDED, 6),
    ]


async def test_workers_that_were_only_slow_take_their_losses_back_each_job_once(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [once, twice, other] = await makers.submit(database, *(makers.new_job(tenant) for _ in range(3)))
    late = [await lose(database, job, release_no=1) for job in (once, twice)]
    await make_due(database, twice.id)
    await makers.release(database)
    late.append(await lose(database, twice, release_no=2))
    good = await makers.claim(database, other)
    assert good is not None
    assert [await losses_of(database, job) for job in (once, twice, other)] == [1, 2, 0]
    endings = [end(one, APPROVED, cost_micros=9) for one in (*late, good)]
    assert [answer is not None for answer in await conclude(database, endings)] == [False, False, False, True]
    assert [await losses_of(database, job) for job in (once, twice, other)] == [0, 1, 0]
    assert [one.cost_micros for one in await attempts_of(database, twice.id)] == [9, 9]
    async with database.begin() as tx:
        await conclusions.book(tx, endings)  # once more, for themselves: nothing is taken back again
    assert [await losses_of(database, job) for job in (once, twice, other)] == [0, 1, 0]


async def losses_of(database: Database, job: Job) -> int:
    async with database.read() as reader:
        row = await jobs.content_of(reader, jobs.Owner(tenant_id=job.tenant_id), job.id)
    assert row is not None
    return int(row.losses)


async def test_attempts_whose_jobs_are_somebody_elses_are_booked_together(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await running(database, tenant, 3)
    taken = Conclusion(happening=Happening.CANCELLED, outcome=AttemptOutcome.CANCELLED, spends_attempt=False)
    async with database.begin() as tx:
        await conclusions.book(tx, [end(one, taken, cost_micros=place) for place, one in enumerate(held)])
    for place, one in enumerate(held):
        [attempt] = await attempts_of(database, one.job_id)
        assert (attempt.outcome, attempt.cost_micros) == (AttemptOutcome.CANCELLED, place)
        assert (await found(database, one)).version == 2


async def test_who_ends_the_same_attempts_in_other_ways_waits_in_no_circle(database: Database) -> None:
    """What ends in one way is changed by one statement, and what ends in another by the next."""
    tenant = await makers.make_tenant(database)
    held = await running(database, tenant, 4)
    async with database.begin() as tx:
        await lock(tx, held[3].job_id)
        ways = {0: APPROVED, 2: APPROVED, 3: APPROVED, 1: HANDED_BACK}
        first = asyncio.create_task(conclude(database, [end(held[place], way) for place, way in ways.items()]))
        await lock_waiters(database, 1)
        both = [end(held[1], APPROVED), end(held[2], HANDED_BACK)]
        second = asyncio.create_task(conclude(database, both))
        await lock_waiters(database, 2)
    assert None not in await first
    assert await second == [None, None]


async def test_what_is_cancelled_while_a_batch_of_ends_waits_for_it_stays_cancelled(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = await running(database, tenant, 3)
    async with database.begin() as tx:
        assert await jobs.cancel(tx, jobs.Owner(tenant_id=tenant), held[1].job_id, reason="")
        ending = asyncio.create_task(conclude(database, [end(one, APPROVED) for one in held]))
        await lock_waiters(database, 1)
    assert [answer is not None for answer in await ending] == [True, False, True]
    states = [(await found(database, one)).state for one in held]
    assert states == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]


async def test_no_ends_are_no_fault(database: Database) -> None:
    assert await conclude(database, []) == []
    async with database.begin() as tx:
        await conclusions.book(tx, [])
