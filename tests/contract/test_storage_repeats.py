"""Work done again: what is retried once and only once, and what goes back to the engine in place."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from imprimatur.errors import Contended
from imprimatur.identity import new_id
from imprimatur.job import LOSSES_OF_A_SUSPECT, Claim, Happening, Job, JobError, State
from imprimatur.storage import acceptance, clock, jobs, people, repeats, review_queue
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.repeats import Scope, Waiting
from imprimatur.storage.schema import jobs as table
from tests import makers
from tests.contract.polling import lock_waiters

ENGINE_ERROR = JobError(code="provider_error", message="the provider answered 503", retryable=True)


async def scope_of(
    database: Database,
    tenant: uuid.UUID,
    *,
    user_id: str = "",
    as_of: datetime | None = None,
    ids: Iterable[uuid.UUID] | None = None,
    **wanted: Any,
) -> Scope:
    async with database.read() as reader:
        as_of = as_of or await clock.present(reader)
    owner = Owner(tenant_id=tenant, user_id=user_id)
    return Scope(owner=owner, wanted=Filter(**wanted), as_of=as_of, ids=None if ids is None else frozenset(ids))


async def row_of(database: Database, job_id: uuid.UUID) -> Any:
    async with database.read() as reader:
        return (await reader.connection.execute(select(table).where(table.c.id == job_id))).one()


# --- retries ---------------------------------------------------------------------------------------------


async def retry(
    database: Database, tenant: uuid.UUID, *, limit: int = 1000, **scope: Any
) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """(old, new) of each."""
    wanted = await scope_of(database, tenant, **scope)
    async with database.begin() as tx:
        return [(row.retry_of, row.id) for row in await repeats.retry(tx, wanted, limit=limit)]


async def left(database: Database, tenant: uuid.UUID, **scope: Any) -> int:
    wanted = await scope_of(database, tenant, **scope)
    async with database.read() as reader:
        return await repeats.count_retryable(reader, wanted)


async def failed(database: Database, tenant: uuid.UUID) -> Job:
    job = await makers.conclude(database, await makers.running(database, tenant), Happening.GAVE_UP)
    assert job is not None
    return job


async def cancelled(database: Database, tenant: uuid.UUID, **fields: Any) -> Job:
    [job] = await makers.submit(database, makers.new_job(tenant, **fields))
    gone = await makers.cancel(database, job)
    assert gone is not None
    return gone


async def test_what_failed_or_was_cancelled_is_accepted_anew_oldest_first(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    first, second = await failed(database, tenant), await cancelled(database, tenant)
    await makers.running(database, tenant)
    await makers.awaiting(database, tenant)
    await makers.conclude(database, await makers.running(database, tenant), Happening.COMPLETED)
    third = await failed(database, tenant)
    assert await left(database, tenant) == 3
    made = await retry(database, tenant)
    assert [old for old, _ in made] == [first.id, second.id, third.id]
    assert [new for _, new in made] == sorted(new for _, new in made)
    assert await left(database, tenant) == 0


async def test_a_retry_is_a_new_job_with_the_old_ones_task(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    labels = {"campaign": "spring"}
    [asked] = await makers.submit(
        database,
        makers.new_job(
            tenant,
            content=b"a picture",
            request_id="r-1",
            user_id="ada",
            subject_id="cr-1",
            labels=labels,
            deadline_seconds=77.0,
            max_attempts=5,
            callback_url="https://ads.example/hook",
        ),
    )
    old = await makers.cancel(database, asked)
    assert old is not None
    [(_, new_id)] = await retry(database, tenant)
    new = await makers.find(database, tenant, new_id)
    assert (new.state, new.version, new.attempts, new.retry_of, new.request_id) == (State.QUEUED, 1, 0, old.id, None)
    assert (new.user_id, new.subject_id, new.labels, new.priority) == ("ada", "cr-1", labels, old.priority)
    assert (new.max_attempts, new.timeout_seconds, new.callback_url) == (5, 120.0, old.callback_url)
    assert new.deadline_at - new.run_at == timedelta(seconds=77)
    assert new.created_at == new.updated_at == new.run_at >= old.updated_at
    assert (new.error, new.result, new.finished_at, new.started_at) == (None, None, None, None)
    async with database.read() as reader:
        history = await jobs.history(reader, new_id, after_version=0, limit=10)
    assert [(event.kind, event.version, event.state) for event in history] == [("submitted", 1, State.QUEUED)]
    assert await makers.release(database) == 1
    claim = await makers.claim(database, new)
    assert claim is not None
    assert claim.input == b"a picture"


@pytest.mark.parametrize("revisions", [(1,), (1, 2), (2, 1), (1, 2, 3)], ids=str)
async def test_of_many_that_are_retried_none_is_one_that_would_be_refused_alone(
    database: Database, revisions: tuple[int, ...]
) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    made = []
    for revision in revisions:
        about: dict[str, Any] = {"content": b"%d" % revision, "key": "k", "revision": revision}
        about["subject_id"] = f"subject {revision}"
        [job] = await makers.submit(database, makers.new_job(tenant, **about))
        if job.revision == revision:  # it was not refused
            await makers.cancel(database, job)
            made.append((job, about))
    await cancelled(database, other, key="k", revision=9)  # another tenant's key is another key
    alone = []
    for job, about in made:
        async with database.begin() as tx:
            retry_of = makers.new_job(tenant, retry_of=job.id, **about)
            [answer] = await acceptance.submit(tx, [retry_of], release_at_once=0)
            if answer.created:
                alone.append(job.id)
            await tx.connection.rollback()
    assert alone == [made[-1][0].id]
    assert await left(database, tenant) == 1
    [(old, new)] = await retry(database, tenant)
    assert [old] == alone
    assert (await makers.find(database, tenant, new)).revision == max(revisions)


async def test_a_retry_that_a_newer_revision_came_before_meanwhile_is_to_be_asked_for_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await makers.make_tenant(database)
    await cancelled(database, tenant, key="k", revision=1)
    await cancelled(database, tenant, content=b"newer", key="k", revision=2)
    monkeypatch.setattr(repeats, "_LEFT", repeats._RETRYABLE)  # as if the second had come and ended after the look
    with pytest.raises(Contended):
        await retry(database, tenant, limit=1)
    monkeypatch.undo()
    assert await left(database, tenant) == 1


async def test_nothing_is_retried_twice_but_a_retry_that_failed_is(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    old = await cancelled(database, tenant)
    [(_, new_id)] = await retry(database, tenant)
    assert await retry(database, tenant) == []
    await makers.cancel(database, await makers.find(database, tenant, new_id))
    assert [retried for retried, _ in await retry(database, tenant)] == [new_id]
    assert old.id != new_id


async def test_what_changed_since_the_moment_asked_for_is_left_alone(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    old = await cancelled(database, tenant)
    async with database.read() as reader:
        asked_at = await clock.present(reader)

    async def later() -> bool:
        async with database.read() as reader:
            return await clock.present(reader) > asked_at

    await makers.until(later)
    [(_, again)] = await retry(database, tenant, as_of=asked_at)
    await makers.cancel(database, await makers.find(database, tenant, again))
    assert await retry(database, tenant, as_of=asked_at) == []
    assert await left(database, tenant, as_of=asked_at) == 0
    assert await left(database, tenant) == 1
    assert old.id != again


async def test_the_filter_and_the_owner_narrow_what_is_retried(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    spring = await cancelled(database, acme, labels={"campaign": "spring"}, user_id="ada", subject_id="cr-1")
    autumn = await cancelled(database, acme, labels={"campaign": "autumn"}, user_id="bob")
    broken = await failed(database, acme)
    theirs = await cancelled(database, globex)
    for narrowed, expected in (
        ({"labels": {"campaign": "autumn"}}, {autumn.id}),
        ({"subject_id": "cr-1"}, {spring.id}),
        ({"states": frozenset({State.FAILED})}, {broken.id}),
        ({"user_id": "bob"}, {autumn.id}),  # of the owner
        ({"created_before": spring.created_at}, set()),
    ):
        assert await left(database, acme, **narrowed) == len(expected), narrowed
    assert {old for old, _ in await retry(database, acme, user_id="ada")} == {spring.id}
    assert {old for old, _ in await retry(database, acme)} == {autumn.id, broken.id}
    assert {old for old, _ in await retry(database, globex)} == {theirs.id}


async def test_many_are_retried_in_parts(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    gone = [await cancelled(database, tenant) for _ in range(5)]
    seen: list[uuid.UUID] = []
    for remaining in (3, 1, 0):
        seen += [old for old, _ in await retry(database, tenant, limit=2)]
        assert await left(database, tenant) == remaining
    assert seen == [job.id for job in gone]


async def test_large_tasks_are_copied_a_few_at_a_time_and_one_at_least(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_MOST_BYTES_AT_ONCE", 10)
    tenant = await makers.make_tenant(database)
    for size in (4, 6, 1, 100, 1):
        await cancelled(database, tenant, content=b"x" * size)
    parts = [len(await retry(database, tenant)) for _ in range(4)]
    assert parts == [2, 1, 1, 1]


async def test_a_caller_who_waited_for_another_retries_nothing_twice(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await cancelled(database, tenant)
    scope = await scope_of(database, tenant)
    async with database.begin() as tx:
        assert await repeats.retry(tx, scope, limit=10)
        second = asyncio.create_task(retry(database, tenant))
        await lock_waiters(database, 1)
    assert await second == []


async def test_of_callers_at_once_one_retries_each_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    gone = {(await cancelled(database, tenant)).id for _ in range(30)}
    answers = await asyncio.gather(*(retry(database, tenant, limit=20) for _ in range(6)))
    answers.append(await retry(database, tenant))
    assert sorted(old for answer in answers for old, _ in answer) == sorted(gone)
    async with database.read() as reader:
        retried = await reader.connection.execute(
            select(table.c.retry_of, func.count()).where(table.c.retry_of.is_not(None)).group_by(table.c.retry_of)
        )
        assert {row[0]: row[1] for row in retried} == dict.fromkeys(gone, 1)


# --- reviews again ---------------------------------------------------------------------------------------


async def waiting(
    database: Database,
    tenant: uuid.UUID,
    *,
    trigger: str = "engine_error",
    user_id: str = "",
    error: JobError | None = ENGINE_ERROR,
) -> tuple[Job, Claim]:
    """A job that a person got, by default since its engine failed, and the claim that it had."""
    [job] = await makers.submit(database, makers.new_job(tenant, user_id=user_id))
    claim = await makers.claim(database, job)
    assert claim is not None
    shown = makers.shown("pending", trigger, result=b"pending")
    referred = await makers.conclude(database, claim, Happening.REFERRED, error=error, shown=shown)
    assert referred is not None
    return referred, claim


async def review_again(
    database: Database, tenant: uuid.UUID, *, limit: int = 1000, **scope: Any
) -> Sequence[uuid.UUID]:
    wanted = await scope_of(database, tenant, **scope)
    async with database.begin() as tx:
        return [row.id for row in await repeats.review_again(tx, wanted, limit=limit, asked_by="bea")]


async def counts(database: Database, tenant: uuid.UUID, **scope: Any) -> tuple[int, int]:
    """(free, held)."""
    wanted = await scope_of(database, tenant, **scope)
    async with database.read() as reader:
        found: Waiting = await repeats.count_waiting(reader, wanted)
    return found.free, found.held


async def test_a_job_goes_back_to_the_engine_as_if_just_accepted(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, stale = await waiting(database, tenant)
    assert (job.attempts, job.error) == (1, ENGINE_ERROR)
    async with database.begin() as tx:  # it was accepted long ago
        long_ago = {"deadline_at": job.created_at, "run_at": job.created_at, "losses": 1}
        await tx.connection.execute(update(table).where(table.c.id == job.id).values(long_ago))
    assert await review_again(database, tenant) == [job.id]
    queued = await makers.find(database, tenant, job.id)
    assert (queued.state, queued.version, queued.attempts) == (State.QUEUED, job.version + 1, 0)
    assert (queued.decision, queued.policy_triggered, queued.result, queued.result_count) == ("", "", None, 0)
    assert (queued.error, queued.finished_at, queued.started_at) == (None, None, job.started_at)
    assert queued.run_at >= job.updated_at
    assert abs((queued.deadline_at - queued.run_at) - timedelta(seconds=3600)) < timedelta(seconds=1)
    row = await row_of(database, job.id)
    assert (row.losses, row.released_at, row.held_by, row.claim_no) == (0, None, "", stale.claim_no)
    async with database.read() as reader:
        [*_, event] = await jobs.history(reader, job.id, after_version=0, limit=10)
    assert (event.kind, event.details) == ("review_again", {"by": "bea"})
    assert await makers.conclude(database, stale, Happening.COMPLETED) is None
    assert await makers.claim(database, job, release_no=1) is None  # an old message
    assert await makers.release(database) == 1
    claim = await makers.claim(database, job, release_no=2)
    assert claim is not None
    assert (claim.attempts, claim.claim_no, claim.first_due_at) == (0, 2, claim.first_due_at)
    done = await makers.conclude(database, claim, Happening.COMPLETED, shown=makers.shown("approved", "auto_approve"))
    assert done is not None
    assert (done.state, done.attempts, done.decision) == (State.SUCCEEDED, 1, "approved")


async def test_the_time_of_a_review_counts_from_when_the_job_was_sent_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, first = await waiting(database, tenant)
    assert first.first_due_at == job.created_at
    await review_again(database, tenant)
    await makers.release(database)
    claim = await makers.claim(database, job, release_no=2)
    assert claim is not None
    assert claim.first_due_at is not None
    queued = await makers.find(database, tenant, job.id)
    assert abs(claim.first_due_at - queued.run_at) < timedelta(seconds=1)
    assert claim.first_wait_seconds is None


async def test_a_job_that_may_be_what_kills_workers_stays_a_suspect(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, _ = await waiting(database, tenant)
    async with database.begin() as tx:
        await tx.connection.execute(update(table).where(table.c.id == job.id).values(losses=4))
    await review_again(database, tenant)
    assert (await row_of(database, job.id)).losses == LOSSES_OF_A_SUSPECT


async def test_only_what_the_engine_failed_at_goes_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, _ = await waiting(database, tenant)
    poor, _ = await waiting(database, tenant, trigger="budget_exhausted")
    unsure, _ = await waiting(database, tenant, trigger="low_confidence", error=None)
    ended, _ = await waiting(database, tenant)
    await makers.cancel(database, ended)
    await makers.running(database, tenant)
    assert await counts(database, tenant) == (2, 0)
    assert await review_again(database, tenant) == [job.id, poor.id]
    assert await makers.find(database, tenant, unsure.id) == unsure
    assert await review_again(database, tenant) == []


async def test_of_what_a_person_was_to_decide_anyway_only_what_failed_goes_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    unseen, _ = await waiting(database, tenant, trigger="human_required")
    examined, _ = await waiting(database, tenant, trigger="human_required", error=None)
    assert await counts(database, tenant) == (1, 0)
    assert await review_again(database, tenant, triggers=frozenset({"human_required"})) == [unseen.id]
    assert await makers.find(database, tenant, examined.id) == examined


async def test_ids_owner_and_filter_narrow_what_goes_back(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    mine, hers, other = [(await waiting(database, acme, user_id=name))[0] for name in ("ada", "bob", "ada")]
    theirs, _ = await waiting(database, globex)
    assert await counts(database, acme, triggers=frozenset({"budget_exhausted"})) == (0, 0)
    assert await review_again(database, acme, ids=[theirs.id, new_id()]) == []
    assert await review_again(database, acme, ids=[mine.id, hers.id], user_id="ada") == [mine.id]
    assert await review_again(database, acme, ids=[]) == []
    assert await review_again(database, acme, limit=1) == [hers.id]
    assert await counts(database, acme) == (1, 0)
    assert await review_again(database, acme) == [other.id]


async def test_what_a_person_holds_stays_with_that_person(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held, _ = await waiting(database, tenant)
    free, _ = await waiting(database, tenant)
    left_over, _ = await waiting(database, tenant)
    await makers.hold(database, held, reviewer="ada")
    await makers.hold(database, left_over, reviewer="ada", seconds=-1.0)
    assert await counts(database, tenant) == (2, 1)
    assert await review_again(database, tenant) == [free.id, left_over.id]
    assert await counts(database, tenant) == (0, 1)
    assert (await row_of(database, left_over.id)).held_by == ""


async def test_what_failed_again_since_the_moment_asked_for_is_left_alone(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, _ = await waiting(database, tenant)
    asked = await scope_of(database, tenant)

    async def later() -> bool:
        async with database.read() as reader:
            return await clock.present(reader) > asked.as_of

    await makers.until(later)
    assert await review_again(database, tenant, as_of=asked.as_of) == [job.id]
    await makers.release(database)
    claim = await makers.claim(database, job, release_no=2)
    assert claim is not None
    await makers.conclude(database, claim, Happening.REFERRED, shown=makers.shown("pending", "engine_error"))
    assert await review_again(database, tenant, as_of=asked.as_of) == []
    assert await review_again(database, tenant) == [job.id]


async def decide(tx: Transaction, job: Job) -> Job | None:
    locked = await people.lock_waiting(tx, Owner(tenant_id=job.tenant_id), job.id, reviewer="ada")
    if locked is None:
        return None
    made = HumanDecision(
        reviewer="ada",
        decision="approved",
        reason="Fine.",
        ai_recommendation="",
        overrides_ai=False,
        decided_at=await clock.present(tx),
    )
    return await people.decide(tx, locked, made, result=b"decided")


async def cancel(tx: Transaction, job: Job) -> Job | None:
    return await jobs.cancel(tx, Owner(tenant_id=job.tenant_id), job.id, reason="")


async def hold(tx: Transaction, job: Job) -> review_queue.Waiting | None:
    return await people.hold(tx, Owner(tenant_id=job.tenant_id), job.id, by=Actor(person="ada"), seconds=60.0)


#: What a caller may do meanwhile: with the state that it leaves when it is first, and whether it still can when second.
RIVALS: dict[str, tuple[Callable[[Transaction, Job], Awaitable[object]], State, bool]] = {
    "a decision": (decide, State.SUCCEEDED, False),
    "a hold": (hold, State.AWAITING_REVIEW, False),
    "a cancellation": (cancel, State.CANCELLED, True),
}


@pytest.mark.parametrize(("rival", "leaves", "still_can"), RIVALS.values(), ids=RIVALS.keys())
async def test_who_is_under_way_first_gets_the_job(
    database: Database, rival: Callable[[Transaction, Job], Awaitable[object]], leaves: State, still_can: bool
) -> None:
    tenant = await makers.make_tenant(database)

    async def rival_alone(job: Job) -> object:
        async with database.begin() as tx:
            return await rival(tx, job)

    for first in ("the rival", "the engine"):
        job, _ = await waiting(database, tenant)
        scope = await scope_of(database, tenant, ids=[job.id])
        async with database.begin() as tx:
            if first == "the rival":
                assert await rival(tx, job)
                second: asyncio.Task[object] = asyncio.create_task(review_again(database, tenant, ids=[job.id]))
            else:
                assert await repeats.review_again(tx, scope, limit=10, asked_by="")
                second = asyncio.create_task(rival_alone(job))
            await lock_waiters(database, 1)
        assert bool(await second) == (first == "the engine" and still_can)
        expected = leaves if first == "the rival" or still_can else State.QUEUED
        assert (await makers.find(database, tenant, job.id)).state is expected, first


async def test_a_cancellation_at_the_same_time_is_never_undone(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for round_no in range(8):
        job, _ = await waiting(database, tenant)
        both = [makers.cancel(database, job), review_again(database, tenant, ids=[job.id])]
        await asyncio.gather(*(both if round_no % 2 else reversed(both)))
        assert (await makers.find(database, tenant, job.id)).state is State.CANCELLED


async def test_of_callers_at_once_one_sends_each_job_back(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    sent = {(await waiting(database, tenant))[0].id for _ in range(30)}
    answers = await asyncio.gather(*(review_again(database, tenant, limit=20) for _ in range(6)))
    answers.append(await review_again(database, tenant))
    assert sorted(job_id for answer in answers for job_id in answer) == sorted(sent)
    async with database.read() as reader:
        for job_id in sent:
            history = await jobs.history(reader, job_id, after_version=0, limit=10)
            assert [event.kind for event in history].count("review_again") == 1


async def test_what_is_sent_back_is_released_in_steps(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for _ in range(5):
        await waiting(database, tenant)
    await review_again(database, tenant)
    assert await makers.release(database, room=2) == 2
    assert await makers.release(database, room=2) == 2
    assert await makers.release(database, room=2) == 1
