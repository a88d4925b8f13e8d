"""Clean-up: what was kept for its days goes, and nothing else, whatever happened before."""

import asyncio
import hashlib
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from imprimatur.identity import new_id
from imprimatur.job import TERMINAL, State
from imprimatur.retention import Kind, Retention
from imprimatur.storage import acceptance, clock, deliveries, passes, people, repeats, retention, schema
from imprimatur.storage.database import Database
from imprimatur.storage.deliveries import AttemptRecord, DeliveryState
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.repeats import Scope
from imprimatur.storage.retention import Place
from tests import makers
from tests.pasts import Left, Past, Told, clean, left, made

WEEK = Retention()
PAST_IT = Past(days=7.5)
EXAMPLES = {"sqlite": 25, "postgresql": 10}

# --- whatever happened before ------------------------------------------------------------------------------

pasts = st.builds(
    Past,
    state=st.sampled_from([*State, *TERMINAL]),
    days=st.sampled_from([0.5, 1.5, 2.5, 3.5, 4.5, 9.0]),
    told=st.sampled_from([*Told, Told.DELIVERED, Told.TO_NOBODY]),
    request_id=st.booleans(),
    retries=st.booleans(),
)
kept_days = st.builds(
    lambda days: Retention(days=days),
    st.fixed_dictionaries({kind: st.sampled_from([0, 1, 2, 3, 4]) for kind in Kind}),
)
#: Besides the job itself: what of it belongs to which kind.
TABLES = {
    Kind.EVENTS: ("job_events",),
    Kind.ATTEMPTS: ("attempts",),
    Kind.WEBHOOKS: ("webhook_messages", "webhook_deliveries", "webhook_attempts"),
}


def fitting(drawn: Sequence[Past]) -> list[Past]:
    """What can have happened: only what failed is retried, after its end; a retry is its own history's end."""
    found: list[Past] = []
    for past in drawn:
        before = found[-1] if found else None
        can_retry = past.retries and before is not None and before.state in (State.FAILED, State.CANCELLED)
        days = min(past.days, before.days) if can_retry and before is not None else past.days
        found.append(replace(past, retries=can_retry, days=days))
    return found


class Expected:
    """What is left by the rules, said in a few lines."""

    def __init__(self, kept: Retention, drawn: Sequence[Past]) -> None:
        self.kept = kept
        self.stays = [False] * len(drawn)
        for place, past in enumerate(drawn):
            before_stays = past.retries and self.stays[place - 1]
            self.stays[place] = not self.over(Kind.JOBS, past) or not past.settled or before_stays

    def over(self, kind: Kind, past: Past) -> bool:
        return past.state in TERMINAL and 0 < self.kept.days[kind] < past.days

    def check(self, ids: Sequence[uuid.UUID], drawn: Sequence[Past], before: Left, after: Left) -> None:
        for job_id, past, stays in zip(ids, drawn, self.stays, strict=True):
            assert (job_id in after.jobs()) == stays, past
            for kind, tables in TABLES.items():
                goes = not stays or (past.settled and self.over(kind, past) and not self.over(Kind.JOBS, past))
                for table in tables:
                    expected = 0 if goes else before.rows[table][job_id]
                    assert after.rows[table][job_id] == expected, (past, table)
            forgotten = past.settled and self.over(Kind.REQUEST_IDS, past) and not self.over(Kind.JOBS, past)
            assert (job_id in after.request_ids) == (stays and past.request_id and not forgotten), past


@pytest.mark.timeout(600)  # to find the shortest example of a failure takes minutes
def test_whatever_happened_before_what_is_over_goes_and_nothing_else(database_url: str) -> None:
    reached: Counter[bool] = Counter()

    @settings(
        max_examples=EXAMPLES[database_url.partition(":")[0]],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
    )
    @given(drawn=st.lists(pasts, min_size=3, max_size=12).map(fitting), kept=kept_days, limit=st.integers(1, 5))
    def check(drawn: list[Past], kept: Retention, limit: int) -> None:
        reached.update(runner.run(check_one(database, drawn, kept, limit)))

    with asyncio.Runner() as runner:
        database = Database(database_url)
        try:
            check()
        finally:
            runner.run(database.close())
    assert reached[True] > 10, "hardly anything stayed"
    assert reached[False] > 5, "hardly anything went"


async def check_one(database: Database, drawn: list[Past], kept: Retention, limit: int) -> list[bool]:
    await makers.empty(database)
    ids = await made(database, await makers.make_tenant(database), *drawn)
    before = await left(database)
    counted = await clean(database, kept, dry_run=True, limit=limit)
    assert await left(database) == before
    removed = await clean(database, kept, limit=limit)
    after = await left(database)
    expected = Expected(kept, drawn)
    expected.check(ids, drawn, before, after)
    assert counted == removed, "what was foretold is not what was done"
    gone_with_jobs = len(before.request_ids - after.jobs())
    assert removed + Counter(request_ids=gone_with_jobs) == before.totals() - after.totals()
    assert not await clean(database, kept, limit=limit), "a second pass finds more"
    return expected.stays


# --- what goes and what stays ------------------------------------------------------------------------------


async def test_what_is_kept_for_ever_stays(database: Database) -> None:
    await made(database, await makers.make_tenant(database), Past(days=5000.0))
    before = await left(database)
    assert not await clean(database, Retention(days={}))
    assert await left(database) == before


async def test_a_job_goes_with_everything_that_belongs_to_it(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    gone, kept = await made(database, tenant, PAST_IT, Past(days=6.5))
    removed = await clean(database, WEEK)
    assert removed == Counter(
        jobs=1, job_events=3, attempts=1, webhook_messages=1, webhook_deliveries=1, webhook_attempts=1
    )
    after = await left(database)
    assert (gone in after.jobs(), after.jobs()) == (False, {kept})


@pytest.mark.parametrize("told", [Told.NOT_YET, Told.PENDING])
async def test_what_was_not_told_yet_stays_until_it_is(database: Database, told: Told) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await made(database, tenant, Past(told=told))
    short = Retention(days=dict.fromkeys(Kind, 1))
    before = await left(database)
    assert not await clean(database, short)
    assert await left(database) == before
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.job_events).values(webhook_pending=False))
        await tx.connection.execute(update(schema.webhook_deliveries).values(state=DeliveryState.DELIVERED))
    assert (await clean(database, short))["jobs"] == 1
    assert job not in (await left(database)).jobs()


async def test_a_person_s_decision_outlives_its_job_and_says_what_it_was_about(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await made(database, tenant, Past(decided=True))
    assert (await clean(database, WEEK))["jobs"] == 1
    async with database.read() as reader:
        [row] = (await reader.connection.execute(select(schema.human_decisions))).all()
        assert (await people.latest_decision(reader, job)) is not None
    assert (row.job_id, row.tenant_id, row.reviewer, row.decision) == (job, tenant, "ada", "approved")
    assert (row.reason, row.ai_recommendation, row.overrides_ai) == ("It is fine.", "reject", True)
    assert (row.job_type, row.subject_id, row.submitted_by) == ("creative_review", "", "")
    assert row.input_hash == hashlib.sha256(b"a creative").digest()
    assert row.policy_triggered == "low_confidence"


async def test_one_tenant_s_clean_up_leaves_the_others_alone(database: Database) -> None:
    ours, theirs = await makers.make_tenant(database), await makers.make_tenant(database)
    everything = Retention(days={Kind.JOBS: 4, Kind.EVENTS: 2, Kind.REQUEST_IDS: 1})
    old = await made(database, theirs, Past(days=5.0), Past(days=3.0))
    mine = await made(database, ours, Past(days=5.0), Past(days=3.0))
    counted = await clean(database, everything, tenant_id=ours, dry_run=True)
    assert await clean(database, everything, tenant_id=ours, limit=1) == counted
    after = await left(database)
    assert after.jobs() == {*old, mine[1]}
    assert (after.rows["job_events"][mine[1]], after.rows["job_events"][old[0]]) == (0, 3)
    assert after.request_ids == set(old)


async def test_a_step_takes_so_many_jobs_and_the_oldest_first(database: Database) -> None:
    ids = await made(database, await makers.make_tenant(database), *(Past(days=30.0 - place) for place in range(7)))
    place: Place | None = Place()
    sizes: list[int] = []
    while place is not None and place.kind is Kind.JOBS:
        async with database.begin() as tx:
            step = await retention.clean_some(tx, WEEK, place, now=await clock.present(tx), limit=3)
        sizes.append(step.rows.get("jobs", 0))
        assert (await left(database)).jobs() == set(ids[sum(sizes) :])
        place = step.following
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer
async def test_a_job_that_somebody_holds_locked_is_left_for_the_next_pass(database: Database) -> None:
    held, free = await made(database, await makers.make_tenant(database), PAST_IT, PAST_IT)
    async with database.begin() as tx:
        await tx.connection.execute(select(schema.jobs.c.id).where(schema.jobs.c.id == held).with_for_update())
        assert (await clean(database, WEEK))["jobs"] == 1
    assert (await left(database)).jobs() == {held} != {free}
    assert (await clean(database, WEEK))["jobs"] == 1


# --- what others make of what is gone ----------------------------------------------------------------------


async def test_a_retry_is_not_removed_before_what_it_retries_which_would_be_retried_again(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    old, retry = await made(
        database,
        tenant,
        Past(state=State.FAILED, told=Told.PENDING),
        Past(state=State.SUCCEEDED, retries=True),
    )
    await clean(database, WEEK)
    assert (await left(database)).jobs() == {old, retry}
    async with database.begin() as tx:
        scope = Scope(owner=Owner(tenant_id=tenant), wanted=Filter(), as_of=await clock.present(tx))
        assert not await repeats.retry(tx, scope, limit=10)
        await tx.connection.execute(update(schema.webhook_deliveries).values(state=DeliveryState.ABANDONED))
    await clean(database, WEEK)
    assert not (await left(database)).jobs()


async def test_a_forgotten_request_id_may_be_used_anew_and_a_remembered_one_finds_its_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    forgotten, remembered = await made(database, tenant, Past(days=2.5), Past(days=1.5))
    await clean(database, Retention(days={Kind.JOBS: 7, Kind.REQUEST_IDS: 2}))
    async with database.begin() as tx:
        anew = [
            makers.new_job(tenant, request_id=f"request {job}", callback_url="https://example.org/hook")
            for job in (forgotten, remembered)
        ]
        first, second = await acceptance.submit(tx, anew, release_at_once=0)
    assert (first.created, first.job.id != forgotten) == (True, True)
    assert (second.created, second.same_content, second.job.id) == (False, True, remembered)


async def test_a_late_word_about_a_delivery_that_is_gone_does_no_harm(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    await made(database, tenant, Past(told=Told.PENDING), Past(told=Told.PENDING, days=1.0))
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.webhook_deliveries).values(leased_until=None))
        lanes = await deliveries.due_lanes(tx, after="", limit=10)
        old, young = await deliveries.lease_due(tx, dict.fromkeys(lanes, 10), lease_seconds=30.0)
        await tx.connection.execute(
            update(schema.webhook_deliveries)
            .where(schema.webhook_deliveries.c.id == old.delivery_id)
            .values(state=DeliveryState.DELIVERED)
        )
    await clean(database, WEEK)
    late = [
        AttemptRecord(lease=lease, status_code=200, error="", duration_ms=1, state=DeliveryState.DELIVERED)
        for lease in (old, young)
    ]
    async with database.begin() as tx:
        await deliveries.record_attempts(tx, late)
        await deliveries.record_attempts(tx, late[:1])
    assert (await left(database)).rows["webhook_attempts"] == Counter({young.job_id: 2})


# --- passes ------------------------------------------------------------------------------------------------


async def test_one_pass_is_made_at_a_time_and_the_next_after_a_while(database: Database) -> None:
    first, second = new_id(), new_id()
    began = await begin(database, first)
    assert began is not None
    assert await begin(database, second) is None
    async with database.begin() as tx:
        assert await passes.keep(tx, first, hold_seconds=60.0)
        assert not await passes.keep(tx, second, hold_seconds=60.0)
        assert await passes.last_success(tx) is None
        ended = await passes.end(tx, first, forgotten_until=None)
    async with database.read() as reader:
        assert await passes.last_success(reader) == ended >= began
    assert await begin(database, second) is None, "too early"
    await turn_back(database, "succeeded_at")
    assert await begin(database, second) is not None


async def test_a_pass_whose_process_fell_silent_is_taken_over(database: Database) -> None:
    silent, other = new_id(), new_id()
    await begin(database, silent)
    await turn_back(database, "held_until")
    assert await begin(database, other) is not None
    async with database.begin() as tx:
        assert not await passes.keep(tx, silent, hold_seconds=60.0)
        assert await passes.keep(tx, other, hold_seconds=60.0)


async def test_request_ids_are_looked_at_from_where_the_last_pass_ended(database: Database) -> None:
    """Else each pass would go through all finished jobs again."""
    tenant = await makers.make_tenant(database)
    behind, ahead = await made(database, tenant, Past(days=3.0), Past(days=1.5))
    me = new_id()
    now = await begin(database, me)
    assert now is not None
    day = Retention(days={Kind.REQUEST_IDS: 1})
    async with database.begin() as tx:
        await passes.end(tx, me, forgotten_until=day.ended_before(Kind.REQUEST_IDS, now))
        await tx.connection.execute(update(schema.cleanup).values(forgotten_until=clock.after(-2 * 86_400.0)))
    assert await clean(database, day) == Counter(request_ids=1)
    assert (await left(database)).request_ids == {behind} != {ahead}


async def begin(database: Database, holder: uuid.UUID) -> datetime | None:
    async with database.begin() as tx:
        return await passes.begin(tx, holder, every_seconds=3600.0, hold_seconds=60.0)


async def turn_back(database: Database, column: str) -> None:
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.cleanup).values({column: clock.after(-4000.0)}))
