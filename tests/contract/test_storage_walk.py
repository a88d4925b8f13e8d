"""Random walks through all that can be done with jobs, against a model of a few lines.

A plain walk with weights rather than Hypothesis's state machine, whose short and sparse runs hardly ever made a
claim stale. A failure names the walk's seed; the same seed takes the same steps.
"""

import random
import uuid
from dataclasses import dataclass, field

import pytest
from tests import makers

from imprimatur.job import MOST_LOSSES, TERMINAL, TRANSITIONS, Claim, Happening, JobType, State
from imprimatur.storage import attempts, claims, clock, dispatch, jobs, people
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.storage.people import HumanDecision

ENDS = {
    Happening.HANDED_BACK: 4,
    Happening.RETRY_SCHEDULED: 4,
    Happening.REFERRED: 1,
    Happening.COMPLETED: 1,
    Happening.GAVE_UP: 1,
}


@dataclass
class Model:
    """What is expected of one job."""

    id: uuid.UUID
    released: bool
    release_no: int
    state: State = State.QUEUED
    version: int = 1
    claim_no: int = 0
    attempts: int = 0
    losses: int = 0
    lease_over: bool = False
    kinds: list[str] = field(default_factory=lambda: ["submitted"])

    def move(self, happening: Happening) -> bool:
        if self.state not in TRANSITIONS[happening].sources:
            return False
        self.state = TRANSITIONS[happening].target
        self.version += 1
        self.kinds.append(happening)
        self.released = self.released and self.state is not State.QUEUED
        return True

    def holds(self, claim: Claim) -> bool:
        return self.state is State.RUNNING and (self.id, self.claim_no) == (claim.job_id, claim.claim_no)


class Walk:
    """One tenant's jobs. Each step does something and checks that the answer is the one the model expects."""

    def __init__(self, database: Database, tenant: uuid.UUID, seed: int) -> None:
        self.database = database
        self.owner = Owner(tenant_id=tenant)
        self.dice = random.Random(seed)
        self.models: list[Model] = []
        self.claims: list[Claim] = []

    async def step(self) -> None:
        weights = {
            self.submit: 1 if sum(model.state not in TERMINAL for model in self.models) < 4 else 0,
            self.release: 4,
            self.claim: 6,
            self.conclude: 6 if self.claims else 0,
            self.progress: 2 if self.claims else 0,
            self.renew: 1,
            self.sweep: 3,
            self.withdraw: 1,
            self.cancel: 0.3,
            self.decide: 2,
        }
        [taken] = self.dice.choices(list(weights), list(weights.values()))
        await taken()

    def one(self) -> Model:
        unfinished = [model for model in self.models if model.state not in TERMINAL]
        return self.dice.choice(unfinished if unfinished and self.dice.random() < 0.9 else self.models)

    def one_claim(self) -> tuple[Claim, Model]:
        claim = self.dice.choice(self.claims[-6:])
        return claim, next(model for model in self.models if model.id == claim.job_id)

    async def submit(self) -> None:
        at_once = self.dice.random() < 0.5
        new = makers.new_job(self.owner.tenant_id)
        [job] = await makers.submit(self.database, new, release_at_once=int(at_once))
        self.models.append(Model(id=job.id, released=at_once, release_no=int(at_once)))

    async def release(self) -> None:
        due = [model for model in self.models if model.state is State.QUEUED and not model.released]
        room = self.dice.randint(0, 4)
        assert await makers.release(self.database, room=room) == min(room, len(due))
        for model in due:  # which of them is for the tests of the order
            async with self.database.read() as reader:
                row = await jobs.content_of(reader, self.owner, model.id)
            assert row is not None
            model.released = row.released_at is not None
            model.release_no += int(model.released)
            assert row.release_no == model.release_no
        assert sum(model.released for model in due) == min(room, len(due))

    async def claim(self) -> None:
        model, stale = self.one(), self.dice.random() < 0.2
        release_no = model.release_no - int(stale)
        # The lease is over until it is renewed, so that nobody has to wait for that.
        claim = await makers.claim(self.database, model.id, release_no=release_no, lease_seconds=-1.0)
        assert (claim is not None) == (model.state is State.QUEUED and model.released and not stale)
        if claim is not None:
            model.move(Happening.CLAIMED)
            model.claim_no += 1
            model.lease_over = True
            assert (claim.claim_no, claim.attempts) == (model.claim_no, model.attempts)
            self.claims.append(claim)

    async def conclude(self) -> None:
        claim, model = self.one_claim()
        [end] = self.dice.choices(list(ENDS), list(ENDS.values()))
        spends, held = self.dice.random() < 0.5, model.holds(claim)
        job = await makers.conclude(self.database, claim, end, spends_attempt=spends)
        assert (job is not None) == held
        if held:
            model.move(end)
            model.attempts += int(spends)

    async def progress(self) -> None:
        claim, model = self.one_claim()
        async with self.database.begin() as tx:
            taken = await claims.report_progress(tx, claim, percent=50, stage="half", message="")
        assert taken == model.holds(claim)
        model.version += int(taken)

    async def renew(self) -> None:
        ever = {(claim.job_id, claim.claim_no) for claim in self.claims}
        held = {(model.id, model.claim_no) for model in self.models if model.state is State.RUNNING}
        async with self.database.begin() as tx:
            assert await claims.renew(tx, ever, lease_seconds=60.0) == held
        for model in self.models:
            model.lease_over = False

    async def sweep(self) -> None:
        silent = [model for model in self.models if model.state is State.RUNNING and model.lease_over]
        once_more = [model for model in silent if model.losses < MOST_LOSSES - 1]
        async with self.database.begin() as tx:
            lost = await claims.lost_leases(tx, limit=100)
            given_up = await dispatch.give_up(
                tx,
                dispatch.LOST_TOO_OFTEN,
                tenant_id=self.owner.tenant_id,
                job_type=JobType.CREATIVE_REVIEW,
                happening=Happening.REFERRED,
                shown={},
                limit=100,
            )
        assert {row.id for row in lost} == {model.id for model in once_more}
        assert {row.id for row in given_up} == {model.id for model in silent} - {model.id for model in once_more}
        for model in silent:
            model.move(Happening.LEASE_LOST if model in once_more else Happening.REFERRED)
            model.losses += 1

    async def withdraw(self) -> None:
        out = [model for model in self.models if model.state is State.QUEUED and model.released]
        async with self.database.begin() as tx:
            assert await dispatch.withdraw_releases(tx) == len(out)
        for model in out:
            model.released = False

    async def cancel(self) -> None:
        model = self.one()
        async with self.database.begin() as tx:
            job = await jobs.cancel(tx, self.owner, model.id, reason="")
        assert (job is not None) == model.move(Happening.CANCELLED)

    async def decide(self) -> None:
        model, holds_first = self.one(), self.dice.random() < 0.5
        async with self.database.begin() as tx:
            if holds_first:
                await people.hold(tx, self.owner, model.id, reviewer="ada", seconds=60.0)
            waiting = await people.lock_waiting(tx, self.owner, model.id, reviewer="ada")
            assert (waiting is not None) == (model.state is State.AWAITING_REVIEW)
            if waiting is None:
                return
            made = HumanDecision(
                reviewer="ada",
                decision="approved",
                reason="fine",
                ai_recommendation="",
                overrides_ai=False,
                decided_at=await clock.present(tx),
            )
            await people.decide(tx, waiting, made, result=b"")
        if holds_first:
            model.move(Happening.HELD_BY_PERSON)
        model.move(Happening.DECIDED)

    async def compare(self) -> None:
        async with self.database.read() as reader:
            found = await jobs.find_many(reader, [model.id for model in self.models])
            for model in self.models:
                job = found[model.id]
                assert (job.state, job.version, job.attempts) == (model.state, model.version, model.attempts)
                assert (job.finished_at is not None) == (model.state in TERMINAL)

    async def compare_histories(self) -> None:
        async with self.database.read() as reader:
            for model in self.models:
                history = await jobs.history(reader, model.id, after_version=0, limit=1000)
                assert [event.kind for event in history] == model.kinds
                tries = await attempts.of_job(reader, model.id)
                assert [attempt.claim_no for attempt in tries] == list(range(1, model.claim_no + 1))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_done_in_whatever_order_the_jobs_are_as_expected(database: Database, seed: int) -> None:
    walk = Walk(database, await makers.make_tenant(database), seed)
    await walk.submit()
    for _ in range(150):
        await walk.step()
        await walk.compare()
    await walk.compare_histories()
    assert max(model.claim_no for model in walk.models) >= 3, "claims became stale"
