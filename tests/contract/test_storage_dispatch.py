"""Which waiting jobs are put up for claiming, in which order, and what becomes of those that waited too long."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from imprimatur.broker import Queue
from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Happening, Job, JobType, NewJob, Priority, State
from imprimatur.storage import clock, dispatch, schema, workers
from imprimatur.storage.database import Database, OutboxRow
from imprimatur.storage.dispatch import BEGINNING, LOST_TOO_OFTEN, OVERDUE, Backlog, Hopeless, Work
from imprimatur.wire.messages import Released, ReviewRequested
from tests import makers
from tests.contract.leasing import attempts_of, make_due, sweep_until_lost


async def waiting(database: Database, *new_jobs: NewJob) -> list[Job]:
    """Accepted and not released."""
    return await makers.submit(database, *new_jobs, release_at_once=0)


async def released(database: Database, *, room: int) -> list[tuple[str, Released]]:
    """One pass of the dispatcher: the queues and requests in the order in which they are published."""
    handed_over: list[OutboxRow] = []
    database.on_commit = handed_over.extend
    number = await makers.release(database, room=room)
    asked = [(row.routing_key, one) for row in handed_over for one in ReviewRequested.decode(row.body).jobs]
    assert number == len(asked)
    return asked


async def reissue(database: Database, *, limit: int = 100) -> int:
    async with database.begin() as tx:
        return await dispatch.reissue(tx, limit=limit)


async def backlog(database: Database) -> Backlog:
    async with database.read() as reader:
        return await dispatch.backlog(reader, silent_seconds=30.0)


async def make_older(database: Database, seconds: float) -> None:
    """Let everything that is released look as if it had been for so much longer."""
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.jobs).values(released_at=clock.after(-seconds, start=schema.jobs.c.released_at))
        )


async def reissue_after(database: Database, job_id: uuid.UUID) -> float:
    column = schema.jobs.c.reissue_after_seconds
    async with database.read() as reader:
        found = await reader.connection.execute(select(column).where(schema.jobs.c.id == job_id))
    return float(found.scalar_one())


# --- releasing -------------------------------------------------------------------------------------------


async def test_a_release_asks_the_queue_of_the_jobs_priority_with_a_new_number(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    low, high = await waiting(
        database, makers.new_job(tenant, priority=Priority.LOW), makers.new_job(tenant, priority=Priority.HIGH)
    )
    assert sorted(await released(database, room=10), key=lambda one: one[0]) == [
        (Queue.REVIEW_HIGH, Released(job_id=high.id, release_no=1)),
        (Queue.REVIEW_LOW, Released(job_id=low.id, release_no=1)),
    ]
    assert await released(database, room=10) == []


async def test_a_release_is_no_new_version_of_the_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await waiting(database, makers.new_job(tenant))
    await makers.release(database)
    assert await makers.find(database, tenant, job.id) == job


@pytest.mark.parametrize("jobs_before", [0, 400], ids=["a small table", "a table with history"])
async def test_no_more_are_released_than_there_is_room_for(database: Database, jobs_before: int) -> None:
    """With and without statistics of the table: the plan must not matter."""
    tenant = await makers.make_tenant(database)
    if jobs_before:
        await makers.submit(database, *(makers.new_job(tenant) for _ in range(jobs_before)))
        async with database.begin() as tx:
            await tx.connection.execute(update(schema.jobs).values(state=State.SUCCEEDED))
            await tx.connection.exec_driver_sql("ANALYZE")
    await waiting(database, *(makers.new_job(tenant) for _ in range(10)))
    assert [await makers.release(database, room=room) for room in (3, 0, -1, 4, 100, 100)] == [3, 0, 0, 4, 3, 0]


async def test_concurrent_dispatchers_release_each_job_once(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await waiting(database, *(makers.new_job(tenant) for _ in range(30)))
    passes = await asyncio.gather(*(makers.release(database, room=5) for _ in range(4)))
    assert all(number <= 5 for number in passes)
    assert sum(passes) + await makers.release(database) == 30


async def test_of_many_jobs_a_few_go_into_one_message_and_never_fewer_messages_than_eight(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for number, together, sizes in (
        (7, 4, [1] * 7),
        (17, 4, [2] * 8 + [1]),
        (40, 4, [4] * 10),
        (40, 1, [1] * 40),
        (9, 0, [1] * 9),
    ):
        ids = [job.id for job in await waiting(database, *(makers.new_job(tenant) for _ in range(number)))]
        handed_over: list[OutboxRow] = []
        database.on_commit = handed_over.extend
        async with database.begin() as tx:
            assert await dispatch.release_due(tx, room=number, together=together) == number
        requests = [ReviewRequested.decode(row.body).jobs for row in handed_over]
        assert [len(jobs) for jobs in requests] == sizes
        assert [job.job_id for jobs in requests for job in jobs] == ids


async def test_a_scheduled_job_is_released_when_its_time_has_come(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        run_at = await clock.present(reader) + timedelta(hours=1)
    [job] = await waiting(database, makers.new_job(tenant, run_at=run_at))
    assert await makers.release(database) == 0
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.jobs).where(schema.jobs.c.id == job.id).values(run_at=clock.after(-0.001))
        )
    assert await makers.release(database) == 1


async def test_the_backlog_counts_released_due_and_slots(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        later = await clock.present(reader) + timedelta(hours=1)
    await waiting(database, *(makers.new_job(tenant) for _ in range(3)), makers.new_job(tenant, run_at=later))
    await makers.release(database, room=1)
    await makers.running(database, tenant)
    async with database.begin() as tx:
        await workers.seen(tx, makers.worker(slots=4), running=1)
        await workers.seen(tx, makers.worker(slots=3), running=0)
        await workers.seen(tx, makers.worker(slots=1), running=0)
        await tx.connection.execute(
            update(schema.workers).where(schema.workers.c.slots == 1).values(seen_at=clock.after(-31.0))
        )
    found = await backlog(database)
    assert found == Backlog(reissued=0, released=1, running=1, due=True, slots=7, least_slots=3, gateways=0)


async def test_of_two_transactions_one_does_the_work_and_neither_work_keeps_the_other_waiting(
    database: Database,
) -> None:
    async with database.begin() as first:
        assert await dispatch.is_mine(first, Work.RELEASING)
        if database.on_postgresql:
            async with database.begin() as second:
                assert not await dispatch.is_mine(second, Work.RELEASING)
                assert await dispatch.is_mine(second, Work.RECOVERING)
    async with database.begin() as third:
        assert await dispatch.is_mine(third, Work.RELEASING)


# --- issuing again ---------------------------------------------------------------------------------------


async def test_a_released_job_that_nobody_claims_is_asked_for_again_each_time_later(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    waits = []
    for number in range(1, 9):
        waits.append(await reissue_after(database, job.id))
        await make_older(database, waits[-1] - 2)
        assert await reissue(database) == 0, "not before its time"
        await make_older(database, 2)
        assert await reissue(database) == 1
        assert await makers.claim(database, job, release_no=number) is None, "the older message is stale"
    assert waits == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 320.0, 320.0]
    assert await makers.claim(database, job, release_no=9) is not None
    await make_older(database, 1000)
    assert await reissue(database) == 0, "a claimed job is not asked for again"


async def test_a_new_release_after_a_retry_begins_with_the_short_wait(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    await make_older(database, 60)
    assert await reissue(database) == 1
    claim = await makers.claim(database, job, release_no=2)
    assert claim is not None
    await makers.conclude(database, claim, Happening.HANDED_BACK)
    await makers.release(database)
    assert await reissue_after(database, job.id) == 10.0


async def test_no_more_are_issued_again_than_asked_for(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant) for _ in range(7)))
    await make_older(database, 60)
    assert [await reissue(database, limit=3) for _ in range(4)] == [3, 3, 1, 0]


async def test_withdrawn_releases_can_be_released_anew_and_old_messages_are_stale(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    claim = await makers.running(database, tenant)
    async with database.begin() as tx:
        assert await dispatch.withdraw_releases(tx) == 1
    assert await makers.claim(database, job, release_no=1) is None
    assert await makers.release(database) == 1
    assert await makers.claim(database, job, release_no=1) is None
    assert await makers.claim(database, job, release_no=2) is not None
    assert await makers.conclude(database, claim, Happening.COMPLETED) is not None, "who runs, runs on"


# --- deadlines -------------------------------------------------------------------------------------------


async def give_up(
    database: Database, hopeless: Hopeless, happening: Happening = Happening.REFERRED, *, limit: int = 100
) -> list[Job]:
    rows = []
    async with database.begin() as tx:
        owners = await dispatch.tenants_with(tx, hopeless, JobType.CREATIVE_REVIEW, limit=100)
        for tenant_id in owners.tenants:
            rows += await dispatch.give_up(
                tx,
                hopeless,
                tenant_id=tenant_id,
                job_type=JobType.CREATIVE_REVIEW,
                happening=happening,
                shown={"decision": "pending"},
                limit=limit,
            )
    return [await makers.find(database, row.tenant_id, row.id) for row in rows]


@pytest.mark.parametrize("happening", [Happening.REFERRED, Happening.GAVE_UP])
async def test_a_queued_job_ends_at_its_deadline(database: Database, happening: Happening) -> None:
    tenant = await makers.make_tenant(database)
    late, released_late, in_time = await waiting(
        database,
        makers.new_job(tenant, deadline_seconds=0.0),
        makers.new_job(tenant, deadline_seconds=0.0),
        makers.new_job(tenant),
    )
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.jobs).where(schema.jobs.c.id == released_late.id).values(released_at=clock.now())
        )
    ended = await give_up(database, OVERDUE, happening)
    assert {job.id for job in ended} == {late.id, released_late.id}
    for job in ended:
        assert job.state in (State.AWAITING_REVIEW, State.FAILED)
        assert (job.error and job.error.code, job.decision, job.version) == ("deadline_passed", "pending", 2)
        assert (job.finished_at is not None) == (happening is Happening.GAVE_UP)
    assert (await makers.find(database, tenant, in_time.id)).state is State.QUEUED
    assert await give_up(database, OVERDUE, happening) == []


async def test_a_job_past_its_deadline_is_not_released(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await waiting(database, makers.new_job(tenant, deadline_seconds=0.0))
    assert await makers.release(database) == 0


async def test_a_running_job_may_end_after_its_deadline(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.jobs).values(deadline_at=clock.after(-1.0)))
    assert await give_up(database, OVERDUE) == []
    assert await makers.conclude(database, claim, Happening.COMPLETED) is not None


async def test_no_more_are_ended_than_asked_for(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await waiting(database, *(makers.new_job(tenant, deadline_seconds=0.0) for _ in range(5)))
    assert [len(await give_up(database, OVERDUE, limit=2)) for _ in range(4)] == [2, 2, 1, 0]
    assert await makers.claim(database, new_id()) is None


async def test_who_goes_on_from_age_to_age_comes_to_the_hopeless_jobs_of_every_tenant(database: Database) -> None:
    first, second, third = [await makers.make_tenant(database) for _ in range(3)]
    for age, tenant in enumerate((third, second, first), 1):
        await waiting(database, *(makers.new_job(tenant) for _ in range(4 if tenant is first else 1)))
        passed = datetime.now(UTC) - timedelta(hours=age)
        async with database.begin() as tx:
            of_tenant = update(schema.jobs).where(schema.jobs.c.tenant_id == tenant)
            await tx.connection.execute(of_tenant.values(deadline_at=passed))
    found, behind = [], BEGINNING
    for _ in range(4):
        async with database.read() as reader:
            owners = await dispatch.tenants_with(reader, OVERDUE, JobType.CREATIVE_REVIEW, behind=behind, limit=2)
        found.append(owners.tenants)
        behind = owners.following
    assert found == [[first], [second, third], [], [first]]


async def test_a_job_that_lost_ten_workers_is_not_tried_any_more(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant, lease_seconds=0.001)
    for release_no in range(2, 11):
        assert await give_up(database, LOST_TOO_OFTEN) == []
        await sweep_until_lost(database, 1)
        await make_due(database, claim.job_id)
        await makers.release(database)
        assert await makers.claim(database, claim.job_id, release_no=release_no, lease_seconds=0.001) is not None

    async def given_up() -> bool:
        return bool(await give_up(database, LOST_TOO_OFTEN))

    await makers.until(given_up)
    job = await makers.find(database, tenant, claim.job_id)
    assert (job.state, job.error and job.error.code, job.attempts) == (State.AWAITING_REVIEW, "workers_lost", 0)
    assert job.error is not None
    assert job.error.message.startswith("10 workers fell silent")
    assert [attempt.outcome for attempt in await attempts_of(database, job.id)] == [AttemptOutcome.LOST] * 10
