"""Concurrency keys: of one key at most one job is unfinished, the next is refused or takes its place, and revisions
come in their order; also when several submit at once."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from imprimatur import keys as names
from imprimatur.errors import Contended
from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Happening, Job, NewJob, State, WhenBusy
from imprimatur.retention import Kind, Retention
from imprimatur.storage import acceptance, attempts, clock, jobs, keys, repeats, retention, schema
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.database import Database, OutboxRow
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.keys import Verdict
from imprimatur.storage.repeats import Scope
from imprimatur.storage.retention import Place
from imprimatur.wire.messages import JobsChanged
from tests import makers
from tests.contract.polling import lock_waiters

KEY = names.given("nightly")
UNFINISHED = [State.QUEUED, State.RUNNING, State.AWAITING_REVIEW]
TERMINAL = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
REFUSED, SUPERSEDING = WhenBusy.REFUSE, WhenBusy.SUPERSEDE
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer


def wanting(tenant: uuid.UUID, content: str = "a creative", *, key: str = KEY, **fields: Any) -> NewJob:
    fields.setdefault("when_busy", SUPERSEDING)
    return makers.new_job(tenant, content=content.encode(), key=key, **fields)


async def submit(database: Database, *new_jobs: NewJob) -> list[Submitted]:
    async with database.begin() as tx:
        return await acceptance.submit(tx, new_jobs, release_at_once=100)


async def submit_until_settled(database: Database, *new_jobs: NewJob) -> list[Submitted]:
    """As the gateway does."""
    while True:
        try:
            return await submit(database, *new_jobs)
        except Contended:
            continue


async def in_state(database: Database, tenant: uuid.UUID, state: State, **fields: Any) -> Job:
    """A job with the key, brought there."""
    [job] = await makers.submit(database, wanting(tenant, "the first", **fields))
    if state is State.CANCELLED:
        await makers.cancel(database, job)
    elif state is not State.QUEUED:
        held = await makers.claim(database, job)
        assert held is not None
        ends = {
            State.SUCCEEDED: Happening.COMPLETED,
            State.FAILED: Happening.GAVE_UP,
            State.AWAITING_REVIEW: Happening.REFERRED,
        }
        if state in ends:
            await makers.conclude(database, held, ends[state], shown=makers.shown("pending", "low_confidence"))
    found = await makers.find(database, tenant, job.id)
    assert found.state is state
    return found


async def number_of(database: Database, table: Any = schema.jobs) -> int:
    async with database.read() as reader:
        return (await reader.connection.execute(select(func.count()).select_from(table))).scalar_one()


async def history(database: Database, job: Job) -> list[tuple[str, dict[str, str]]]:
    async with database.read() as reader:
        found = await jobs.history(reader, job.id, after_version=0, limit=100)
    return [(event.kind, dict(event.details)) for event in found]


# --- a key that is held ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", UNFINISHED)
async def test_a_job_whose_key_is_held_is_refused_with_the_holder(database: Database, state: State) -> None:
    tenant = await makers.make_tenant(database)
    holder = await in_state(database, tenant, state)
    [refused] = await submit(database, wanting(tenant, "other", when_busy=REFUSED, request_id="r-1"))
    assert (refused.created, refused.released, refused.superseded) == (False, False, None)
    assert refused.refused is not None
    assert (refused.refused.verdict, refused.job.id) == (Verdict.BUSY, holder.id)
    assert await makers.find(database, tenant, holder.id) == holder
    assert await number_of(database) == 1
    await makers.cancel(database, holder)
    [accepted] = await submit(database, wanting(tenant, "other", when_busy=REFUSED, request_id="r-1"))
    assert accepted.created


@pytest.mark.parametrize("state", UNFINISHED)
async def test_another_content_takes_the_holder_s_place(database: Database, state: State) -> None:
    tenant = await makers.make_tenant(database)
    holder = await in_state(database, tenant, state, callback_url="https://ads.example/hook")
    if state is State.AWAITING_REVIEW:
        assert await makers.hold(database, holder, reviewer="ada") is not None
    told: list[OutboxRow] = []
    database.on_commit = told.extend
    [newer] = await submit(database, wanting(tenant, "other"))
    assert (newer.created, newer.superseded, newer.released) == (True, holder.type, True)
    assert newer.job == await makers.find(database, tenant, newer.job.id)
    assert (newer.job.supersedes, newer.job.superseded_by, newer.job.state) == (holder.id, None, State.QUEUED)
    older = await makers.find(database, tenant, holder.id)
    assert (older.state, older.superseded_by, older.supersedes) == (State.CANCELLED, newer.job.id, None)
    assert older.finished_at is not None
    assert (await history(database, holder))[-1] == ("cancelled", {"superseded_by": str(newer.job.id)})
    assert await history(database, newer.job) == [("submitted", {"supersedes": str(holder.id)})]
    [outcome] = [JobsChanged.decode(row.body) for row in told if row.routing_key == "outcome.cancelled"]
    assert [change.job_id for change in outcome.changes] == [holder.id]
    async with database.read() as reader:
        made = await attempts.of_job(reader, holder.id)
    assert [attempt.outcome for attempt in made] == {
        State.QUEUED: [],
        State.RUNNING: [AttemptOutcome.CANCELLED],
        State.AWAITING_REVIEW: [AttemptOutcome.SUCCEEDED],
    }[state]


@pytest.mark.parametrize("state", UNFINISHED)
@pytest.mark.parametrize("when_busy", WhenBusy)
async def test_the_same_content_again_is_the_holder(database: Database, state: State, when_busy: WhenBusy) -> None:
    tenant = await makers.make_tenant(database)
    holder = await in_state(database, tenant, state)
    [again] = await submit(database, wanting(tenant, "the first", when_busy=when_busy))
    assert (again.created, again.same_content, again.refused, again.job) == (False, True, None, holder)
    assert await number_of(database) == 1


@pytest.mark.parametrize("state", TERMINAL)
async def test_a_job_that_ended_holds_no_key(database: Database, state: State) -> None:
    tenant = await makers.make_tenant(database)
    ended = await in_state(database, tenant, state)
    for content in ("the first", "other"):
        [accepted] = await submit(database, wanting(tenant, content, when_busy=REFUSED))
        assert (accepted.created, accepted.job.supersedes) == (True, None)
        await makers.cancel(database, accepted.job)
    assert await makers.find(database, tenant, ended.id) == ended


async def test_keys_are_a_tenant_s_own_and_each_is_one(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    keys = [names.given("a"), names.of_creative("a"), names.given("a", bound_to="ada"), names.given("ada:a")]
    answers = await submit(database, *(wanting(tenant, key=key) for tenant in (acme, globex) for key in keys))
    answers += await submit(database, *(makers.new_job(acme) for _ in range(3)))
    assert all(answer.created and answer.superseded is None for answer in answers)
    assert [answer.job.concurrency_key for answer in answers] == [*keys, *keys, None, None, None]


async def test_a_retry_supersedes_nothing_and_is_not_the_same_as_what_runs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    failed = await in_state(database, tenant, State.FAILED)
    [holder] = await makers.submit(database, wanting(tenant, "the first"))
    retry = wanting(tenant, "the first", retry_of=failed.id, when_busy=REFUSED)
    [refused] = await submit(database, retry)
    assert refused.refused is not None
    assert (refused.refused.verdict, refused.job.id) == (Verdict.BUSY, holder.id)


async def test_what_is_submitted_again_is_the_retry_that_runs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    failed = await in_state(database, tenant, State.FAILED)
    [retry] = await submit(database, wanting(tenant, "the first", retry_of=failed.id, when_busy=REFUSED))
    [again] = await submit(database, wanting(tenant, "the first"))
    assert (retry.created, again.created, again.job) == (True, False, retry.job)


# --- several in one batch --------------------------------------------------------------------------------


async def test_of_one_key_in_one_batch_each_takes_the_place_of_the_one_before(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    first = await in_state(database, tenant, State.RUNNING)
    batch = [wanting(tenant, content) for content in ("b", "c", "c", "d")]
    others = [wanting(tenant, "x", key=names.given(f"other {number}")) for number in range(3)]
    b, c, same, d, *rest = await submit(database, *batch, *others)
    assert all(answer.created and answer.superseded is None for answer in rest)
    assert (b.created, c.created, same.created, d.created) == (True, True, False, True)
    chain = [first.id, b.job.id, c.job.id, d.job.id]
    assert same.job.id == c.job.id
    for place, answer in enumerate((b, c, d), start=1):
        stored = await makers.find(database, tenant, answer.job.id)
        assert answer.job == stored, "the answer is the job as it stands"
        assert stored.supersedes == chain[place - 1]
        assert stored.superseded_by == (chain[place + 1] if place < 3 else None)
        assert stored.state is (State.CANCELLED if place < 3 else State.QUEUED)
    assert same.job.state is State.CANCELLED
    assert await number_of(database, schema.job_events) == 2 + 1 + 2 + 2 + 1 + 3


async def test_of_one_key_in_one_batch_the_first_is_accepted_and_the_rest_refused(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    batch = [
        wanting(tenant, content, when_busy=REFUSED, request_id=f"r-{9 - place}") for place, content in enumerate("aba")
    ]
    first, second, third = await submit(database, *batch)
    assert (first.created, second.created, third.created) == (True, False, False)
    assert second.refused is not None
    assert (second.refused.verdict, second.job.id) == (Verdict.BUSY, first.job.id)
    assert (third.refused, third.job.id) == (None, first.job.id)


async def test_a_batch_that_is_sent_again_after_a_lost_answer_supersedes_nothing_more(database: Database) -> None:
    """The commit happened, its answer was lost: the caller repeats it with the ids that it chose."""
    tenant = await makers.make_tenant(database)
    await in_state(database, tenant, State.QUEUED)
    batch = [wanting(tenant, content, request_id=request_id) for content, request_id in (("b", None), ("c", "r-1"))]
    first = await submit(database, *batch)
    events = await number_of(database, schema.job_events)
    again = await submit(database, *batch)
    assert [answer.job for answer in again] == [answer.job for answer in first]
    assert all(answer.created for answer in again)
    assert (await number_of(database), await number_of(database, schema.job_events)) == (3, events)


# --- request ids -----------------------------------------------------------------------------------------


async def test_an_accepted_request_is_found_before_its_key_is_looked_at(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [first] = await submit(database, wanting(tenant, "a", request_id="r-1", revision=1))
    [second] = await submit(database, wanting(tenant, "b", request_id="r-2", revision=2))
    [again] = await submit(database, wanting(tenant, "a", request_id="r-1", revision=1))
    assert (again.created, again.same_content, again.refused) == (False, True, None)
    assert again.job == await makers.find(database, tenant, first.job.id)
    [other] = await submit(database, wanting(tenant, "c", request_id="r-1", revision=3))
    assert (other.created, other.same_content, other.job.id) == (False, False, first.job.id)
    assert (await makers.find(database, tenant, second.job.id)).state is State.QUEUED


async def test_a_request_that_was_answered_with_the_holder_is_that_job_for_good(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [holder] = await makers.submit(database, wanting(tenant, "a", request_id="r-1"))
    batch = [wanting(tenant, "a", request_id=request_id) for request_id in ("r-2", "r-2", "r-3", "r-1")]
    assert [answer.job.id for answer in await submit(database, *batch)] == [holder.id] * 4
    assert await number_of(database, schema.request_aliases) == 2
    await makers.cancel(database, holder)
    [newer] = await makers.submit(database, wanting(tenant, "b", request_id="r-4"))
    again, other = await submit(
        database, wanting(tenant, "a", request_id="r-2"), wanting(tenant, "c", request_id="r-3")
    )
    assert (again.created, again.same_content, again.job.id, again.job.state) == (
        False,
        True,
        holder.id,
        State.CANCELLED,
    )
    assert (other.created, other.same_content, other.job.id) == (False, False, holder.id)
    assert (await makers.find(database, tenant, newer.id)).state is State.QUEUED
    async with database.read() as reader:
        found = await acceptance.accepted_before(reader, [(tenant, "r-1"), (tenant, "r-2"), (tenant, "r-9")])
    assert {request: job.id for request, (job, _) in found.items()} == {
        (tenant, "r-1"): holder.id,
        (tenant, "r-2"): holder.id,
    }


async def test_one_request_for_two_holders_is_the_first_of_them(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    other = names.given("other")
    one, two = await makers.submit(database, wanting(tenant, "a"), wanting(tenant, "b", key=other))
    first, second = await submit(
        database, wanting(tenant, "a", request_id="r-1"), wanting(tenant, "b", key=other, request_id="r-1")
    )
    assert (first.job.id, first.same_content) == (one.id, True)
    assert (second.job.id, second.same_content) == (one.id, False) != (two.id, True)


async def test_further_request_ids_go_with_their_job_and_when_request_ids_do(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for days in ({Kind.REQUEST_IDS: 1}, {Kind.JOBS: 1}):
        [holder] = await makers.submit(database, wanting(tenant, "a"))
        await submit(database, wanting(tenant, "a", request_id="r-1"))
        await makers.cancel(database, holder)
        async with database.begin() as tx:
            later = await clock.present(tx) + timedelta(days=3)
            place: Place | None = Place()
            removed: Counter[str] = Counter()
            while place is not None:
                step = await retention.clean_some(tx, Retention(days=days), place, now=later)
                removed.update(step.rows)
                place = step.following
        assert removed["request_ids"] + removed["request_aliases"] == 1
        assert await number_of(database, schema.request_aliases) == 0
    assert await number_of(database) == 0


# --- revisions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [*UNFINISHED, *TERMINAL])
@pytest.mark.parametrize("when_busy", WhenBusy)
async def test_a_revision_that_comes_too_late_is_refused(database: Database, state: State, when_busy: WhenBusy) -> None:
    tenant = await makers.make_tenant(database)
    newest = await in_state(database, tenant, state, revision=5)
    late, reused, negative = await submit(
        database,
        wanting(tenant, "other", when_busy=when_busy, revision=4),
        wanting(tenant, "other", when_busy=when_busy, revision=5),
        wanting(tenant, "the first", when_busy=when_busy, revision=0, request_id="r-1", user_id="ada"),
    )
    verdicts = [Verdict.OUTDATED, Verdict.REUSED, Verdict.SAME if state in UNFINISHED else Verdict.OUTDATED]
    for answer, verdict in zip((late, reused, negative), verdicts, strict=True):
        if verdict is not Verdict.SAME:  # of other content than its revision says: the gateway hashes that, too
            assert answer.refused is not None
            assert (answer.refused.verdict, answer.refused.revision, answer.job.id) == (verdict, 5, newest.id)
        assert not answer.created
    assert await makers.find(database, tenant, newest.id) == newest
    assert await number_of(database) == 1


async def test_revisions_are_held_against_all_jobs_of_the_key_that_have_one(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    other = names.given("other")
    for revision, content in ((3, "a"), (7, "b"), (None, "c")):
        [job] = await makers.submit(database, wanting(tenant, content, revision=revision))
    [late] = await submit(database, wanting(tenant, "d", revision=6))
    assert late.refused is not None
    assert (late.refused.verdict, late.refused.revision) == (Verdict.OUTDATED, 7)
    elsewhere, same, higher = await submit(
        database,
        wanting(tenant, "d", revision=1, key=other),
        wanting(tenant, "b", revision=7),
        wanting(tenant, "d", revision=8),
    )
    assert elsewhere.created
    assert (same.created, same.job.supersedes) == (True, job.id)
    assert (higher.created, higher.job.supersedes) == (True, same.job.id)
    assert higher.job.revision == 8


async def test_revisions_of_one_batch_are_settled_one_after_the_other(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    batch = [wanting(tenant, f"content {revision}", revision=revision) for revision in (2, 3, 1, 3, 5, 4)]
    answers = await submit(database, *batch)
    refused = [answer.refused.verdict if answer.refused else None for answer in answers]
    assert refused == [None, None, Verdict.OUTDATED, None, None, Verdict.OUTDATED]
    assert [answer.created for answer in answers] == [True, True, False, False, True, False]
    assert answers[3].job.id == answers[1].job.id


# --- retries by filter -----------------------------------------------------------------------------------


async def retry(database: Database, tenant: uuid.UUID) -> tuple[dict[uuid.UUID, uuid.UUID], int]:
    """New jobs by old ones, and how many are left."""
    async with database.begin() as tx:
        scope = Scope(owner=Owner(tenant_id=tenant), wanted=Filter(), as_of=await clock.present(tx))
        made = await repeats.retry(tx, scope, limit=100)
        return {row.retry_of: row.id for row in made}, await repeats.count_retryable(tx, scope)


async def gone(database: Database, tenant: uuid.UUID, content: str, **fields: Any) -> Job:
    [job] = await makers.submit(database, wanting(tenant, content, **fields))
    cancelled = await makers.cancel(database, job)
    assert cancelled is not None
    return cancelled


async def test_what_something_newer_took_the_place_of_is_not_retried_by_filter(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    creative = names.of_creative("cr-1")
    older, newer = [await gone(database, tenant, content, key=creative, subject_id="cr-1") for content in "ab"]
    await makers.submit(database, *(wanting(tenant, content, key=names.of_creative("cr-2")) for content in "ab"))
    await gone(database, tenant, "c", key=names.given("held"), subject_id="cr-3")
    await makers.submit(database, wanting(tenant, "d", key=names.given("held"), subject_id="cr-4"))
    made, left = await retry(database, tenant)
    assert ([*made], left) == ([newer.id], 0)
    assert older.id < newer.id
    again = await makers.find(database, tenant, made[newer.id])
    assert (again.concurrency_key, again.retry_of) == (creative, newer.id)


async def test_of_several_with_one_key_one_is_retried_at_a_time(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    lost = [await gone(database, tenant, content, subject_id=f"cr-{content}") for content in "abc"]
    retried: list[uuid.UUID] = []
    for _ in lost:
        made, left = await retry(database, tenant)
        assert (len(made), left) == (1, 0)
        [(old, new)] = made.items()
        retried.append(old)
        running = await makers.find(database, tenant, new)
        assert await retry(database, tenant) == ({}, 0)
        await makers.release(database)
        held = await makers.claim(database, running)
        assert held is not None
        await makers.conclude(database, held, Happening.COMPLETED)
    assert sorted(retried) == sorted(job.id for job in lost)


# --- several at once -------------------------------------------------------------------------------------


async def held_open(database: Database, new: NewJob, meanwhile: Callable[[], Awaitable[None]]) -> Submitted:
    """Submit, and do something before that is committed."""
    async with database.begin() as tx:
        [answer] = await acceptance.submit(tx, [new], release_at_once=0)
        await meanwhile()
    return answer


@on_postgresql
@pytest.mark.parametrize("held", [False, True])
async def test_of_two_at_once_the_second_takes_the_place_of_the_first(database: Database, held: bool) -> None:
    tenant = await makers.make_tenant(database)
    before = await in_state(database, tenant, State.RUNNING) if held else None
    second: list[asyncio.Task[list[Submitted]]] = []

    async def another_begins() -> None:
        second.append(asyncio.create_task(submit(database, wanting(tenant, "b"))))
        await lock_waiters(database, 1)

    first = await held_open(database, wanting(tenant, "a"), another_begins)
    [answer] = await second[0]
    assert first.job.supersedes == (before.id if before else None)
    assert (answer.created, answer.job.supersedes) == (True, first.job.id)
    assert (await makers.find(database, tenant, first.job.id)).superseded_by == answer.job.id


@on_postgresql
async def test_a_key_that_becomes_free_meanwhile_is_asked_for_again(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    holder = await in_state(database, tenant, State.QUEUED)
    new = wanting(tenant, "b", request_id="r-1")
    async with database.begin() as tx:
        assert await jobs.cancel(tx, Owner(tenant_id=tenant), holder.id, reason="") is not None
        # The holder's old version is what the others see, and nobody's insert is under way.
        waits = asyncio.create_task(submit(database, new))
        await lock_waiters(database, 1)
    try:
        [answer] = await waits
    except Contended:
        [answer] = await submit(database, new)
    assert (answer.created, answer.job.supersedes) == (True, None)
    assert (await makers.find(database, tenant, holder.id)).superseded_by is None


@on_postgresql
async def test_nobody_is_superseded_for_a_job_that_another_transaction_has_accepted(database: Database) -> None:
    """The same request at two gateways, of which the second looks at the holder just before the first commits."""
    tenant = await makers.make_tenant(database)
    holder = await in_state(database, tenant, State.RUNNING)
    second: list[asyncio.Task[list[Submitted]]] = []

    async def the_same_begins() -> None:
        second.append(asyncio.create_task(submit(database, wanting(tenant, "b", request_id="r-1"))))
        await lock_waiters(database, 1)

    first = await held_open(database, wanting(tenant, "b", request_id="r-1"), the_same_begins)
    [again] = await second[0]
    assert (first.created, first.job.supersedes) == (True, holder.id)
    assert (again.created, again.same_content, again.job.id) == (False, True, first.job.id)


@on_postgresql
async def test_batches_with_the_same_keys_in_another_order_wait_in_no_circle(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    keys = [names.of_creative(f"cr-{number}") for number in range(12)]

    async def send(content: str, order: list[str]) -> list[Submitted]:
        return await submit_until_settled(database, *(wanting(tenant, content, key=key) for key in order))

    for _ in range(3):
        orders = [keys, keys[::-1], keys[6:] + keys[:6], keys[3:9] + keys[:3] + keys[9:]]
        answers = await asyncio.gather(*(send(f"content {place}", order) for place, order in enumerate(orders)))
        assert all(answer.created or answer.job for batch in answers for answer in batch)
    await check_that_keys_are_kept(database)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_goes_on_at_once_of_each_key_one_is_unfinished_and_links_lead_on(
    database: Database, seed: int
) -> None:
    tenant = await makers.make_tenant(database)
    keys = [names.of_creative(f"cr-{number}") for number in range(3)]
    accepted: list[Job] = []
    answered: dict[str, uuid.UUID] = {}

    def drawn(dice: random.Random) -> NewJob:
        content = dice.choice("ab")
        key, revision = dice.choice(keys), dice.choice([None, None, 1, 2, 3])
        return wanting(
            tenant,
            f"{content}{revision}",
            key=key,
            revision=revision,
            when_busy=dice.choice([SUPERSEDING, SUPERSEDING, REFUSED]),
            request_id=f"r-{key}-{content}{revision}-{dice.randrange(3)}",
        )

    async def send(dice: random.Random) -> None:
        batch = [drawn(dice) for _ in range(dice.choice([1, 2, 4]))]
        for new, answer in zip(batch, await submit_until_settled(database, *batch), strict=True):
            if answer.refused is None:
                assert answer.same_content
                assert answered.setdefault(str(new.request_id), answer.job.id) == answer.job.id
                accepted.append(answer.job)

    async def end(dice: random.Random) -> None:
        if not accepted:
            return
        job = dice.choice(accepted)
        if dice.random() < 0.3:
            await makers.cancel(database, job)
        elif (held := await makers.claim(database, job)) is not None:
            happening = dice.choice([Happening.COMPLETED, Happening.REFERRED, Happening.RETRY_SCHEDULED])
            await makers.conclude(database, held, happening, shown=makers.shown("pending", "low_confidence"))

    async def work(number: int) -> None:
        dice = random.Random(100 * seed + number)
        for _ in range(12):
            await (send if dice.random() < 0.6 else end)(dice)

    await asyncio.gather(*(work(number) for number in range(5)))
    assert any(job.supersedes for job in accepted)
    await check_that_keys_are_kept(database)


async def check_that_keys_are_kept(database: Database) -> None:
    columns = ("id", "state", "tenant_id", "concurrency_key", "supersedes", "superseded_by", "revision")
    async with database.read() as reader:
        rows = (await reader.connection.execute(select(*(schema.jobs.c[name] for name in columns)))).all()
    by_id = {row.id: row for row in rows}
    unfinished = Counter((row.tenant_id, row.concurrency_key) for row in rows if row.state in UNFINISHED)
    assert max(unfinished.values(), default=0) <= 1
    for row in rows:
        if row.superseded_by is not None:
            successor = by_id[row.superseded_by]
            assert row.state == State.CANCELLED
            assert (successor.supersedes, successor.concurrency_key) == (row.id, row.concurrency_key)
            assert None in (successor.revision, row.revision) or successor.revision > row.revision
        if row.supersedes is not None:
            assert by_id[row.supersedes].superseded_by == row.id
    assert len({row.supersedes for row in rows if row.supersedes}) == sum(bool(row.supersedes) for row in rows)


async def test_a_newer_revision_that_came_and_ended_meanwhile_undoes_an_older_one(database: Database) -> None:
    """What an insert could not see that had to wait for another row."""
    tenant = await makers.make_tenant(database)
    await in_state(database, tenant, State.SUCCEEDED, revision=6)

    with pytest.raises(Contended):
        async with database.begin() as tx:
            await keys.require_in_order(tx, [wanting(tenant, "older", revision=5, job_id=new_id())])
    async with database.begin() as tx:
        await keys.require_in_order(tx, [wanting(tenant, "newer", revision=6 + 1)])
