"""Evidence for equal creatives: of those who ask at the same time one leads, the others wait, and nobody for long."""

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from imprimatur.evidence import EngineIdentity
from imprimatur.job import AttemptOutcome, Claim, Happening, Job, JobType, State, WhenBusy
from imprimatur.retention import Kind, Retention
from imprimatur.storage import clock, conclusions, evidence, flights, jobs, landings, schema
from imprimatur.storage.attempts import Spent, of_job
from imprimatur.storage.conclusions import Conclusion, Ending
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.evidence import Scope
from imprimatur.storage.flights import Answer, Asked, Found, Standing
from imprimatur.storage.jobs import Owner
from imprimatur.storage.landings import Made
from tests import makers
from tests.contract.leasing import sweep_until_lost
from tests.pasts import clean

ENGINE = EngineIdentity(name="llm", version="1", model="m")
KEY, OTHER = b"k" * 32, b"o" * 32
MADE = Made(content=b"found", keep_seconds=600.0, input_tokens=1000, output_tokens=100, cost_micros=7)


@dataclass(kw_only=True)
class Desk:
    """Equal jobs of one tenant, and what their attempts do."""

    database: Database
    tenant_id: uuid.UUID
    leads: dict[uuid.UUID, bytes] = field(default_factory=dict)

    async def claim(self, *, lease_seconds: float = 600.0) -> Claim:
        return await makers.running(self.database, self.tenant_id, lease_seconds=lease_seconds)

    async def kept(self, key: bytes, *, days: float) -> None:
        """Evidence that was made so many days ago."""
        claim = await self.claim()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flights, "new_id", lambda: uuid.UUID(int=int.from_bytes(key[:2], "big")))
            await self.ask(claim, key=key)
        await self.end(claim)
        async with self.database.begin() as tx:
            chosen = update(schema.evidence).where(schema.evidence.c.key == key)
            await tx.connection.execute(chosen.values(begun_at=clock.after(-86_400.0 * days)))

    async def again(self, claim: Claim) -> Claim:
        """The next claim of the same job, which is due."""
        assert await makers.release(self.database) > 0
        release_no = await self.column(claim, schema.jobs.c.release_no)
        held = await makers.claim(self.database, claim.job_id, release_no=release_no)
        assert held is not None
        return held

    async def ask(self, *held: Claim, key: bytes = KEY, policy_version: int = 1) -> list[Answer]:
        """Ask as the reviewer does: who follows is handed back, to wait."""
        asked = [self.question(one, key=key, policy_version=policy_version) for one in held]
        async with self.database.begin() as tx:
            answers = await flights.ask(tx, asked)
        both = list(zip(held, answers, strict=True))
        await self.wait(*(one for one, answer in both if answer is Standing.FOLLOWS), key=key)
        self.leads |= {one.job_id: key for one, answer in both if answer is Standing.LEADS}
        return answers

    async def wait(self, *held: Claim, key: bytes = KEY) -> None:
        async with self.database.begin() as tx:
            await wait(tx, *held, key=key)

    @staticmethod
    def question(one: Claim, *, key: bytes = KEY, policy_version: int = 1) -> Asked:
        return Asked(
            key=key,
            tenant_id=one.tenant_id,
            job_type=JobType.CREATIVE_REVIEW,
            engine=ENGINE,
            policy_version=policy_version,
            job_id=one.job_id,
            claim_no=one.claim_no,
            keep_seconds=600.0,
            since=one.evidence_since,
        )

    async def end(self, claim: Claim, happening: Happening = Happening.COMPLETED, made: Made | None = MADE) -> bool:
        shown = makers.shown("approved", "auto_approve") if happening is Happening.COMPLETED else None
        conclusion = Conclusion(
            happening=happening,
            outcome=AttemptOutcome.SUCCEEDED,
            shown=shown,
            made=made if happening is Happening.COMPLETED else None,
            delay_seconds=300.0,
        )
        ending = Ending(claim=claim, conclusion=conclusion, spent=Spent(), leads_to=self.leads.get(claim.job_id))
        async with self.database.begin() as tx:
            return await conclusions.conclude(tx, [ending]) != [None]

    async def due(self, *held: Claim) -> list[bool]:
        """Which of these jobs are queued, and due."""
        async with self.database.read() as reader:
            chosen = select(schema.jobs.c.id).where(
                schema.jobs.c.state == State.QUEUED, schema.jobs.c.run_at <= clock.now()
            )
            found = set((await reader.connection.execute(chosen)).scalars())
        return [one.job_id in found for one in held]

    async def column(self, claim: Claim, column: Any) -> Any:
        async with self.database.read() as reader:
            return (
                await reader.connection.execute(select(column).where(schema.jobs.c.id == claim.job_id))
            ).scalar_one()

    async def forget(self, scope: Scope, *, limit: int = 100) -> tuple[int, bool]:
        async with self.database.begin() as tx:
            done = await evidence.forget(tx, self.tenant_id, scope, limit=limit)
        return done.number, done.more


async def wait(tx: Transaction, *held: Claim, key: bytes = KEY) -> None:
    assert None not in await conclusions.conclude(tx, [waits(one, key) for one in held])
    if held:
        await landings.wait(tx, {key: [one.job_id for one in held]})


def waits(claim: Claim, key: bytes) -> Ending:
    conclusion = Conclusion(
        happening=Happening.WAITING_FOR_TWIN,
        outcome=AttemptOutcome.WAITING_FOR_TWIN,
        spends_attempt=False,
        delay_seconds=30.0,
        waits_for=key,
    )
    return Ending(claim=claim, conclusion=conclusion, spent=Spent())


@pytest.fixture
async def desk(database: Database) -> Desk:
    return Desk(database=database, tenant_id=await makers.make_tenant(database))


LEADS, FOLLOWS, ALONE = Standing.LEADS, Standing.FOLLOWS, Standing.ALONE


async def test_of_equal_jobs_the_first_leads_and_the_others_take_what_it_brought(desk: Desk) -> None:
    first, second, third = [await desk.claim() for _ in range(3)]
    assert await desk.ask(first) == [LEADS]
    assert await desk.ask(second, third) == [FOLLOWS, FOLLOWS]
    assert await desk.due(second, third) == [False, False]
    waiting = await makers.find(desk.database, desk.tenant_id, second.job_id)
    assert (waiting.state, waiting.attempts) == (State.QUEUED, 0)
    async with desk.database.read() as reader:
        [attempt] = await of_job(reader, second.job_id)
    assert (attempt.outcome, attempt.input_tokens) == (AttemptOutcome.WAITING_FOR_TWIN, 0)
    assert await desk.end(first)
    assert await desk.due(second, third) == [True, True]
    [found] = await desk.ask(await desk.again(second))
    assert isinstance(found, Found)
    assert (found.content, found.job_id) == (b"found", first.job_id)


async def test_equal_jobs_that_ask_in_one_batch_have_one_leader(desk: Desk) -> None:
    held = [await desk.claim() for _ in range(4)]
    assert await desk.ask(*held) == [LEADS, FOLLOWS, FOLLOWS, FOLLOWS]
    await desk.end(held[0])
    assert await desk.due(*held[1:]) == [True] * 3
    again = [await desk.again(one) for one in held[1:2]]
    again += [await desk.claim(), await desk.claim()]
    assert all(isinstance(answer, Found) for answer in await desk.ask(*again))
    async with desk.database.read() as reader:
        [use] = await evidence.use_of(reader, desk.tenant_id)
    assert (use.engine, use.looks, use.hits, use.tokens, use.cost_micros) == (ENGINE, 1, 3, 3300, 21)


async def test_other_content_waits_for_nobody(desk: Desk) -> None:
    first, second = await desk.claim(), await desk.claim()
    assert await desk.ask(first) == [LEADS]
    assert await desk.ask(second, key=OTHER) == [LEADS]


async def test_who_leads_and_asks_again_after_a_lost_answer_leads(desk: Desk) -> None:
    first = await desk.claim()
    assert await desk.ask(first) == [LEADS]
    assert await desk.ask(first) == [LEADS]


@pytest.mark.parametrize("happening", [Happening.RETRY_SCHEDULED, Happening.REFERRED, Happening.GAVE_UP])
async def test_a_leader_that_fails_hands_the_lead_to_one_of_those_who_wait(desk: Desk, happening: Happening) -> None:
    first, second, third = [await desk.claim() for _ in range(3)]
    await desk.ask(first, second, third)
    await desk.end(first, happening)
    assert await desk.due(second, third) == [True, False]
    second = await desk.again(second)
    assert await desk.ask(second) == [LEADS]
    assert await desk.ask(await desk.claim()) == [FOLLOWS]
    await desk.end(second)
    assert await desk.due(third) == [True], "who waited for the first leader hears of the second"


async def test_a_leader_that_is_handed_back_comes_back_and_wakes_nobody(desk: Desk) -> None:
    first, second = await desk.claim(), await desk.claim()
    await desk.ask(first, second)
    await desk.end(first, Happening.HANDED_BACK)
    assert await desk.due(second) == [False]
    third = await desk.claim()
    assert await desk.ask(third) == [LEADS], "who comes meanwhile need not wait"
    await desk.end(third)
    assert await desk.due(second) == [True]


async def test_a_leader_that_is_cancelled_hands_the_lead_on(desk: Desk) -> None:
    first, second, third = [await desk.claim() for _ in range(3)]
    await desk.ask(first, second, third)
    async with desk.database.begin() as tx:
        assert await jobs.cancel(tx, Owner(tenant_id=desk.tenant_id), first.job_id, reason="") is not None
    assert await desk.due(second, third) == [True, False]
    assert not await desk.end(first), "its result is fenced off"
    assert await desk.ask(await desk.again(second)) == [LEADS], "and its evidence with it"


async def test_a_leader_that_is_superseded_hands_the_lead_on(desk: Desk) -> None:
    key = "a key"
    new = makers.new_job(desk.tenant_id, key=key, when_busy=WhenBusy.SUPERSEDE)
    [job] = await makers.submit(desk.database, new)
    first = await makers.claim(desk.database, job)
    assert first is not None
    second = await desk.claim()
    await desk.ask(first, second)
    newer = makers.new_job(desk.tenant_id, content=b"other", key=key, when_busy=WhenBusy.SUPERSEDE)
    await makers.submit(desk.database, newer)
    assert await desk.due(second) == [True]


async def test_a_leader_whose_worker_dies_hands_the_lead_on(desk: Desk) -> None:
    first, second = await desk.claim(lease_seconds=0.0), await desk.claim()
    await desk.ask(first, second)
    assert await sweep_until_lost(desk.database, 1) == [first.job_id]
    assert await desk.due(first, second) == [True, True]
    assert not await desk.end(first)
    assert await desk.ask(await desk.again(second)) == [LEADS]


async def test_a_flight_whose_end_was_not_written_is_taken_over(desk: Desk) -> None:
    """As after a fault between the two: the claim does not stand any more, and that is enough."""
    first, second = await desk.claim(), await desk.claim()
    await desk.ask(first)
    del desk.leads[first.job_id]
    await desk.end(first, Happening.RETRY_SCHEDULED)
    async with desk.database.begin() as tx:  # longer ago than the moment in which nobody is sure
        await tx.connection.execute(
            update(schema.evidence).values(begun_at=clock.after(-60.0, schema.evidence.c.begun_at))
        )
    assert await desk.ask(second) == [LEADS]


async def test_a_job_does_not_wait_for_its_own_earlier_claim(desk: Desk) -> None:
    first = await desk.claim()
    await desk.ask(first)
    del desk.leads[first.job_id]
    await makers.conclude(desk.database, first, Happening.HANDED_BACK, spends_attempt=False)
    assert await desk.ask(await desk.again(first)) == [LEADS]


async def test_after_evidence_that_cannot_be_kept_nobody_waits_for_anybody(desk: Desk) -> None:
    first, second, third = [await desk.claim() for _ in range(3)]
    await desk.ask(first, second, third)
    await desk.end(first, made=replace(MADE, content=None))
    assert await desk.due(second, third) == [True, True]
    assert await desk.ask(await desk.claim(), await desk.claim()) == [ALONE, ALONE]
    await outdate(desk.database)
    assert await desk.ask(await desk.claim(), await desk.claim()) == [LEADS, FOLLOWS]


async def outdate(database: Database) -> None:
    async with database.begin() as tx:
        await tx.connection.execute(update(schema.evidence).values(expires_at=clock.after(-1.0)))


async def test_evidence_that_has_expired_is_made_anew(desk: Desk) -> None:
    first, second = await desk.claim(), await desk.claim()
    await desk.ask(first)
    await desk.end(first)
    await outdate(desk.database)
    assert await desk.ask(second) == [LEADS]
    assert await desk.ask(await desk.claim()) == [FOLLOWS]
    await desk.end(second, made=replace(MADE, content=b"new"))
    [found] = await desk.ask(await desk.claim())
    assert isinstance(found, Found)
    assert (found.content, found.job_id) == (b"new", second.job_id)


async def test_a_job_that_wants_fresh_evidence_takes_none_from_before(desk: Desk) -> None:
    first = await desk.claim()
    await desk.ask(first)
    await desk.end(first)
    async with desk.database.read() as reader:
        now = await clock.present(reader)
    anew = [replace(await desk.claim(), evidence_since=now + timedelta(microseconds=1)) for _ in range(3)]
    assert await desk.ask(*anew) == [LEADS, FOLLOWS, FOLLOWS]
    await desk.end(anew[0], made=replace(MADE, content=b"new"))
    found = await desk.ask(replace(await desk.again(anew[1]), evidence_since=now), await desk.claim())
    assert [one.content for one in found if isinstance(one, Found)] == [b"new", b"new"]


async def test_fresh_is_said_of_a_submission_and_kept_with_its_job(desk: Desk) -> None:
    [job] = await makers.submit(desk.database, replace(makers.new_job(desk.tenant_id), fresh=True))
    held = await makers.claim(desk.database, job)
    assert held is not None
    assert held.evidence_since == job.created_at
    assert (await desk.claim()).evidence_since is None


@pytest.mark.parametrize(
    ("scope", "hits"),
    [
        (Scope(), True),
        (Scope(engine="llm"), True),
        (Scope(engine="llm", engine_version="1", model="m"), True),
        (Scope(engine="builtin"), False),
        (Scope(engine="llm", model="n"), False),
        (Scope(engine="llm", engine_version="2"), False),
        (Scope(policy_version=3), True),
        (Scope(policy_version=4), False),
        (Scope(job_id=uuid.UUID(int=0)), False),
    ],
)
async def test_what_is_forgotten_is_made_anew(desk: Desk, scope: Scope, hits: bool) -> None:
    first = await desk.claim()
    await desk.ask(first, policy_version=3)
    await desk.end(first)
    assert await desk.forget(scope) == (int(hits), False)
    [answer] = await desk.ask(await desk.claim())
    assert (answer is LEADS) is hits


async def test_the_evidence_of_one_job_can_be_forgotten(desk: Desk) -> None:
    first, second = await desk.claim(), await desk.claim()
    await desk.ask(first)
    await desk.ask(second, key=OTHER)
    await desk.end(first)
    await desk.end(second)
    assert await desk.forget(Scope(job_id=first.job_id)) == (1, False)
    assert isinstance((await desk.ask(await desk.claim(), key=OTHER))[0], Found)


async def test_what_is_being_made_while_it_is_forgotten_is_not_kept_and_nobody_waits_for_it(desk: Desk) -> None:
    first, second, third = [await desk.claim() for _ in range(3)]
    await desk.ask(first, second, third)
    assert await desk.forget(Scope()) == (0, False)
    assert await desk.due(second, third) == [True, True]
    assert await desk.end(first), "the job itself has its result"
    assert await desk.ask(await desk.again(second)) == [LEADS]


async def test_forgetting_goes_in_steps(desk: Desk) -> None:
    for number in range(3):
        claim = await desk.claim()
        await desk.ask(claim, key=bytes([number]) * 32)
        await desk.end(claim)
    assert await desk.forget(Scope(), limit=2) == (2, True)
    assert await desk.forget(Scope(), limit=2) == (1, False)


async def test_a_tenant_forgets_and_counts_its_own_alone(desk: Desk) -> None:
    other = Desk(database=desk.database, tenant_id=await makers.make_tenant(desk.database))
    claim = await desk.claim()
    await desk.ask(claim)
    await desk.end(claim)
    assert await other.forget(Scope()) == (0, False)
    async with desk.database.read() as reader:
        assert await evidence.use_of(reader, other.tenant_id) == []
        assert len(await evidence.use_of(reader, desk.tenant_id)) == 1


async def test_who_waits_can_be_cancelled(desk: Desk) -> None:
    first, second, third = [await desk.claim() for _ in range(3)]
    await desk.ask(first, second, third)
    job: Job = await makers.find(desk.database, desk.tenant_id, second.job_id)
    assert await makers.cancel(desk.database, job) is not None
    await desk.end(first, Happening.GAVE_UP)
    assert await desk.due(third) == [True], "the lead is not handed to who does not wait any more"


# --- what comes between ------------------------------------------------------------------------------------


@pytest.mark.parametrize("happening", [Happening.COMPLETED, Happening.GAVE_UP])
async def test_who_is_about_to_wait_for_what_has_ended_meanwhile_need_not_wait(
    desk: Desk, happening: Happening
) -> None:
    first, second = await desk.claim(), await desk.claim()
    await desk.ask(first)
    async with desk.database.begin() as tx:
        assert await flights.ask(tx, [desk.question(second)]) == [FOLLOWS]
    await desk.end(first, happening)
    await desk.wait(second)
    assert await desk.due(second) == [True]


async def test_an_end_that_comes_while_somebody_begins_to_wait_wakes_it(desk: Desk) -> None:
    if not desk.database.on_postgresql:
        return  # one writer: nothing comes between
    first, second = await desk.claim(), await desk.claim()
    await desk.ask(first)
    async with desk.database.begin() as tx:
        await wait(tx, second)
        ending = asyncio.create_task(desk.end(first))
        await makers.until(lambda: somebody_waits(desk.database))
    assert await ending
    assert await desk.due(second) == [True]


async def somebody_waits(database: Database) -> bool:
    async with database.read() as reader:
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool((await reader.connection.execute(waiting)).scalar_one())


async def test_many_who_ask_and_end_side_by_side_have_one_leader_at_a_time(desk: Desk) -> None:
    held = [await desk.claim() for _ in range(12)]
    answers = await asyncio.gather(*(desk.ask(one) for one in held))
    assert [answer for [answer] in answers].count(LEADS) == 1
    assert [answer for [answer] in answers].count(FOLLOWS) == 11
    [leader] = [one for one, [answer] in zip(held, answers, strict=True) if answer is LEADS]
    await desk.end(leader)
    assert await desk.due(*held) == [one is not leader for one in held]


# --- how long it is kept -----------------------------------------------------------------------------------


async def test_evidence_goes_so_many_days_after_it_was_begun(desk: Desk) -> None:
    other = Desk(database=desk.database, tenant_id=await makers.make_tenant(desk.database))
    await desk.kept(b"1" * 32, days=8.0)
    await desk.kept(b"2" * 32, days=8.0)
    await desk.kept(b"3" * 32, days=6.0)
    await other.kept(b"4" * 32, days=8.0)
    days = Retention(days={Kind.EVIDENCE: 7})
    assert await clean(desk.database, days, tenant_id=desk.tenant_id, dry_run=True) == Counter(evidence=2)
    assert await clean(desk.database, days, tenant_id=desk.tenant_id, limit=1) == Counter(evidence=2)
    assert await clean(desk.database, Retention(days={})) == Counter()
    assert await clean(desk.database, days) == Counter(evidence=1)
    async with desk.database.read() as reader:
        assert [use.looks for use in await evidence.use_of(reader, desk.tenant_id)] == [1]
