"""Whatever is done with stored jobs, in whatever order: both databases against a model of a few lines, driven by
Hypothesis, which shortens what fails to the steps that matter.

A rule draws a number and takes the job or claim of that number among those that it suits, as bundles, which know
nothing of states, hardly ever made a claim stale. Nothing waits for time to pass: a rule moves the stored instants.
"""

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update

from imprimatur.errors import AttemptError, PermanentError, RateLimited, TimedOut, TransientError, UnreviewableInput
from imprimatur.identity import new_id
from imprimatur.job import (
    DEFAULTS,
    LOSSES_OF_A_SUSPECT,
    MOST_LOSSES,
    TERMINAL,
    AttemptOutcome,
    Claim,
    Happening,
    JobError,
    JobType,
    State,
    WhenBusy,
    after_giving_up,
    losses_kept,
    outcome_of,
)
from imprimatur.policy import Trigger
from imprimatur.retry import Again, after_error
from imprimatur.storage import (
    acceptance,
    claims,
    clock,
    conclusions,
    dispatch,
    jobs,
    people,
    redecisions,
    repeats,
    schema,
)
from imprimatur.storage.attempts import Spent
from imprimatur.storage.audit import Actor
from imprimatur.storage.claims import Renewal, Wanted
from imprimatur.storage.conclusions import Conclusion, Ended, Ending
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.redecisions import Redecided
from imprimatur.storage.repeats import Scope
from imprimatur.storage.review_queue import Waiting
from tests import makers
from tests.contract.job_model import TOLD, Held, Model, stored_histories, stored_jobs

T = TypeVar("T")

BRIEF = {
    "sqlite": settings(max_examples=20, stateful_step_count=40, derandomize=True, database=None, deadline=None),
    "postgresql": settings(max_examples=20, stateful_step_count=40, derandomize=True, database=None, deadline=None),
}
LONG = settings(max_examples=1000, stateful_step_count=80, database=None, deadline=None)

HANDED_BACK = Conclusion(happening=Happening.HANDED_BACK, outcome=AttemptOutcome.HANDED_BACK, spends_attempt=False)
APPROVED = Conclusion(
    happening=Happening.COMPLETED,
    outcome=AttemptOutcome.SUCCEEDED,
    shown=makers.shown("approved", Trigger.AUTO_APPROVE),
)
REFERRED = Conclusion(
    happening=Happening.REFERRED,
    outcome=AttemptOutcome.SUCCEEDED,
    shown=makers.shown("pending", Trigger.LOW_CONFIDENCE),
)
#: How an attempt may end. What leads to further claims is there more often.
ENDS: list[Conclusion | AttemptError] = [
    HANDED_BACK,
    HANDED_BACK,
    TransientError("down"),
    TimedOut("slow"),
    RateLimited("wait", retry_after_seconds=600.0),
    PermanentError("the engine refuses"),
    UnreviewableInput("no image"),
    REFERRED,
    APPROVED,
]
#: The instants of a job that mean something while it is in a state.
LIMITS = {
    State.QUEUED: ("deadline_at", "run_at"),
    State.RUNNING: ("lease_until",),
    State.AWAITING_REVIEW: ("held_until",),
}
PEOPLE = ["ada", "bob"]
#: Decides what waits, too.
POLICY = "a changed policy"


def some(*states: State) -> Callable[[Any], bool]:
    return lambda machine: bool(machine.among(*states))


def any_claims(machine: Any) -> bool:
    return bool(machine.claims)


#: Which one of those that come into question, counted from the first and around.
numbers = st.integers(0, 3)
once_in_five = st.integers(0, 4).map(lambda chance: chance == 4)


def after(claim: Claim, error: AttemptError) -> Conclusion:
    step = after_error(
        error,
        attempts_before=claim.attempts,
        max_attempts=claim.max_attempts,
        remaining_seconds=claim.remaining_seconds,
        backoff=DEFAULTS[claim.type].backoff,
        jitter=0.0,
    )
    again = isinstance(step, Again)
    return Conclusion(
        happening=Happening.RETRY_SCHEDULED if again else after_giving_up(claim.type, error),
        outcome=outcome_of(error),
        spends_attempt=step.spends_attempt,
        delay_seconds=step.delay_seconds if isinstance(step, Again) else 0.0,
        error=JobError.of(error),
        shown=None if again else makers.shown("pending", Trigger.ENGINE_ERROR),
    )


class StoredJobs(RuleBasedStateMachine):
    """One tenant's jobs. Each step does something and checks that the answer is the one the model expects."""

    reached: ClassVar[Counter[str]] = Counter()  #: how often the run came to what it should come to

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        super().__init__()
        self.runner = runner
        self.database = database
        self.all: list[Model] = []
        self.claims: list[Held] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def among(self, *states: State) -> list[Model]:
        return [job for job in self.all if job.state in (states or State)]

    def one(self, number: int, *states: State) -> Model:
        found = self.among(*states) or self.all
        return found[number % len(found)]

    def one_claim(self, number: int, *, old: bool) -> Held:
        found = [held for held in self.claims if held.holds != old] or self.claims
        return found[-1 - number % len(found)]

    @initialize()
    def begin(self) -> None:
        self.run(makers.empty(self.database))
        self.owner = Owner(tenant_id=self.run(makers.make_tenant(self.database)))
        for heard in (True, False, True):
            self.submit(max_attempts=2, at_once=True, heard=heard)
        self.claim_all([(job, False) for job in self.all[:2]])

    # --- accepting and releasing

    @precondition(lambda self: len(self.all) - len(self.among(*TERMINAL)) < 4)
    @rule(max_attempts=st.integers(1, 3), at_once=st.booleans(), heard=st.booleans())
    def submit(self, max_attempts: int, at_once: bool, heard: bool) -> None:
        callback_url = "https://ads.example/hook" if heard else ""
        new = makers.new_job(self.owner.tenant_id, max_attempts=max_attempts, callback_url=callback_url)
        [job] = self.run(makers.submit(self.database, new, release_at_once=int(at_once)))
        name = f"job {len(self.all) + 1}"
        self.all.append(Model(job.id, name, max_attempts, released=at_once, release_no=int(at_once), heard=heard))

    @precondition(lambda self: len(self.all) - len(self.among(*TERMINAL)) < 4)
    @rule(
        key=st.sampled_from("ab"),
        contents=st.lists(st.sampled_from("xyz"), min_size=1, max_size=3),
        when_busy=st.sampled_from(WhenBusy),
    )
    def submit_with_a_key(self, key: str, contents: list[str], when_busy: WhenBusy) -> None:
        """A batch, in which each is settled before the next."""
        batch = [
            makers.new_job(self.owner.tenant_id, content=content.encode(), key=key, when_busy=when_busy, max_attempts=2)
            for content in contents
        ]

        async def work() -> list[acceptance.Submitted]:
            async with self.database.begin() as tx:
                return await acceptance.submit(tx, batch, release_at_once=len(batch))

        for content, new, answer in zip(contents, batch, self.run(work()), strict=True):
            holders = [job for job in self.all if job.key == key and job.state not in TERMINAL]
            assert len(holders) <= 1
            same = bool(holders) and holders[0].content == content
            refused = bool(holders) and not same and when_busy is WhenBusy.REFUSE
            assert (answer.created, answer.refused is not None) == (not same and not refused, refused)
            if not answer.created:
                assert answer.job.id == holders[0].id
                continue
            made = Model(new.id, f"job {len(self.all) + 1}", 2, released=True, release_no=1, heard=False)
            made.key, made.content = key, content
            self.all.append(made)
            for holder in holders:
                self.supersede(holder, made)

    def supersede(self, old: Model, new: Model) -> None:
        self.reached[f"superseded while {old.state}"] += 1
        running = old.state is State.RUNNING
        assert old.move(Happening.CANCELLED)
        if running:
            old.end_attempt(old.claim_no, AttemptOutcome.CANCELLED)
        old.superseded_by, new.supersedes = new.id, old.id

    @precondition(some(State.QUEUED))
    @rule(room=st.integers(0, 3))
    def release(self, room: int) -> None:
        due = [job for job in self.among(State.QUEUED) if not job.released and job.due and not job.overdue]
        assert self.run(makers.release(self.database, room=room)) == min(room, len(due))
        rows = self.run(stored_jobs(self.database))
        for job in due:  # which of them is for the tests of the order
            job.released = rows[job.id].released_at is not None
            job.release_no += int(job.released)
        assert sum(job.released for job in due) == min(room, len(due))

    @precondition(lambda self: any(job.claimable for job in self.all))
    @rule()
    def withdraw(self) -> None:
        out = [job for job in self.among(State.QUEUED) if job.released]

        async def work() -> int:
            async with self.database.begin() as tx:
                return await dispatch.withdraw_releases(tx)

        assert self.run(work()) == len(out)
        for job in out:
            job.released = False

    # --- workers

    @precondition(some(State.QUEUED))
    @rule(wants=st.lists(st.tuples(numbers, once_in_five), min_size=1, max_size=4), again=st.integers(0, 2))
    def claim(self, wants: list[tuple[int, bool]], again: int) -> None:
        """A batch, in which the same job may be wanted twice, and older claims are asked for again."""
        jobs_wanted = [(self.one(number, State.QUEUED), stale) for number, stale in wants]
        self.claim_all(jobs_wanted, again=self.claims[len(self.claims) - again :])

    def claim_all(self, jobs_wanted: list[tuple[Model, bool]], *, again: Sequence[Held] = ()) -> None:
        for job, _ in jobs_wanted:
            if not job.released:
                self.release(room=100)
        asked = [
            Wanted(job_id=job.id, release_no=job.release_no - int(stale), claim_id=new_id())
            for job, stale in jobs_wanted
        ]
        expected = {job for job, stale in jobs_wanted if job.claimable and not stale}
        answers = self.run(self._claim([*(held.wanted for held in again), *asked]))
        self.found_again(again, answers[: len(again)])
        won = {}
        for (job, stale), one, claim in zip(jobs_wanted, asked, answers[len(again) :], strict=True):
            if claim is not None:
                assert not stale
                assert job not in won
                won[job] = Held(job, claim, one)
        assert won.keys() == expected
        for job, held in won.items():
            assert job.move(Happening.CLAIMED)
            job.claim_no += 1
            job.lease_over = False
            job.outcomes[job.claim_no] = None
            claim = held.claim
            assert (claim.claim_no, claim.attempts, claim.losses) == (job.claim_no, job.attempts, job.losses)
            assert claim.claim_no > max((other.claim.claim_no for other in self.claims if other.job is job), default=0)
            self.claims.append(held)
        self.reached["claimed together"] += len(won) > 1

    async def _claim(self, asked: Sequence[Wanted]) -> list[Claim | None]:
        async with self.database.begin() as tx:
            answers = await claims.claim(tx, makers.worker(), asked, lease_seconds=600.0)
        return [makers.unlocked(answer) for answer in answers]

    @precondition(any_claims)
    @rule(number=numbers, old=st.booleans())
    def claim_again_after_a_lost_reply(self, number: int, old: bool) -> None:
        held = self.one_claim(number, old=old)
        self.found_again([held], self.run(self._claim([held.wanted])))

    def found_again(self, asked: Sequence[Held], answers: Sequence[Claim | None]) -> None:
        for held, again in zip(asked, answers, strict=True):
            assert (again is not None) == held.holds
            assert again is None or again.claim_no == held.claim.claim_no

    @precondition(any_claims)
    @rule(number=numbers, old=st.booleans(), percent=st.sampled_from([0, 40, 90]))
    def report_progress(self, number: int, old: bool, percent: int) -> None:
        held = self.one_claim(number, old=old)

        async def work() -> bool:
            async with self.database.begin() as tx:
                return await claims.report_progress(tx, held.claim, percent=percent, stage="looking", message="")

        expected = held.holds and held.job.progress <= percent
        assert self.run(work()) == expected
        if expected:
            held.job.progress = percent
            held.job.version += 1

    @precondition(any_claims)
    @rule(count=st.integers(1, 8))
    def renew(self, count: int) -> None:
        asked = self.claims[-count:]

        async def work() -> Renewal:
            async with self.database.begin() as tx:
                pairs = [(held.job.id, held.claim.claim_no) for held in asked]
                return await claims.renew(tx, makers.worker(), pairs, lease_seconds=600.0)

        kept = [held for held in asked if held.holds]
        renewed = frozenset((held.job.id, held.claim.claim_no) for held in kept)
        assert self.run(work()) == Renewal(renewed=renewed, locked_out=frozenset())
        for held in kept:
            held.job.lease_over = False

    @precondition(any_claims)
    @rule(ends=st.lists(st.tuples(numbers, st.booleans(), st.sampled_from(ENDS)), min_size=1, max_size=4))
    def end_attempts(self, ends: list[tuple[int, bool, Conclusion | AttemptError]]) -> None:
        """A batch, in which a job's old and new claims may end together."""
        by_claim = {self.one_claim(number, old=old): end for number, old, end in ends}
        self.conclude(
            {held: after(held.claim, end) if isinstance(end, AttemptError) else end for held, end in by_claim.items()}
        )

    def conclude(self, ends: Mapping[Held, Conclusion]) -> None:
        async def work() -> list[Ended | None]:
            async with self.database.begin() as tx:
                return await conclusions.conclude(
                    tx,
                    [
                        Ending(claim=held.claim, conclusion=conclusion, spent=Spent(engine="test"))
                        for held, conclusion in ends.items()
                    ],
                )

        holding = [held for held in ends if held.holds]
        answers = dict(zip(ends, self.run(work()), strict=True))
        assert [held for held, ended in answers.items() if ended is not None] == holding
        for held in holding:
            job, conclusion = held.job, ends[held]
            assert job.move(conclusion.happening)
            job.attempts += conclusion.spends_attempt
            self.put_off(job, conclusion.delay_seconds == 0)
            job.trigger = conclusion.shown.policy_triggered if conclusion.shown else job.trigger
            ended = answers[held]
            assert ended is not None
            assert (ended.state, ended.policy_triggered) == (job.state, job.trigger)
        for held, conclusion in ends.items():
            self.book(held, conclusion)
        self.reached["fenced off"] += len(holding) < len(ends)
        self.reached["ended together"] += len(holding) > 1
        self.reached["fenced off among others"] += 0 < len(holding) < len(ends)

    def book(self, held: Held, conclusion: Conclusion) -> None:
        job = held.job
        if job.outcomes[held.claim.claim_no] is AttemptOutcome.LOST and not job.returned:  # its worker lives
            job.returned = True
            job.losses -= job.losses > 0 and job.state in (State.QUEUED, State.RUNNING)
            self.reached["taken back"] += 1
        job.end_attempt(held.claim.claim_no, conclusion.outcome)

    @precondition(some(State.QUEUED, State.RUNNING))
    @rule(number=numbers, workers=st.integers(1, MOST_LOSSES))
    def lose_workers(self, number: int, workers: int) -> None:
        job = self.one(number, State.QUEUED, State.RUNNING)
        for _ in range(workers):
            if job.state is State.QUEUED:
                self.run(self._turn_back(job, "run_at"))  # a suspect waits between its losses
                job.due = True
                self.claim_all([(job, False)])
            if job.state is State.RUNNING:
                self.run(self._turn_back(job, "lease_until"))
                job.lease_over = True
                self.sweep()

    @rule()
    def sweep(self) -> None:
        """One pass of the dispatcher over what makes no progress."""
        silent = [job for job in self.among(State.RUNNING) if job.lease_over]
        hopeless = [job for job in silent if job.losses >= MOST_LOSSES - 1]
        once_more = [job for job in silent if job not in hopeless]
        overdue = [job for job in [*self.among(State.QUEUED), *once_more] if job.overdue]

        async def work() -> list[set[uuid.UUID]]:
            async with self.database.begin() as tx:
                late = await clock.present(tx) + timedelta(hours=1)  # however slow this machine is
                lost = await claims.lost_leases(tx, as_of=late, limit=100)
                given_up = [await self._give_up(tx, which) for which in (dispatch.LOST_TOO_OFTEN, dispatch.OVERDUE)]
                return [{row.id for row in rows} for rows in (lost, *given_up)]

        lost, given_up, late = self.run(work())
        assert lost == {job.id for job in once_more}
        assert given_up == {job.id for job in hopeless}
        assert late == {job.id for job in overdue}
        for job in silent:
            job.end_attempt(job.claim_no, AttemptOutcome.LOST)
        for job in once_more:
            assert job.move(Happening.LEASE_LOST)
            job.losses += 1
            self.put_off(job, job.losses <= LOSSES_OF_A_SUSPECT)
        for job in [*hopeless, *overdue]:
            assert job.move(Happening.REFERRED)
            job.trigger = Trigger.ENGINE_ERROR
        self.reached["lost"] += len(once_more)
        self.reached["lost too often"] += len(hopeless)
        self.reached["overdue"] += len(late)

    async def _give_up(self, tx: Any, which: dispatch.Hopeless) -> Any:
        return await dispatch.give_up(
            tx,
            which,
            tenant_id=self.owner.tenant_id,
            job_type=JobType.CREATIVE_REVIEW,
            happening=Happening.REFERRED,
            shown={"policy_triggered": Trigger.ENGINE_ERROR},
            limit=100,
        )

    # --- time

    @rule(number=numbers, limit=st.sampled_from(["lease_until", "deadline_at", "run_at", "held_until"]))
    def let_time_pass(self, number: int, limit: str) -> None:
        """Beyond one limit of one job."""
        [state] = [state for state, limits in LIMITS.items() if limit in limits]
        job = self.one(number, state)
        if job.state is not state:
            return
        self.run(self._turn_back(job, limit))
        job.lease_over |= limit == "lease_until"
        job.overdue |= limit == "deadline_at"
        job.due |= limit == "run_at"
        job.held_by = "" if limit == "held_until" else job.held_by

    def put_off(self, job: Model, due: bool) -> None:
        """A pause of seconds must not end by itself, however slow this machine is."""
        job.due = due
        if not due:
            self.run(self._set(job, "run_at", 600.0))

    async def _turn_back(self, job: Model, instant: str) -> None:
        await self._set(job, instant, -1.0)

    async def _set(self, job: Model, instant: str, seconds: float) -> None:
        async with self.database.begin() as tx:
            moved = {instant: clock.after(seconds)}
            await tx.connection.execute(update(schema.jobs).where(schema.jobs.c.id == job.id).values(moved))

    # --- callers and people

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        job = self.one(number)

        async def work() -> bool:
            async with self.database.begin() as tx:
                return await jobs.cancel(tx, self.owner, job.id, reason="") is not None

        running = job.state is State.RUNNING
        cancelled = self.run(work())
        assert cancelled == job.move(Happening.CANCELLED) == (job.ended is None)
        if running:
            job.end_attempt(job.claim_no, AttemptOutcome.CANCELLED)

    @rule(number=numbers, person=st.sampled_from(PEOPLE))
    def hold(self, number: int, person: str) -> None:
        job = self.one(number, State.AWAITING_REVIEW)

        async def work() -> Waiting | None:
            async with self.database.begin() as tx:
                return await people.hold(tx, self.owner, job.id, by=Actor(person=person), seconds=3600.0)

        held = self.run(work())
        assert (held is not None) == job.free_for(person)
        if held is not None:
            assert job.move(Happening.HELD_BY_PERSON)
            job.held_by, job.token = person, held.token

    @rule(number=numbers, person=st.sampled_from([*PEOPLE, POLICY]))
    def decide(self, number: int, person: str) -> None:
        job = self.one(number, State.AWAITING_REVIEW)
        if person == POLICY and job.state is State.AWAITING_REVIEW:
            self.decide_again(job)
            return
        token = job.token if job.held_by == person else None

        async def work() -> bool:
            async with self.database.begin() as tx:
                waiting = await people.lock_waiting(tx, self.owner, job.id, reviewer=person, token=token)
                if waiting is not None:
                    made = HumanDecision(
                        reviewer=person,
                        decision="approved",
                        reason="fine",
                        ai_recommendation="",
                        overrides_ai=False,
                        decided_at=await clock.present(tx),
                    )
                    await people.decide(tx, waiting, made, result=b"")
                return waiting is not None

        free = job.free_for(person)
        assert self.run(work()) == free
        assert not free or job.move(Happening.DECIDED)

    @precondition(some(State.AWAITING_REVIEW))
    @rule(number=numbers)
    def review_again(self, number: int) -> None:
        job = self.one(number, State.AWAITING_REVIEW)

        async def work() -> int:
            async with self.database.begin() as tx:
                scope = Scope(owner=self.owner, wanted=Filter(), as_of=await clock.present(tx), ids=[job.id])
                return len(await repeats.review_again(tx, scope, limit=10, asked_by="test"))

        again = job.free_for("") and job.trigger in repeats.SENT_BACK
        assert self.run(work()) == int(again)
        if again:
            assert job.move(Happening.REVIEW_AGAIN)
            job.attempts = 0
            job.losses = losses_kept(job.losses)
            job.trigger, job.overdue, job.due = "", False, True
            self.reached["reviewed again"] += 1

    def decide_again(self, job: Model) -> None:
        """By a changed policy."""

        async def work() -> tuple[dict[uuid.UUID, bool], set[uuid.UUID]]:
            async with self.database.begin() as tx:
                batch = await redecisions.lock_waiting(tx, self.owner.tenant_id, after=None, limit=100)
                held = {waiting.id: waiting.held for waiting in batch.waiting}
                decided = Redecided(
                    job_id=job.id,
                    decision="approved",
                    policy_triggered=Trigger.AUTO_APPROVE,
                    reason="fine",
                    policy_version=2,
                    result=b"",
                    categories=["alcohol"],
                    decision_before="pending",
                    triggered_before=job.trigger,
                )
                return held, await redecisions.redecide(tx, [] if held[job.id] else [decided], by=Actor(person="test"))

        held, done = self.run(work())
        assert held == {one.id: bool(one.held_by) for one in self.among(State.AWAITING_REVIEW)}
        assert done == (set() if job.held_by else {job.id})
        if done:
            assert job.move(Happening.REDECIDED)
            job.trigger = Trigger.AUTO_APPROVE
            self.reached["decided again"] += 1

    # --- what always holds

    @invariant()
    def the_jobs_are_as_expected(self) -> None:
        rows = self.run(stored_jobs(self.database))
        assert set(rows) == {job.id for job in self.all}
        for job in self.all:
            row = rows[job.id]
            assert (row.state, row.version, row.attempts) == (job.state, job.version, job.attempts)
            assert (row.claim_no, row.release_no, row.losses) == (job.claim_no, job.release_no, job.losses), job.name
            assert (row.progress_percent, row.policy_triggered) == (job.progress, job.trigger)
            assert (row.supersedes, row.superseded_by) == (job.supersedes, job.superseded_by)
            assert (row.released_at is not None) == job.released
            assert (row.finished_at is not None) == (job.state in TERMINAL)
            assert (row.claim_id is not None) == (row.lease_until is not None) == (job.state is State.RUNNING)

    @invariant()
    def the_promises_hold(self) -> None:
        for job in self.all:
            if job.ended is None and job.state in TERMINAL:
                job.ended = job.state
                self.reached["ended"] += 1
            assert job.ended is None or job.state is job.ended
            assert job.attempts <= job.max_attempts
            assert job.losses < MOST_LOSSES

    def teardown(self) -> None:
        """The histories, whole: what was written once in them is never written again."""
        if sys.exc_info()[0] is not None:
            return  # a step has failed already
        events, attempts, told = self.run(stored_histories(self.database))
        for job in self.all:
            assert [(row.version, row.kind, row.state) for row in events[job.id]] == job.events
            assert [row.webhook_pending for row in events[job.id]] == [
                job.heard and kind in TOLD for _, kind, _ in job.events
            ]
            assert sum(row.state in TERMINAL for row in events[job.id]) == int(job.ended is not None)
            assert {row.claim_no: row.outcome for row in attempts[job.id]} == job.outcomes
        assert told == Counter(
            (job.id, version, kind) for job in self.all for version, kind, _ in job.events if job.heard and kind in TOLD
        )


def run(database_url: str, profile: settings) -> Mapping[str, int]:
    StoredJobs.reached.clear()
    with asyncio.Runner() as runner:
        database = Database(database_url)

        class Here(StoredJobs):
            def __init__(self) -> None:
                super().__init__(runner, database)

        try:
            run_state_machine_as_test(Here, settings=profile)
        finally:
            runner.run(database.close())
    return StoredJobs.reached


@pytest.mark.timeout(600)  # to find the shortest example of a failure takes minutes
def test_whatever_is_done_in_whatever_order_the_jobs_are_as_expected(database_url: str) -> None:
    reached = run(database_url, BRIEF[database_url.partition(":")[0]])
    for what in (
        *("ended", "fenced off", "lost", "taken back", "reviewed again"),
        *("claimed together", "ended together", "fenced off among others"),
        *("superseded while queued", "superseded while running"),
    ):
        assert reached[what] > 0, f"{what}: {reached}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_however_long_it_goes_on_the_jobs_are_as_expected(database_url: str) -> None:
    reached = run(database_url, LONG)
    for what in ("lost too often", "overdue", "decided again"):
        assert reached[what] > 0, f"{what}: {reached}"
