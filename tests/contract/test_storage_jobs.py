"""Jobs as their callers know them: found, listed, cancelled, and only by those whose they are."""

import uuid
from datetime import timedelta

import pytest

from imprimatur.identity import new_id
from imprimatur.job import Happening, Job, JobType, Priority, State
from imprimatur.storage import acceptance, jobs
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from tests import makers

#: Keys and values that mean something to SQL, JSON, JSON paths or the shell.
STRANGE = [
    'quote"inside',
    "it's",
    "back\\slash",
    '\\"both\\"',
    "dotted.key",
    "$.path[0]",
    "[0]",
    "spaces and\ttabs",
    "line\nbreak",
    "ключ",
    "鍵🔑",
    "e\u0301 is not \u00e9",
    "%_*?",
    ":colon",
    "null",
    "0",
    "{}",
    "-",
]


async def ids(
    database: Database, owner: Owner, wanted: Filter | None = None, *, before: uuid.UUID | None = None, limit: int = 100
) -> list[uuid.UUID]:
    async with database.read() as reader:
        found = await jobs.list_newest(reader, owner, wanted or Filter(), before=before, limit=limit)
    return [job.id for job in found]


# --- owners ----------------------------------------------------------------------------------------------


async def test_tenants_and_users_do_not_see_each_others_jobs(database: Database) -> None:
    acme, globex = await makers.make_tenant(database), await makers.make_tenant(database)
    ada, grace, theirs = await makers.submit(
        database,
        makers.new_job(acme, user_id="ada", request_id="r-1"),
        makers.new_job(acme, user_id="grace"),
        makers.new_job(globex, user_id="ada", request_id="r-1"),
    )
    for owner, seen in (
        (Owner(tenant_id=acme), {ada.id, grace.id}),
        (Owner(tenant_id=acme, user_id="ada"), {ada.id}),
        (Owner(tenant_id=acme, user_id="grace"), {grace.id}),
        (Owner(tenant_id=globex), {theirs.id}),
        (Owner(tenant_id=globex, user_id="grace"), set()),
        (Owner(tenant_id=new_id()), set()),
    ):
        everything = [ada.id, grace.id, theirs.id]
        assert set(await ids(database, owner)) == seen
        assert set(await ids(database, owner, Filter(user_id="ada"))) == seen & {ada.id, theirs.id}
        async with database.read() as reader:
            found = await jobs.find_many(reader, everything)
            assert {job.id for job in found.values() if owner.owns(job)} == seen
            assert set(await jobs.unfinished_versions(reader, owner, Filter(), limit=9)) == seen
            for job_id in everything:
                assert (await jobs.find(reader, owner, job_id) is not None) == (job_id in seen)
                assert (await jobs.content_of(reader, owner, job_id) is not None) == (job_id in seen)


async def test_nobody_cancels_what_is_not_theirs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant, user_id="ada"))
    for owner in (Owner(tenant_id=await makers.make_tenant(database)), Owner(tenant_id=tenant, user_id="grace")):
        async with database.begin() as tx:
            assert await jobs.cancel(tx, owner, job.id, reason="") is None
    assert await makers.find(database, tenant, job.id) == job


async def test_jobs_are_found_by_id_for_watchers(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    first, second = await makers.submit(database, makers.new_job(tenant), makers.new_job(tenant))
    async with database.read() as reader:
        assert await jobs.find_many(reader, [first.id, second.id, new_id()]) == {first.id: first, second.id: second}
        assert await jobs.find_many(reader, []) == {}
        versions = await jobs.versions(reader, [first.id, second.id, new_id()])
        assert versions == {first.id: first.version, second.id: second.version}


async def test_the_queued_and_the_running_are_open_and_nothing_else(database: Database) -> None:
    mine, theirs, idle = [await makers.make_tenant(database) for _ in range(3)]
    await makers.submit(database, makers.new_job(mine), makers.new_job(theirs))
    await makers.running(database, mine)
    await makers.awaiting(database, mine)
    await makers.conclude(database, await makers.running(database, mine), Happening.COMPLETED)
    async with database.read() as reader:
        assert await jobs.count_open(reader, [mine, theirs, idle]) == {mine: 2, theirs: 1}
        assert await jobs.count_open(reader, [mine]) == {mine: 2}


async def test_requests_accepted_before_are_found_by_tenant_and_id(database: Database) -> None:
    mine, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(mine, request_id="a", content=b"one"))
    await makers.submit(database, makers.new_job(theirs, request_id="b"))
    asked = [(mine, "a"), (mine, "b"), (theirs, "a")]
    async with database.read() as reader:
        found = await acceptance.accepted_before(reader, asked)
    assert {request: seen for request, (seen, _) in found.items()} == {(mine, "a"): job}
    same, other = (makers.new_job(mine, request_id="a", content=content) for content in (b"one", b"two"))
    assert [acceptance.again(new, *found[mine, "a"]).same_content for new in (same, other)] == [True, False]


# --- listing ---------------------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first_page_by_page(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    owner = Owner(tenant_id=tenant)
    submitted = await makers.submit(database, *(makers.new_job(tenant) for _ in range(7)))
    newest_first = [job.id for job in submitted][::-1]
    for size in (1, 3, 7, 8):
        pages: list[uuid.UUID] = []
        while page := await ids(database, owner, before=pages[-1] if pages else None, limit=size):
            pages += page
        assert pages == newest_first


async def test_each_filter_keeps_what_it_names(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    owner = Owner(tenant_id=tenant)
    [queued] = await makers.submit(database, makers.new_job(tenant, user_id="ada", subject_id="creative-7"))
    running = await makers.find(database, tenant, (await makers.running(database, tenant)).job_id)
    waiting = await makers.awaiting(database, tenant)
    everything = {queued.id, running.id, waiting.id}
    moment = timedelta(milliseconds=1)
    for wanted, kept in (
        (Filter(), everything),
        (Filter(states=frozenset({State.QUEUED})), {queued.id}),
        (Filter(states=frozenset({State.RUNNING, State.AWAITING_REVIEW})), {running.id, waiting.id}),
        (Filter(states=frozenset({State.FAILED})), set()),
        (Filter(types=frozenset({JobType.CREATIVE_REVIEW})), everything),
        (Filter(decisions=frozenset({"pending", "approved"})), {waiting.id}),
        (Filter(triggers=frozenset({"low_confidence"})), {waiting.id}),
        (Filter(triggers=frozenset({"auto_approve"})), set()),
        (Filter(user_id="ada"), {queued.id}),
        (Filter(subject_id="creative-7"), {queued.id}),
        (Filter(created_from=queued.created_at), everything),
        (Filter(created_before=queued.created_at), set()),
        (Filter(created_before=queued.created_at + moment), {queued.id}),
        (Filter(created_from=waiting.created_at + moment), set()),
        (Filter(states=frozenset({State.QUEUED}), subject_id="creative-7", user_id="ada"), {queued.id}),
        (Filter(states=frozenset({State.RUNNING}), subject_id="creative-7"), set()),
    ):
        assert set(await ids(database, owner, wanted)) == kept, wanted
        async with database.read() as reader:
            found = await jobs.find_many(reader, everything)
            assert {job.id for job in found.values() if wanted.passes(job)} == kept, wanted
            assert set(await jobs.unfinished_versions(reader, owner, wanted, limit=9)) == kept, wanted


async def test_labels_with_strange_keys_and_values_are_found_and_only_they(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    owner = Owner(tenant_id=tenant)
    submitted = await makers.submit(
        database,
        *(makers.new_job(tenant, labels={text: text[::-1] + '"', "common": "yes"}) for text in STRANGE),
    )
    for text, job in zip(STRANGE, submitted, strict=True):
        assert job.labels == {text: text[::-1] + '"', "common": "yes"}
        assert await ids(database, owner, Filter(labels={text: text[::-1] + '"'})) == [job.id], text
        assert await ids(database, owner, Filter(labels={text: text[::-1] + '"', "common": "yes"})) == [job.id]
        assert await ids(database, owner, Filter(labels={text: "other"})) == []
    assert len(await ids(database, owner, Filter(labels={"common": "yes"}))) == len(STRANGE)
    assert await ids(database, owner, Filter(labels={"common": "no"})) == []
    assert await ids(database, owner, Filter(labels={"absent": ""})) == []
    assert await ids(database, owner, Filter(labels={"dotted": "x"})) == []


async def test_an_empty_label_value_is_a_value(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    with_it, _ = await makers.submit(database, makers.new_job(tenant, labels={"k": ""}), makers.new_job(tenant))
    assert await ids(database, Owner(tenant_id=tenant), Filter(labels={"k": ""})) == [with_it.id]


# --- cancelling ------------------------------------------------------------------------------------------


async def in_state(database: Database, tenant: uuid.UUID, state: State) -> Job:
    """A job that got there by the way that jobs go."""
    if state is State.QUEUED:
        return (await makers.submit(database, makers.new_job(tenant)))[0]
    if state is State.AWAITING_REVIEW:
        return await makers.awaiting(database, tenant)
    claim = await makers.running(database, tenant)
    if state is State.CANCELLED:
        await makers.cancel(database, await makers.find(database, tenant, claim.job_id))
    if state in (State.SUCCEEDED, State.FAILED):
        ending = Happening.COMPLETED if state is State.SUCCEEDED else Happening.GAVE_UP
        await makers.conclude(database, claim, ending)
    return await makers.find(database, tenant, claim.job_id)


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.AWAITING_REVIEW])
async def test_an_unfinished_job_can_be_cancelled(database: Database, state: State) -> None:
    tenant = await makers.make_tenant(database)
    job = await in_state(database, tenant, state)
    assert job.state is state
    async with database.begin() as tx:
        cancelled = await jobs.cancel(tx, Owner(tenant_id=tenant), job.id, reason="not needed")
    assert cancelled is not None
    assert (cancelled.state, cancelled.version) == (State.CANCELLED, job.version + 1)
    assert cancelled.finished_at is not None
    async with database.read() as reader:
        last = (await jobs.history(reader, job.id, after_version=0, limit=100))[-1]
    assert (last.kind, last.details) == ("cancelled", {"reason": "not needed"})
    assert await makers.claim(database, job) is None
    assert await makers.release(database) == 0


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_a_finished_job_cannot_be_cancelled(database: Database, state: State) -> None:
    tenant = await makers.make_tenant(database)
    job = await in_state(database, tenant, state)
    assert job.state is state
    assert await makers.cancel(database, job) is None
    assert await makers.find(database, tenant, job.id) == job


async def test_the_history_is_read_page_by_page(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job = await makers.awaiting(database, tenant)
    await makers.hold(database, job, reviewer="ada")
    async with database.read() as reader:
        whole = await jobs.history(reader, job.id, after_version=0, limit=100)
        pages = await jobs.history(reader, job.id, after_version=0, limit=3)
        pages += await jobs.history(reader, job.id, after_version=pages[-1].version, limit=3)
    assert [event.kind for event in whole] == ["submitted", "started", "awaiting_review", "claimed_by_person"]
    assert [event.version for event in whole] == [1, 2, 3, 4]
    assert pages == whole
    assert all(event.at.utcoffset() == timedelta(0) for event in whole)


async def test_the_content_of_a_job_has_what_a_retry_by_hand_needs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(
        database, makers.new_job(tenant, content=b"an ad", priority=Priority.LOW, deadline_seconds=77.0)
    )
    async with database.read() as reader:
        row = await jobs.content_of(reader, Owner(tenant_id=tenant), job.id)
    assert row is not None
    assert (row.input, row.priority, row.deadline_seconds) == (b"an ad", 3, 77.0)
