"""Statistics against a plain count in Python over the same rows."""

import math
import random
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Row, insert, select, update

from imprimatur.identity import first_id_at
from imprimatur.job import AttemptOutcome, Happening, JobType, Priority, State
from imprimatur.storage import clock, repeats, schema, statistics
from imprimatur.storage.attempts import Spent
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.repeats import Scope
from imprimatur.storage.statistics import ErrorCount, HourStats, QueueStatus, TypeStats, UnderWay
from tests import makers

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SINCE, UNTIL = NOON - timedelta(hours=6), NOON + timedelta(hours=6)
CODES = ["transient", "timed_out", "rate_limited", None]


async def history(database: Database, tenant: uuid.UUID, number: int, *, seed: int) -> list[Row[Any]]:
    """Jobs of the past, some before and after the window, in every state and with every kind of end."""
    dice = random.Random(seed)
    moments = [
        NOON + timedelta(seconds=dice.choice([dice.uniform(-40_000, 40_000), -21_600, 21_600, 0, 3600]))
        for _ in range(number)
    ]
    accepted = await makers.submit(
        database,
        *(
            makers.new_job(tenant, user_id=dice.choice(["ada", "grace"]), job_id=_made_about(dice, created))
            for created in moments
        ),
        release_at_once=0,
    )
    async with database.begin() as tx:
        for job, created in zip(accepted, moments, strict=True):
            await _make_up(tx, dice, job.id, created)
        found = await tx.connection.execute(select(schema.jobs).where(schema.jobs.c.tenant_id == tenant))
        return list(found.all())


def _made_about(dice: random.Random, created: datetime) -> uuid.UUID:
    """An id by a clock that is up to fifty minutes off."""
    return uuid.UUID(int=first_id_at(created, moved_seconds=dice.uniform(-3000, 3000)).int | dice.getrandbits(80))


async def _make_up(tx: Reader, dice: random.Random, job_id: uuid.UUID, created: datetime) -> None:
    state = dice.choice(list(State))
    started = created + timedelta(seconds=dice.uniform(0, 60)) if dice.random() < 0.9 else None
    finished = (started or created) + timedelta(seconds=dice.uniform(0, 6000))
    await tx.connection.execute(
        update(schema.jobs)
        .where(schema.jobs.c.id == job_id)
        .values(
            state=state,
            created_at=created,
            started_at=started,
            finished_at=finished if state.terminal else None,
            decision=dice.choice(["approved", "rejected", "pending", ""]),
        )
    )
    for claim_no in range(1, dice.randint(1, 4)):
        ended = dice.random() < 0.8
        await tx.connection.execute(
            insert(schema.attempts).values(
                job_id=job_id,
                claim_no=claim_no,
                worker="reviewer-1",
                started_at=created,
                finished_at=created + timedelta(seconds=dice.uniform(0, 900)) if ended else None,
                error_code=dice.choice(CODES) if ended else None,
                engine="",
                input_tokens=0,
                output_tokens=0,
                cost_micros=0,
            )
        )


def counted(rows: list[Row[Any]]) -> TypeStats:
    created = [row for row in rows if SINCE <= row.created_at < UNTIL]
    finished = [row for row in rows if row.finished_at and SINCE <= row.finished_at < UNTIL]
    states = Counter(row.state for row in finished)
    decisions = Counter(row.decision for row in finished if row.state == State.SUCCEEDED)
    worked = [row for row in finished if row.state in (State.SUCCEEDED, State.FAILED) and row.started_at]
    durations = sorted((row.finished_at - row.started_at).total_seconds() for row in worked)
    return TypeStats(
        type=JobType.CREATIVE_REVIEW,
        created=len(created),
        succeeded=states[State.SUCCEEDED],
        failed=states[State.FAILED],
        cancelled=states[State.CANCELLED],
        awaiting_review=sum(row.state == State.AWAITING_REVIEW for row in created),
        mean_seconds=sum(durations) / len(durations),
        p95_seconds=durations[math.ceil(len(durations) * 95 / 100) - 1],
        approved=decisions["approved"],
        rejected=decisions["rejected"],
    )


def in_millis(line: TypeStats) -> TypeStats:
    """Without the last bits, in which two ways to add floating-point numbers may differ."""
    assert line.mean_seconds is not None
    assert line.p95_seconds is not None
    return replace(line, mean_seconds=round(line.mean_seconds, 3), p95_seconds=round(line.p95_seconds, 3))


def counted_hours(rows: list[Row[Any]]) -> list[HourStats]:
    def by_hour(instants: list[datetime]) -> Counter[datetime]:
        return Counter(at.replace(minute=0, second=0, microsecond=0) for at in instants if SINCE <= at < UNTIL)

    created = by_hour([row.created_at for row in rows])
    finished = by_hour([row.finished_at for row in rows if row.finished_at])
    return [
        HourStats(hour=hour, created=created[hour], finished=finished[hour]) for hour in sorted({*created, *finished})
    ]


async def counted_errors(database: Database, rows: list[Row[Any]]) -> list[ErrorCount]:
    ids = {row.id for row in rows}
    async with database.read() as reader:
        tries = (await reader.connection.execute(select(schema.attempts))).all()
    codes = Counter(
        row.error_code
        for row in tries
        if row.job_id in ids and row.error_code and row.finished_at and SINCE <= row.finished_at < UNTIL
    )
    return [
        ErrorCount(code=code, attempts=number)
        for code, number in sorted(codes.items(), key=lambda item: (-item[1], item[0]))
    ]


@pytest.mark.parametrize("number", [10, 150])
async def test_the_counts_of_a_window_are_those_of_a_count_by_hand(database: Database, number: int) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    rows = await history(database, tenant, number + 20, seed=number)
    await history(database, other, 20, seed=0)
    for owner in (Owner(tenant_id=tenant), Owner(tenant_id=tenant, user_id="ada")):
        mine = [row for row in rows if owner.user_id in ("", row.user_id)]
        async with database.read() as reader:
            assert [in_millis(line) for line in await statistics.type_stats(reader, owner, SINCE, UNTIL)] == [
                in_millis(counted(mine))
            ]
            assert await statistics.hours(reader, owner, SINCE, UNTIL) == counted_hours(mine)
            errors = await statistics.error_counts(reader, owner, SINCE, UNTIL)
        assert errors == await counted_errors(database, mine)


@pytest.mark.parametrize("number", [1, 20, 21, 100])
async def test_the_95th_percentile_is_that_of_the_nearest_rank(database: Database, number: int) -> None:
    """Of the durations 1 s, 2 s … n s it is the one at ceil(0.95 n)."""
    tenant = await makers.make_tenant(database)
    accepted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(number)))
    random.Random(1).shuffle(accepted)
    async with database.begin() as tx:
        for seconds, job in enumerate(accepted, start=1):
            await tx.connection.execute(
                update(schema.jobs)
                .where(schema.jobs.c.id == job.id)
                .values(state=State.SUCCEEDED, started_at=NOON, finished_at=NOON + timedelta(seconds=seconds))
            )
    async with database.read() as reader:
        [found] = await statistics.type_stats(reader, Owner(tenant_id=tenant), SINCE, UNTIL)
    assert found.p95_seconds == pytest.approx(math.ceil(number * 95 / 100))
    assert found.mean_seconds == pytest.approx((number + 1) / 2)


async def test_where_nothing_happened_there_is_nothing_to_tell(database: Database) -> None:
    owner = Owner(tenant_id=await makers.make_tenant(database))
    async with database.read() as reader:
        assert await statistics.type_stats(reader, owner, SINCE, UNTIL) == []
        assert await statistics.error_counts(reader, owner, SINCE, UNTIL) == []
        assert await statistics.hours(reader, owner, SINCE, UNTIL) == []
        assert await statistics.under_way(reader, owner) == UnderWay(running=0, awaiting_review=0)
        assert await statistics.queue_status(reader, owner) == [QueueStatus(priority=each) for each in Priority]
        assert await statistics.recent_mean_seconds(reader, None, JobType.CREATIVE_REVIEW) is None
        nothing = await statistics.unfinished(reader)
    assert (nothing.counts, nothing.oldest_due_seconds, nothing.oldest_awaiting_seconds) == ({}, {}, None)


async def test_jobs_that_never_started_have_no_duration(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await makers.submit(database, makers.new_job(tenant))
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.jobs).values(state=State.FAILED, finished_at=NOON))
    async with database.read() as reader:
        [found] = await statistics.type_stats(reader, Owner(tenant_id=tenant), SINCE, UNTIL)
    assert found == TypeStats(type=JobType.CREATIVE_REVIEW, failed=1)
    assert found.success_rate == 0.0


async def test_what_attempts_cost_adds_up_whatever_became_of_them(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    spent = Spent(engine="test", input_tokens=1000, output_tokens=100, cost_micros=7)
    async with database.read() as reader:
        began = await clock.present(reader)
    for happening in (Happening.COMPLETED, Happening.REFERRED, Happening.RETRY_SCHEDULED):
        await makers.conclude(database, await makers.running(database, tenant), happening, spent=spent)
    await makers.conclude(database, await makers.running(database, tenant), Happening.COMPLETED, spent=Spent())
    await makers.conclude(database, await makers.running(database, other), Happening.COMPLETED, spent=spent)
    async with database.read() as reader:
        until = await clock.present(reader) + timedelta(milliseconds=1)
        [found] = await statistics.type_stats(reader, Owner(tenant_id=tenant), began, until)
        assert (found.input_tokens, found.output_tokens, found.cost_micros) == (3000, 300, 21)
        assert await statistics.type_stats(reader, Owner(tenant_id=tenant), until, until + timedelta(hours=1)) == []


def test_the_success_rate_is_that_of_the_succeeded_and_failed() -> None:
    review = JobType.CREATIVE_REVIEW
    assert TypeStats(type=review, succeeded=3, failed=1, cancelled=5).success_rate == 0.75
    assert TypeStats(type=review, cancelled=5).success_rate == 0.0


# --- now -------------------------------------------------------------------------------------------------


async def test_the_queue_is_counted_by_priority_with_the_oldest_age(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    async with database.read() as reader:
        later = await clock.present(reader) + timedelta(hours=1)
    high, *_ = await makers.submit(
        database,
        makers.new_job(tenant, priority=Priority.HIGH, user_id="ada"),
        makers.new_job(tenant, priority=Priority.HIGH),
        makers.new_job(tenant, priority=Priority.LOW, run_at=later),
        makers.new_job(other, priority=Priority.NORMAL),
        release_at_once=1,  # released and unclaimed still waits
    )
    async with database.begin() as tx:
        aged = update(schema.jobs).where(schema.jobs.c.id == high.id).values(run_at=clock.after(-90.0))
        await tx.connection.execute(aged)
    async with database.read() as reader:
        seen = await statistics.queue_status(reader, Owner(tenant_id=tenant))
        adas = await statistics.queue_status(reader, Owner(tenant_id=tenant, user_id="ada"))
    assert [(line.priority, line.due, line.scheduled) for line in seen] == [
        (Priority.HIGH, 2, 0),
        (Priority.NORMAL, 0, 0),
        (Priority.LOW, 0, 1),
    ]
    assert seen[0].oldest_seconds == pytest.approx(90.0, abs=5.0)
    assert (seen[1].oldest_seconds, seen[2].oldest_seconds) == (None, None)
    assert [line.due for line in adas] == [1, 0, 0]


async def test_what_runs_and_what_waits_for_a_person_is_counted_for_its_owner(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    await makers.running(database, tenant)
    await makers.running(database, other)
    await makers.awaiting(database, tenant, user_id="ada")
    await makers.awaiting(database, tenant)
    async with database.read() as reader:
        everyone = await statistics.under_way(reader, Owner(tenant_id=tenant))
        ada = await statistics.under_way(reader, Owner(tenant_id=tenant, user_id="ada"))
    assert everyone == UnderWay(running=1, awaiting_review=2)
    assert ada == UnderWay(running=0, awaiting_review=1)


async def test_the_expected_duration_is_the_mean_of_the_newest_successful_attempts(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    number = statistics.RECENT_ATTEMPTS + 5
    accepted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(number)))
    accepted += await makers.submit(database, makers.new_job(other))
    rows = [
        {
            "job_id": job.id,
            "claim_no": 1,
            "worker": "reviewer-1",
            "started_at": NOON,
            "finished_at": NOON + timedelta(seconds=seconds),
            "outcome": AttemptOutcome.FAILED if seconds == number else AttemptOutcome.SUCCEEDED,
            "engine": "",
            "input_tokens": 0,
            "output_tokens": 0,
            "cost_micros": 0,
        }
        for seconds, job in enumerate(accepted, start=1)
    ]
    async with database.begin() as tx:
        await tx.connection.execute(insert(schema.attempts), rows)
    review = JobType.CREATIVE_REVIEW
    async with database.read() as reader:
        mine = await statistics.recent_mean_seconds(reader, tenant, review)
        theirs = await statistics.recent_mean_seconds(reader, other, review)
        everyones = await statistics.recent_mean_seconds(reader, None, review)
    newest = list(range(5, number))[-statistics.RECENT_ATTEMPTS :]
    assert mine == pytest.approx(sum(newest) / len(newest))
    assert theirs == pytest.approx(number + 1)
    assert everyones == pytest.approx((sum(newest[1:]) + number + 1) / len(newest))


async def test_everything_unfinished_is_counted_over_all_tenants(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    review = JobType.CREATIVE_REVIEW
    await makers.submit(
        database,
        makers.new_job(tenant, priority=Priority.LOW),
        makers.new_job(other, priority=Priority.LOW),
        makers.new_job(other, priority=Priority.HIGH),
    )
    await makers.submit(
        database, makers.new_job(other, priority=Priority.HIGH, run_at=datetime.now(UTC) + timedelta(hours=1))
    )
    held = await makers.running(database, tenant)
    await makers.conclude(database, await makers.running(database, other), Happening.COMPLETED)
    waits = await makers.awaiting(database, other)
    async with database.begin() as tx:
        aged = update(schema.jobs).where(schema.jobs.c.id == waits.id).values(awaiting_since=clock.after(-500.0))
        await tx.connection.execute(aged)
        queued = schema.jobs.c.priority == Priority.LOW
        await tx.connection.execute(update(schema.jobs).where(queued).values(run_at=clock.after(-70.0)))
    await makers.hold(database, waits, reviewer="ada")
    async with database.read() as reader:
        seen = await statistics.unfinished(reader)
    assert seen.counts == {
        (State.QUEUED, review, Priority.LOW): 2,
        (State.QUEUED, review, Priority.HIGH): 2,  # one of them later
        (State.RUNNING, review, Priority.NORMAL): 1,
        (State.AWAITING_REVIEW, review, Priority.NORMAL): 1,
    }
    assert seen.due == {(review, Priority.LOW): 2, (review, Priority.HIGH): 1}
    assert set(seen.oldest_due_seconds) == {Priority.LOW, Priority.HIGH}
    assert seen.oldest_due_seconds[Priority.LOW] == pytest.approx(70.0, abs=5.0)
    assert seen.oldest_awaiting_seconds == pytest.approx(500.0, abs=5.0)
    assert held.claim_no == 1


async def test_who_waits_for_a_person_has_waited_since_the_last_time_it_was_referred(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job = await makers.awaiting(database, tenant)
    await _wait(database, awaiting_since=clock.after(-500.0))
    await makers.hold(database, job, reviewer="ada", seconds=-1.0)
    assert await _oldest(database) == pytest.approx(500.0, abs=5.0)  # a hold is no new beginning
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.jobs).values(policy_triggered="engine_error"))
        scope = Scope(owner=Owner(tenant_id=tenant), wanted=Filter(), as_of=await clock.present(tx))
        assert len(await repeats.review_again(tx, scope, limit=10, asked_by="ada")) == 1
    assert await _oldest(database) is None
    await makers.release(database)
    held = await makers.claim(database, job, release_no=2)
    assert held is not None
    await makers.conclude(database, held, Happening.REFERRED)
    assert await _oldest(database) == pytest.approx(0.0, abs=5.0)


async def test_what_a_process_of_the_version_before_referred_has_waited_too(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await makers.awaiting(database, tenant)
    await _wait(database, awaiting_since=None, updated_at=clock.after(-700.0))
    await makers.awaiting(database, tenant)
    assert await _oldest(database) == pytest.approx(700.0, abs=5.0)


async def _wait(database: Database, **values: object) -> None:
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.jobs).values(values))


async def _oldest(database: Database) -> float | None:
    async with database.read() as reader:
        return (await statistics.unfinished(reader)).oldest_awaiting_seconds
