"""Whatever happens to jobs, in whatever order: a small executable reading of the transition table, the retry rules
and the decision table together, driven by Hypothesis. The databases' reading is held to the same in
tests/contract/test_storage_machine.py.
"""

import math
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from imprimatur.errors import (
    AttemptError,
    BudgetExhausted,
    NotBegun,
    PermanentError,
    Postponed,
    RateLimited,
    TimedOut,
    TransientError,
    UnreviewableInput,
)
from imprimatur.evidence import Category, Evidence, Part, Recommendation
from imprimatur.hindsight import Reviewed, Unsaid, decided_again
from imprimatur.job import (
    DEFAULTS,
    LOSSES_OF_A_SUSPECT,
    MOST_LOSSES,
    TERMINAL,
    TRANSITIONS,
    Claim,
    Happening,
    JobType,
    State,
    after_giving_up,
    losses_kept,
)
from imprimatur.policy import Decision, EngineFailure, Mode, Policy, Trigger, decide, decide_failure, flaw_of
from imprimatur.retry import Again, after_error
from tests import makers

BRIEF = settings(max_examples=100, stateful_step_count=50, derandomize=True, database=None, deadline=None)
LONG = settings(max_examples=10_000, stateful_step_count=80, database=None, deadline=None)

CREATIVE = JobType.CREATIVE_REVIEW
NOBODY = uuid.UUID(int=0)
GOOD = makers.evidence(0.97)
BAD = makers.evidence(0.02, recommendation=Recommendation.REJECT)
ANSWERS = [
    GOOD,
    BAD,
    makers.evidence(0.5),
    makers.evidence(math.nan),
    makers.evidence(unexamined=frozenset({next(iter(Part))})),
    makers.evidence(0.6, detected={Category.ALCOHOL: 0.95}),
]
ERRORS = [
    TransientError("down"),
    TimedOut("slow"),
    RateLimited("wait", retry_after_seconds=5.0),
    NotBegun("the provider keeps failing", retry_after_seconds=5.0),
    BudgetExhausted("the day's budget is used up"),
    PermanentError("the engine refuses"),
    UnreviewableInput("no image"),
]
POLICIES = [
    *(Policy(mode=mode) for mode in (Mode.AI_POWERED, Mode.REQUIRE_HUMAN, Mode.AUTO_APPROVE)),
    Policy(auto_approve_threshold=0.98),
    Policy(always_human=frozenset(), blocked=frozenset()),
]
TERMINAL_NEWS = frozenset({"job.succeeded", "job.failed", "job.cancelled"})


@dataclass(eq=False)
class Model:
    """One job."""

    name: str
    max_attempts: int
    state: State = State.QUEUED
    version: int = 1
    claim_no: int = 0
    attempts: int = 0
    losses: int = 0
    last_write: int = 0  #: the claim_no of the newest claim that changed anything
    approved_by: str = ""
    trigger: Trigger | None = None  #: of what the machine made of it last
    found: Evidence | None = None  #: what that was made of
    told: int = 0  #: webhooks of an end
    seen_version: int = 0
    ended: State | None = None

    def move(self, happening: Happening) -> bool:
        step = TRANSITIONS[happening]
        if self.state not in step.sources:
            return False
        note(f"  {self.name}: {self.state} -{happening}-> {step.target}")
        self.state = step.target
        self.version += 1
        self.told += step.notifies in TERMINAL_NEWS
        return True


@dataclass(frozen=True, eq=False)
class Held:
    """A worker's claim on a job."""

    job: Model
    claim: Claim

    @property
    def holds(self) -> bool:
        return self.job.state is State.RUNNING and self.job.claim_no == self.claim.claim_no


def held_of(job: Model) -> Held:
    claim = Claim(
        job_id=NOBODY,
        claim_no=job.claim_no,
        tenant_id=NOBODY,
        type=CREATIVE,
        input=b"",
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        timeout_seconds=120.0,
        remaining_seconds=3600.0,
        losses=job.losses,
    )
    return Held(job, claim)


def some(*states: State) -> Callable[[Any], bool]:
    return lambda machine: bool(machine.among(*states))


#: Which one of those that come into question, counted from the first and around.
numbers = st.integers(0, 3)


class Jobs(RuleBasedStateMachine):
    """A tenant's jobs, its policy, its workers and its people.

    A rule draws a number and takes the job or claim of that number among those that it suits, as bundles, which
    know nothing of states, hardly ever let a job come far.
    """

    reached: ClassVar[Counter[str]] = Counter()  #: how often the run came to what it should come to

    def __init__(self) -> None:
        super().__init__()
        self.policy = POLICIES[0]
        self.all: list[Model] = []
        self.claims: list[Held] = []

    def among(self, *states: State) -> list[Model]:
        return [job for job in self.all if job.state in (states or State)]

    def one(self, number: int, *states: State) -> Model:
        found = self.among(*states)
        return found[number % len(found)]

    def one_claim(self, number: int, *, old: bool) -> Held:
        found = [held for held in self.claims if held.holds != old] or self.claims
        return found[-1 - number % len(found)]

    @initialize()
    def begin(self) -> None:
        self.accept(max_attempts=2)

    @precondition(lambda self: len(self.all) - len(self.among(*TERMINAL)) < 3)
    @rule(max_attempts=st.integers(1, 3))
    def accept(self, max_attempts: int) -> None:
        self.all.append(Model(name=f"job {len(self.all) + 1}", max_attempts=max_attempts))

    @rule(policy=st.sampled_from(POLICIES))
    def change_policy(self, policy: Policy) -> None:
        self.policy = policy

    # --- workers

    @precondition(some(State.QUEUED))
    @rule(number=numbers)
    def claim(self, number: int) -> None:
        self.claims.append(self.claimed(self.one(number, State.QUEUED)))

    def claimed(self, job: Model) -> Held:
        assert job.move(Happening.CLAIMED)
        job.claim_no += 1
        return held_of(job)

    @precondition(lambda self: self.claims)
    @rule(number=numbers, old=st.booleans(), found=st.sampled_from(ANSWERS))
    def answer(self, number: int, old: bool, found: Evidence) -> None:
        self.conclude(self.one_claim(number, old=old), found)

    def conclude(self, held: Held, found: Evidence) -> None:
        if flaw := flaw_of(found):
            self.failed(held, TransientError(flaw), remaining_seconds=3600.0)
            return
        verdict = decide(self.policy, (), found)
        happening = Happening.REFERRED if verdict.decision is Decision.PENDING else Happening.COMPLETED
        if not self.write(held, happening, spends_attempt=True):
            return
        held.job.trigger, held.job.found = verdict.trigger, found
        if verdict.decision is Decision.APPROVED:
            held.job.approved_by = "mode" if self.policy.mode is Mode.AUTO_APPROVE else "evidence"
            assert held.job.approved_by == "mode" or found is GOOD

    @precondition(some(State.QUEUED))
    @rule(number=numbers, found=st.sampled_from(ANSWERS))
    def review(self, number: int, found: Evidence) -> None:
        """From the claim to the answer, without anything in between."""
        self.claims.append(self.claimed(self.one(number, State.QUEUED)))
        self.conclude(self.claims[-1], found)

    @precondition(lambda self: self.claims)
    @rule(
        number=numbers,
        old=st.booleans(),
        error=st.sampled_from(ERRORS),
        remaining_seconds=st.sampled_from([3600.0, 0.5]),
    )
    def fail(self, number: int, old: bool, error: AttemptError, remaining_seconds: float) -> None:
        self.failed(self.one_claim(number, old=old), error, remaining_seconds)

    def failed(self, held: Held, error: AttemptError, remaining_seconds: float) -> None:
        step = after_error(
            error,
            attempts_before=held.claim.attempts,
            max_attempts=held.claim.max_attempts,
            remaining_seconds=remaining_seconds,
            backoff=DEFAULTS[CREATIVE].backoff,
            jitter=0.5,
        )
        if not isinstance(step, Again):
            self.given_up(held, error)
            return
        spent = held.job.attempts
        if self.write(held, Happening.RETRY_SCHEDULED, spends_attempt=step.spends_attempt):
            assert held.job.attempts == spent + (0 if isinstance(error, Postponed) else 1)

    def given_up(self, held: Held, error: AttemptError) -> None:
        broke = isinstance(error, BudgetExhausted)
        verdict = decide_failure(self.policy, (), EngineFailure(message=error.message, budget_exhausted=broke))
        assert verdict.decision is Decision.PENDING, "an error approved"
        if self.write(held, after_giving_up(CREATIVE, error), spends_attempt=True):
            held.job.trigger = verdict.trigger

    @precondition(lambda self: self.claims)
    @rule(number=numbers, old=st.booleans())
    def hand_back(self, number: int, old: bool) -> None:
        self.write(self.one_claim(number, old=old), Happening.HANDED_BACK, spends_attempt=False)

    def write(self, held: Held, happening: Happening, *, spends_attempt: bool) -> bool:
        job = held.job
        if not held.holds:
            self.reached["fenced off"] += 1
            return False
        assert job.move(happening), f"a worker that holds a job cannot write {happening}"
        assert held.claim.claim_no > job.last_write, "an old claim wrote"
        job.last_write = held.claim.claim_no
        job.attempts += spends_attempt
        return True

    @precondition(some(State.QUEUED, State.RUNNING))
    @rule(number=numbers, workers=st.integers(1, MOST_LOSSES))
    def lose_workers(self, number: int, workers: int) -> None:
        job = self.one(number, State.QUEUED, State.RUNNING)
        for _ in range(workers):
            if job.state is State.QUEUED:
                self.claims.append(self.claimed(job))
            if job.state is State.RUNNING:
                self.lose_one(job)

    def lose_one(self, job: Model) -> None:
        spent = job.attempts
        if job.losses < MOST_LOSSES - 1:
            assert job.move(Happening.LEASE_LOST)
            job.losses += 1
        else:
            assert job.move(Happening.REFERRED)
            job.trigger = Trigger.ENGINE_ERROR
            self.reached["lost too often"] += 1
        suspect = held_of(job).claim.suspect
        assert suspect == (job.losses >= LOSSES_OF_A_SUSPECT)
        self.reached["suspect"] += suspect
        assert job.attempts == spent, "a lost worker spent an attempt"

    # --- time, callers and people

    @precondition(some(State.QUEUED))
    @rule(number=numbers)
    def pass_deadline(self, number: int) -> None:
        job = self.one(number, State.QUEUED)
        assert job.move(Happening.REFERRED)
        job.trigger = Trigger.ENGINE_ERROR

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        job = self.one(number)
        assert job.move(Happening.CANCELLED) == (job.ended is None)

    @rule(number=numbers, decision=st.sampled_from([Decision.APPROVED, Decision.REJECTED]), held_first=st.booleans())
    def decide(self, number: int, decision: Decision, held_first: bool) -> None:
        waiting = self.among(State.AWAITING_REVIEW)
        job = self.one(number, State.AWAITING_REVIEW) if waiting else self.one(number)
        waits = job.state is State.AWAITING_REVIEW
        if held_first:
            assert job.move(Happening.HELD_BY_PERSON) == waits == (job.state is State.AWAITING_REVIEW)
        assert job.move(Happening.DECIDED) == waits
        if waits and decision is Decision.APPROVED:
            job.approved_by = "person"

    @precondition(lambda self: any(job.trigger is Trigger.ENGINE_ERROR for job in self.among(State.AWAITING_REVIEW)))
    @rule(number=numbers)
    def review_again(self, number: int) -> None:
        failed = [job for job in self.among(State.AWAITING_REVIEW) if job.trigger is Trigger.ENGINE_ERROR]
        job = failed[number % len(failed)]
        assert job.move(Happening.REVIEW_AGAIN)
        job.attempts, job.losses = 0, losses_kept(job.losses)
        self.reached["reviewed again"] += 1

    @precondition(some(State.AWAITING_REVIEW))
    @rule(number=numbers, policy=st.sampled_from(POLICIES))
    def decide_again(self, number: int, policy: Policy) -> None:
        self.change_policy(policy)
        waiting = self.among(State.AWAITING_REVIEW)
        examined = [job for job in waiting if job.found is not None] or waiting
        job = examined[number % len(examined)]
        trigger = job.trigger or Trigger.HUMAN_REQUIRED
        then = Reviewed(declared=(), evidence=job.found, decision=Decision.PENDING, trigger=trigger)
        verdict = decided_again(self.policy, then)
        assert isinstance(verdict, Unsaid) == (job.found is None)
        if isinstance(verdict, Unsaid) or verdict.decision is Decision.PENDING:
            return
        assert job.move(Happening.REDECIDED)
        job.trigger = verdict.trigger
        if verdict.decision is Decision.APPROVED:
            job.approved_by = "mode" if self.policy.mode is Mode.AUTO_APPROVE else "evidence"
            assert job.approved_by == "mode" or job.found is GOOD
        self.reached["decided again"] += 1

    @precondition(some(*TERMINAL))
    @rule(number=numbers, happening=st.sampled_from(Happening))
    def disturb_after_the_end(self, number: int, happening: Happening) -> None:
        """Whoever may be late: nothing asks here whether it may."""
        self.one(number, *TERMINAL).move(happening)
        self.reached["disturbed after the end"] += 1

    # --- what always holds

    @invariant()
    def the_end_is_final_and_told_once(self) -> None:
        for job in self.all:
            if job.ended is None and job.state.terminal:
                job.ended = job.state
                self.reached["ended"] += 1
            assert job.ended is None or job.state is job.ended, f"{job.ended} was left for {job.state}"
            assert job.told == int(job.state.terminal)

    @invariant()
    def versions_only_rise(self) -> None:
        for job in self.all:
            assert job.version >= job.seen_version
            job.seen_version = job.version

    @invariant()
    def attempts_and_losses_are_bounded(self) -> None:
        for job in self.all:
            assert 0 <= job.attempts <= job.max_attempts
            assert 0 <= job.losses < MOST_LOSSES

    @invariant()
    def nothing_is_approved_before_its_end(self) -> None:
        for job in self.all:
            assert not job.approved_by or job.state is State.SUCCEEDED

    def teardown(self) -> None:
        """Without being cancelled, each job comes to its end by a failure and a person."""
        for job in self.all:
            if job.state is State.QUEUED:
                self.claimed(job)
            if job.state is State.RUNNING:
                self.failed(held_of(job), PermanentError("no"), remaining_seconds=3600.0)
            if job.state is State.AWAITING_REVIEW:
                assert job.move(Happening.DECIDED)
            assert job.state.terminal


def run(profile: settings) -> Mapping[str, int]:
    Jobs.reached.clear()
    run_state_machine_as_test(Jobs, settings=profile)
    return Jobs.reached


def test_whatever_happens_in_whatever_order_the_promises_hold() -> None:
    reached = run(BRIEF)
    for what in ("ended", "fenced off", "suspect", "reviewed again", "disturbed after the end"):
        assert reached[what] > 20, f"{what}: {reached}"
    assert reached["decided again"] > 0, reached


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_however_long_it_goes_on_the_promises_hold() -> None:
    assert run(LONG)["lost too often"] > 20
