"""Whose job is next: by turns among tenants, with a share for each priority, within each tenant's limit."""

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, select, update

from imprimatur.job import Job, NewJob, Priority, State
from imprimatur.storage import acceptance, clock, schema, turns
from imprimatur.storage.database import Database
from tests import makers

Chances = Callable[[Priority], float]


def strictly(priority: Priority) -> float:
    """Chances of a moment at which every HIGH goes before every NORMAL, and that before every LOW."""
    return {Priority.HIGH: 0.0, Priority.NORMAL: 1 - 1e-6, Priority.LOW: 1 - 1e-12}[priority]


def together(_: Priority) -> float:
    """Chances of a moment at which the first jobs of all priorities stand side by side."""
    return 0.0


async def waiting(database: Database, *new_jobs: NewJob) -> list[Job]:
    """Accepted and not put up."""
    return await makers.submit(database, *new_jobs, release_at_once=0)


async def next_ones(database: Database, *, room: int = 100, chances: Chances = strictly) -> list[uuid.UUID]:
    async with database.read() as reader:
        return (await turns.next_ones(reader, room=room, chances=chances)).ids


async def limit(database: Database, tenant: uuid.UUID, jobs: int) -> None:
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.tenants).where(schema.tenants.c.id == tenant).values(running_jobs=jobs)
        )


async def two_tenants(database: Database) -> tuple[uuid.UUID, uuid.UUID]:
    """In the order of their ids, so that no order by accident looks like turns."""
    one, other = sorted([await makers.make_tenant(database), await makers.make_tenant(database)])
    return one, other


async def test_of_one_tenant_the_earlier_time_goes_first_then_the_older_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        now = await clock.present(reader)
    older, younger, later = await waiting(
        database, makers.new_job(tenant), makers.new_job(tenant), makers.new_job(tenant)
    )
    async with database.begin() as tx:
        for job, ago in ((older, 20), (younger, 20), (later, 10)):
            at = now - timedelta(seconds=ago)
            await tx.connection.execute(update(schema.jobs).where(schema.jobs.c.id == job.id).values(run_at=at))
    assert await next_ones(database) == [older.id, younger.id, later.id]
    assert await next_ones(database, room=1) == [older.id]


async def test_what_is_not_due_or_past_its_deadline_has_no_turn(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        tomorrow = await clock.present(reader) + timedelta(days=1)
    overdue, due, _ = await waiting(
        database, makers.new_job(tenant), makers.new_job(tenant), makers.new_job(tenant, run_at=tomorrow)
    )
    async with database.begin() as tx:
        await tx.connection.execute(
            update(schema.jobs).where(schema.jobs.c.id == overdue.id).values(deadline_at=clock.after(-1))
        )
    assert await next_ones(database) == [due.id]


async def test_tenants_take_turns_however_long_ones_queue_is(database: Database) -> None:
    one, other = await two_tenants(database)
    many = await waiting(database, *(makers.new_job(one) for _ in range(30)))
    few = await waiting(database, *(makers.new_job(other) for _ in range(2)))
    assert await next_ones(database, room=5) == [many[0].id, few[0].id, many[1].id, few[1].id, many[2].id]


async def test_whoever_has_much_under_way_waits_for_those_who_have_nothing(database: Database) -> None:
    one, other = await two_tenants(database)
    for _ in range(2):
        await makers.running(database, one)
    await makers.submit(database, makers.new_job(one))  # put up, not claimed
    mine = await waiting(database, *(makers.new_job(one) for _ in range(3)))
    theirs = await waiting(database, *(makers.new_job(other) for _ in range(5)))
    assert await next_ones(database, room=1) == [theirs[0].id]
    assert await next_ones(database, room=5) == [
        *(theirs[place].id for place in range(3)),
        mine[0].id,
        theirs[3].id,
    ]


async def test_a_tenants_limit_counts_what_is_under_way(database: Database) -> None:
    one, other = await two_tenants(database)
    await limit(database, one, 3)
    await makers.submit(database, makers.new_job(other))
    mine = await waiting(database, *(makers.new_job(one) for _ in range(6)))
    theirs = await waiting(database, *(makers.new_job(other) for _ in range(3)))
    assert set(await next_ones(database)) == {*(job.id for job in mine[:3]), *(job.id for job in theirs)}
    assert await makers.release(database) == 6
    assert await next_ones(database) == []
    held = await makers.claim(database, mine[0])
    assert held is not None
    assert await next_ones(database) == []  # it is still under way
    await makers.cancel(database, mine[0])
    assert await next_ones(database) == [mine[3].id]


async def test_a_limit_spans_priorities(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await limit(database, tenant, 2)
    low, normal, high = await waiting(
        database,
        makers.new_job(tenant, priority=Priority.LOW),
        makers.new_job(tenant, priority=Priority.NORMAL),
        makers.new_job(tenant, priority=Priority.HIGH),
    )
    assert await next_ones(database) == [high.id, normal.id]
    assert low.id not in await next_ones(database)


async def test_jobs_of_a_tenant_with_a_limit_are_not_put_up_by_their_submission(database: Database) -> None:
    one, other = await two_tenants(database)
    await limit(database, one, 1)
    mine, theirs = await makers.submit(database, makers.new_job(one), makers.new_job(other))
    assert await makers.claim(database, mine) is None
    assert await makers.claim(database, theirs) is not None
    assert await makers.release(database) == 1
    assert await makers.claim(database, mine) is not None


async def test_a_limit_of_all_holds_for_those_without_one_of_their_own(database: Database) -> None:
    usual, unlimited = await two_tenants(database)
    await limit(database, unlimited, 0)
    async with database.begin() as tx:
        new_jobs = [makers.new_job(tenant) for tenant in (usual, unlimited)]
        answers = await acceptance.submit(tx, new_jobs, release_at_once=2, most_of_a_tenant=1)
    assert [(one.released, one.waits) for one in answers] == [(False, True), (True, False)]


async def test_a_limit_that_is_lowered_below_what_is_under_way_stops_nothing_and_starts_nothing(
    database: Database,
) -> None:
    tenant = await makers.make_tenant(database)
    for _ in range(3):
        await makers.running(database, tenant)
    await limit(database, tenant, 1)
    await waiting(database, makers.new_job(tenant))
    assert await next_ones(database) == []


async def test_priorities_stand_in_line_as_their_shares_say(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for priority in Priority:
        await waiting(database, *(makers.new_job(tenant, priority=priority) for _ in range(40)))
    chosen = await next_ones(database, room=40, chances=together)
    counted = await _priorities(database, chosen)
    assert counted == Counter({Priority.HIGH: 30, Priority.NORMAL: 8, Priority.LOW: 2})  # each with the first in line


async def test_the_priority_with_the_best_chance_has_a_lone_place(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    jobs = {priority: (await waiting(database, makers.new_job(tenant, priority=priority)))[0] for priority in Priority}
    for first in Priority:

        def first_alone(priority: Priority, first: Priority = first) -> float:
            return 0.0 if priority is first else 0.999

        assert await next_ones(database, room=1, chances=first_alone) == [jobs[first].id]


async def test_while_jobs_end_each_tenant_is_served_once_before_any_is_served_twice(database: Database) -> None:
    tenants = [await makers.make_tenant(database) for _ in range(6)]
    for tenant in tenants:  # the whole backlog of one is older than that of the next
        await waiting(database, *(makers.new_job(tenant) for _ in range(3)))
    served = [owner for _ in range(9) for owner in await serve(database, room=2)]
    assert [Counter(served[start : start + 6]) for start in (0, 6, 12)] == [Counter(tenants)] * 3


async def test_a_newcomer_waits_for_one_turn_of_the_others_at_most(database: Database) -> None:
    for _ in range(5):
        tenant = await makers.make_tenant(database)
        await waiting(database, *(makers.new_job(tenant) for _ in range(4)))
    for _ in range(4):
        await serve(database, room=2)
    newcomer = await makers.make_tenant(database)
    await waiting(database, makers.new_job(newcomer))
    assert newcomer in await serve(database, room=1)


async def test_queues_of_which_nothing_may_start_now_take_no_room_from_others(database: Database) -> None:
    async with database.read() as reader:
        tomorrow = await clock.present(reader) + timedelta(days=1)
    busy = await makers.make_tenant(database)
    await waiting(database, *(makers.new_job(busy) for _ in range(30)))
    for _ in range(6):
        await waiting(database, makers.new_job(await makers.make_tenant(database), run_at=tomorrow))
        capped = await makers.make_tenant(database)
        await limit(database, capped, 1)
        await makers.submit(database, makers.new_job(capped), makers.new_job(capped), release_at_once=0)
    assert await makers.release(database, room=6 + 6) == 6 + 6  # each of the capped has its one job under way now
    assert len(await next_ones(database, room=24)) == 24


async def test_what_short_queues_leave_of_the_room_is_filled_by_the_long_ones(database: Database) -> None:
    for number in (1, 1, 1, 3, 1, 1, 40, 1):
        tenant = await makers.make_tenant(database)
        await waiting(database, *(makers.new_job(tenant) for _ in range(number)))
    assert await makers.release(database, room=40) == 40
    assert await makers.release(database, room=40) == 9


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_job_that_somebody_has_locked_keeps_nobody_elses_place(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    [first, _] = await waiting(database, makers.new_job(tenant), makers.new_job(tenant))
    await waiting(database, makers.new_job(other))
    async with database.begin() as holder:
        await holder.connection.execute(select(schema.jobs.c.id).where(schema.jobs.c.id == first.id).with_for_update())
        assert [await makers.release(database, room=1) for _ in range(3)] == [1, 1, 0]
    assert [await makers.release(database, room=1) for _ in range(2)] == [1, 0]


async def test_a_queue_whose_deadlines_have_passed_keeps_nobody_elses_place(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    overdue = [makers.new_job(tenant, deadline_seconds=0.0) for _ in range(3)]
    await waiting(database, *overdue)
    [theirs] = await waiting(database, makers.new_job(other))
    assert await next_ones(database, room=1) == [theirs.id]
    [mine] = await waiting(database, makers.new_job(tenant))
    assert await next_ones(database, room=2) == [theirs.id, mine.id]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_look_costs_as_much_for_each_queue_however_many_there_are(database: Database) -> None:
    async with database.read() as reader:
        tomorrow = await clock.present(reader) + timedelta(days=1)
    busy = await makers.make_tenant(database)
    await waiting(database, *(makers.new_job(busy) for _ in range(600)))
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.jobs).values(state=State.SUCCEEDED, finished_at=clock.now()))
    await come_and_go(database, 4000)
    await analyze(database)  # what the planner then knows of is a tenant, and no job that waits
    many = [uuid.uuid4() for _ in range(2000)]
    async with database.begin() as tx:
        made = insert(schema.tenants).values(policy_version=1, created_at=clock.now())
        await tx.connection.execute(made, [{"id": one, "name": str(one)} for one in many])
    for number, run_at in ((1000, None), (2000, tomorrow)):
        await waiting(database, *(makers.new_job(one, run_at=run_at) for one in many[number - 1000 : number]))
    await waiting(database, *(makers.new_job(busy) for _ in range(500)))
    for _ in range(2):
        rows = await rows_read(database, room=64)
        assert rows < 30 * len(many), "each queue is looked at by a few steps"
        await analyze(database)
    assert await makers.release(database, room=1200) == 1200  # all that there is of the small ones, and the rest


async def test_more_tenants_than_room_all_come_to_their_turn(database: Database) -> None:
    tenants = [await makers.make_tenant(database) for _ in range(12)]
    await waiting(database, *(makers.new_job(tenant) for tenant in tenants for _ in range(5)))
    owner = {}
    for tenant in tenants:
        for job_id in await _ids(database, tenant):
            owner[job_id] = tenant
    first: Counter[uuid.UUID] = Counter()
    for _ in range(4):
        chosen = await next_ones(database, room=3)
        first.update(owner[job_id] for job_id in chosen)
        assert await makers.release(database, room=3) == 3
    assert first == Counter(dict.fromkeys(tenants, 1))


@pytest.mark.parametrize("room", [0, 1, 7])
async def test_no_more_than_there_is_room_for(database: Database, room: int) -> None:
    for _ in range(3):
        tenant = await makers.make_tenant(database)
        await waiting(database, *(makers.new_job(tenant) for _ in range(4)))
    assert len(await next_ones(database, room=room)) == room


async def serve(database: Database, *, room: int) -> list[uuid.UUID]:
    """Put so many up and let them end at once; whose they are."""
    assert await makers.release(database, room=room) == room
    released = (schema.jobs.c.state == State.QUEUED, schema.jobs.c.released_at.is_not(None))
    ended = update(schema.jobs).where(*released).values(state=State.SUCCEEDED, finished_at=clock.now())
    async with database.begin() as tx:
        return list((await tx.connection.execute(ended.returning(schema.jobs.c.tenant_id))).scalars())


async def come_and_go(database: Database, number: int) -> None:
    """So many tenants, each with a job, of whom nothing is left but what they took in the files."""
    gone = [uuid.uuid4() for _ in range(number)]
    async with database.begin() as tx:
        made = insert(schema.tenants).values(policy_version=1, created_at=clock.now())
        await tx.connection.execute(made, [{"id": one, "name": f"gone {one}"} for one in gone])
    for first in range(0, number, 1000):
        await waiting(database, *(makers.new_job(one) for one in gone[first : first + 1000]))
    await makers.release(database, room=1000)
    await makers.empty(database)
    async with database.begin() as tx:
        await tx.connection.exec_driver_sql("DELETE FROM tenants WHERE name LIKE 'gone %%'")


async def analyze(database: Database) -> None:
    """Let the planner know how things are now."""
    async with database.begin() as tx:
        await tx.connection.exec_driver_sql("ANALYZE")


async def rows_read(database: Database, *, room: int) -> int:
    """How many rows the steps of the plan that was followed have brought, over all."""
    asked: list[Any] = []

    def note(_connection: object, _cursor: object, *asking: object) -> None:
        asked.extend(asking[:2])

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    await next_ones(database, room=room)
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    statement, parameters = asked
    async with database.read() as reader:
        found = await reader.connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        return _rows_of(found.scalar_one()[0]["Plan"])


def _rows_of(step: dict[str, Any]) -> int:
    removed = step.get("Rows Removed by Filter", 0) + step.get("Rows Removed by Join Filter", 0)
    mine = (step["Actual Rows"] + removed) * step["Actual Loops"]
    return int(mine + sum(_rows_of(one) for one in step.get("Plans", ())))


async def _ids(database: Database, tenant: uuid.UUID) -> list[uuid.UUID]:
    async with database.read() as reader:
        found = await reader.connection.execute(
            schema.jobs.select().with_only_columns(schema.jobs.c.id).where(schema.jobs.c.tenant_id == tenant)
        )
        return list(found.scalars())


async def _priorities(database: Database, ids: list[uuid.UUID]) -> Counter[Priority]:
    async with database.read() as reader:
        found = await reader.connection.execute(
            schema.jobs.select()
            .with_only_columns(schema.jobs.c.id, schema.jobs.c.priority)
            .where(schema.jobs.c.id.in_(ids))
        )
        return Counter(Priority(row.priority) for row in found)
