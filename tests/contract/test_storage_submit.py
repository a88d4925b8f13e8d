"""Accepting jobs: durable, idempotent, released at once only when due."""

import asyncio
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import func, select

from imprimatur.broker import Queue
from imprimatur.identity import new_id
from imprimatur.job import Claim, Job, NewJob, Priority, State
from imprimatur.storage import acceptance, claims, clock, outbox, schema
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.claims import Wanted
from imprimatur.storage.database import Database, OutboxRow
from imprimatur.wire.messages import Released, ReviewRequested
from tests import makers
from tests.contract.polling import lock_waiters


async def submit(database: Database, *new_jobs: NewJob, release_at_once: int = 100) -> list[Submitted]:
    async with database.begin() as tx:
        return await acceptance.submit(tx, new_jobs, release_at_once=release_at_once)


async def count(database: Database) -> int:
    async with database.read() as reader:
        return (await reader.connection.execute(select(func.count()).select_from(schema.jobs))).scalar_one()


async def messages(database: Database) -> list[str]:
    async with database.read() as reader:
        return list((await reader.connection.execute(select(schema.outbox.c.routing_key))).scalars())


async def test_an_accepted_job_is_queued_at_version_one_with_everything_it_was_given(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    new = makers.new_job(
        tenant,
        request_id="r-1",
        user_id="ada",
        priority=Priority.HIGH,
        subject_id="creative-7",
        labels={"campaign": "spring"},
        max_attempts=5,
        callback_url="https://example.com/hook",
        deadline_seconds=60,
    )
    [answer] = await submit(database, new)
    job = answer.job
    assert answer.created
    assert answer.same_content
    assert (job.state, job.version, job.attempts) == (State.QUEUED, 1, 0)
    assert (job.id, job.request_id, job.user_id, job.priority) == (new.id, "r-1", "ada", Priority.HIGH)
    assert (job.subject_id, job.labels, job.max_attempts) == ("creative-7", {"campaign": "spring"}, 5)
    assert job.callback_url == "https://example.com/hook"
    assert job.run_at == job.created_at == job.updated_at
    assert job.deadline_at - job.run_at == timedelta(seconds=60)
    assert await makers.find(database, tenant, job.id) == job


async def test_every_instant_of_a_job_is_aware_and_utc(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    stored = await makers.find(database, tenant, job.id)
    for instant in (stored.created_at, stored.updated_at, stored.run_at, stored.deadline_at):
        assert instant.utcoffset() == timedelta(0)


async def test_what_is_answered_is_what_is_stored_field_by_field(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        now = await clock.present(reader)
    elsewhere = timezone(timedelta(hours=-3.5))
    plain = makers.new_job(tenant)
    rich = replace(
        makers.new_job(
            tenant,
            request_id="r-1 'ü'",
            user_id="ada",
            priority=Priority.LOW,
            subject_id="creative-7",
            labels={"ü": "{}", "": "NULL", 'a"b': "\\"},
            deadline_seconds=0.123456,
            max_attempts=7,
            callback_url="https://example.com/hook?a=b",
        ),
        parameters={"headline": "Sofas 🛋", "empty": ""},
        timeout_seconds=0.1,
        estimated_seconds=1 / 3,
        retry_of=new_id(),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    later = replace(plain, id=new_id(), run_at=(now + timedelta(days=1, microseconds=1)).astimezone(elsewhere))
    past = replace(plain, id=new_id(), run_at=now - timedelta(days=1), content_hash=b"", input=b"")
    answers = await submit(database, plain, rich, later, past, release_at_once=2)
    assert [answer.released for answer in answers] == [True, True, False, False]
    for answer in answers:
        stored = await makers.find(database, tenant, answer.job.id)
        for field in fields(Job):
            answered, read = getattr(answer.job, field.name), getattr(stored, field.name)
            assert answered == read, field.name
            assert isinstance(read, type(answered)), field.name
    async with database.read() as reader:
        rows = await reader.connection.execute(select(schema.jobs.c.id, schema.jobs.c.traceparent, schema.jobs.c.input))
        kept = {row.id: (row.traceparent, row.input) for row in rows}
    assert kept == {new.id: (new.traceparent, new.input) for new in (plain, rich, later, past)}


async def test_a_second_submit_with_the_same_request_id_returns_the_same_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [first] = await submit(database, makers.new_job(tenant, request_id="r-1"))
    [second] = await submit(database, makers.new_job(tenant, request_id="r-1"))
    assert (second.created, second.same_content) == (False, True)
    assert second.job == first.job
    assert await count(database) == 1
    assert len(await messages(database)) == 1


async def test_the_same_request_id_with_other_content_is_told_apart(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [first] = await submit(database, makers.new_job(tenant, request_id="r-1", content=b"one"))
    [second] = await submit(database, makers.new_job(tenant, request_id="r-1", content=b"two"))
    assert (second.created, second.same_content) == (False, False)
    assert second.job == first.job


async def test_a_repeated_submit_answers_with_the_job_as_it_stands_now(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [first] = await submit(database, makers.new_job(tenant, request_id="r-1"))
    await makers.claim(database, first.job)
    [second] = await submit(database, makers.new_job(tenant, request_id="r-1"))
    assert second.job.state is State.RUNNING


async def test_two_tenants_may_use_the_same_request_id(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    answers = await submit(
        database, makers.new_job(acme, request_id="r-1"), makers.new_job(globex, request_id="r-1", content=b"other")
    )
    assert [answer.created for answer in answers] == [True, True]
    again = await submit(
        database, makers.new_job(globex, request_id="r-1", content=b"other"), makers.new_job(acme, request_id="r-1")
    )
    assert [answer.job for answer in again] == [answers[1].job, answers[0].job]


async def test_jobs_without_a_request_id_are_all_accepted(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    answers = await submit(database, *(makers.new_job(tenant) for _ in range(3)))
    assert all(answer.created for answer in answers)
    assert await count(database) == 3


async def test_the_same_request_id_twice_in_one_batch_makes_one_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    first, twin, other = await submit(
        database,
        makers.new_job(tenant, request_id="r-1", content=b"one"),
        makers.new_job(tenant, request_id="r-1", content=b"two"),
        makers.new_job(tenant, request_id="r-2"),
    )
    assert (first.created, twin.created, other.created) == (True, False, True)
    assert not twin.same_content
    assert twin.job == first.job
    assert await count(database) == 2


async def test_of_one_request_many_times_in_one_batch_the_earliest_is_accepted(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    early, *later = (makers.new_job(tenant, request_id="r-1", content=content) for content in (b"1", b"2", b"1", b"3"))
    answers = await submit(database, later[0], makers.new_job(tenant), *later[1:], early)
    assert [answer.created for answer in answers] == [False, True, False, False, True]
    assert [answer.same_content for answer in answers] == [False, True, True, False, True]
    assert {answer.job.id for answer in answers if answer.job.request_id} == {early.id}
    assert [answer.released for answer in answers] == [False, True, False, False, True]
    assert await count(database) == len(await messages(database)) == 2


async def test_known_requests_among_new_ones_are_answered_with_their_jobs(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    [known] = await submit(database, makers.new_job(tenant, request_id="r-1"))
    first = await makers.claim(database, known.job)
    assert first is not None
    answers = await submit(
        database,
        makers.new_job(tenant, request_id="r-2"),
        makers.new_job(tenant, request_id="r-1"),
        makers.new_job(other, request_id="r-1"),
        makers.new_job(tenant, request_id="r-1", content=b"other"),
    )
    assert [(one.created, one.same_content) for one in answers] == [
        *((True, True), (False, True), (True, True), (False, False))
    ]
    assert answers[1].job == answers[3].job == await makers.find(database, tenant, known.job.id)
    assert answers[1].job.state is State.RUNNING


async def test_what_is_put_up_for_claiming_is_told_of_in_the_order_of_acceptance(database: Database) -> None:
    written: list[OutboxRow] = []
    database.on_commit = written.extend
    tenant = await makers.make_tenant(database)
    batch = [makers.new_job(tenant, request_id=f"r-{9 - number}") for number in range(9)]
    await submit(database, *batch, release_at_once=7)
    rows = [row for row in written if row.routing_key == Queue.REVIEW_NORMAL]
    asked = [one for row in rows for one in ReviewRequested.decode(row.body).jobs]
    assert asked == [Released(job_id=new.id, release_no=1) for new in batch[:7]]
    assert [row.stored for row in written] == [False] + [True] * 7
    async with database.begin() as tx:
        claimed = await claims.claim(
            tx,
            makers.worker(),
            [Wanted(job_id=one.job_id, release_no=one.release_no, claim_id=new_id()) for one in asked],
            lease_seconds=30.0,
        )
    assert [isinstance(claim, Claim) and claim.job_id for claim in claimed] == [new.id for new in batch[:7]]


@pytest.mark.parametrize("request_id", [None, "r-1"])
async def test_a_batch_that_is_sent_again_after_a_lost_answer_is_the_same_batch(
    database: Database, request_id: str | None
) -> None:
    """The commit happened, its answer was lost: the caller repeats it with the ids that it chose."""
    tenant = await makers.make_tenant(database)
    batch = [makers.new_job(tenant, request_id=request_id), makers.new_job(tenant)]
    first = await submit(database, *batch)
    again = await submit(database, *batch)
    assert [answer.job for answer in again] == [answer.job for answer in first]
    assert all(answer.same_content for answer in again)
    assert await count(database) == 2
    assert len(await messages(database)) == 2


async def test_concurrent_submits_of_one_request_id_make_one_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    answers = await asyncio.gather(
        *(submit(database, makers.new_job(tenant, request_id="r-1")) for _ in range(20)),
    )
    assert sum(answer.created for [answer] in answers) == 1
    assert len({answer.job.id for [answer] in answers}) == 1
    assert await count(database) == 1


async def test_batches_that_name_the_same_requests_in_another_order_wait_in_no_circle(database: Database) -> None:
    tenant = await makers.make_tenant(database)

    async def send(names: str) -> list[Submitted]:
        return await submit(database, *(makers.new_job(tenant, request_id=name) for name in names))

    async with database.begin() as tx:
        [held] = await acceptance.submit(tx, [makers.new_job(tenant, request_id="m")], release_at_once=0)
        first = asyncio.create_task(send("amz"))
        await lock_waiters(database, 1)
        second = asyncio.create_task(send("zma"))
        await lock_waiters(database, 2)
    a, m, z = await first
    assert [answer.created for answer in (a, m, z)] == [True, False, True]
    again = await second
    assert [answer.created for answer in again] == [False] * 3
    assert [answer.job for answer in again] == [z.job, held.job, a.job]


async def test_many_batches_at_once_make_one_job_of_each_request(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    names = [f"r-{number}" for number in range(20)]
    orders = [names, names[::-1], names[10:] + names[:10]]
    answers = await asyncio.gather(
        *(submit(database, *(makers.new_job(tenant, request_id=name) for name in order)) for order in orders)
    )
    assert sum(answer.created for batch in answers for answer in batch) == len(names)
    for batch, order in zip(answers, orders, strict=True):
        assert [answer.job.request_id for answer in batch] == order


async def test_due_jobs_are_released_at_once_as_far_as_there_is_room(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    submitted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(3)), release_at_once=2)
    assert await messages(database) == [Queue.REVIEW_NORMAL] * 2
    claimed = [await makers.claim(database, job) for job in submitted]
    assert [claim is not None for claim in claimed] == [True, True, False]


async def test_a_scheduled_job_is_not_released_before_its_time(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        later = await clock.present(reader) + timedelta(hours=1)
    [job] = await makers.submit(database, makers.new_job(tenant, run_at=later, deadline_seconds=60))
    assert (job.run_at, job.deadline_at) == (later, later + timedelta(seconds=60))
    assert await messages(database) == []
    assert await makers.claim(database, job) is None
    assert await makers.claim(database, job, release_no=0) is None


async def test_a_time_in_the_past_means_now(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.read() as reader:
        earlier = await clock.present(reader) - timedelta(days=1)
    [job] = await makers.submit(database, makers.new_job(tenant, run_at=earlier))
    assert job.run_at == job.created_at


async def test_each_priority_has_its_queue(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await makers.submit(database, *(makers.new_job(tenant, priority=priority) for priority in Priority))
    assert sorted(await messages(database)) == sorted(
        [Queue.REVIEW_HIGH.value, Queue.REVIEW_LOW.value, Queue.REVIEW_NORMAL.value]
    )


async def test_a_thousand_jobs_in_one_batch_are_answered_in_order(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    batch = [makers.new_job(tenant, request_id=f"r-{number % 900}", job_id=new_id()) for number in range(1000)]
    answers = await submit(database, *batch, release_at_once=0)
    assert [answer.job.request_id for answer in answers] == [new.request_id for new in batch]
    assert sum(answer.created for answer in answers) == 900
    async with database.read() as reader:
        assert await outbox.backlog(reader) == 0


async def test_a_job_of_a_tenant_that_does_not_exist_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await submit(database, makers.new_job(new_id()))


def test_a_job_shows_nothing_that_only_the_storage_should_see() -> None:
    hidden = {"input", "content_hash", "claim_id", "lease_until", "released_at", "release_no", "held_by"}
    assert hidden.isdisjoint(Job.__slots__)


async def test_the_answer_tells_what_was_put_up_for_claiming_just_now(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    due = makers.new_job(tenant, request_id="r-1")
    later = makers.new_job(tenant, run_at=datetime.now(UTC) + timedelta(hours=1))
    answers = await submit(database, due, later, makers.new_job(tenant), release_at_once=1)
    assert [answer.released for answer in answers] == [True, False, False]
    [again] = await submit(database, makers.new_job(tenant, request_id="r-1"))
    assert (again.created, again.released) == (False, False)
