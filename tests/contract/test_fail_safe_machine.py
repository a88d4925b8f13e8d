"""Nothing is approved that must not be, whatever engines come with and whatever happens meanwhile, in whatever order.

Real attempts by the reviewer's own code on both databases, driven by Hypothesis: claims, losses, cancellations,
retries, changes of the policy and ways back, late results, equal creatives, people, their claims and appeals, and what
waits for them decided again. An attempt stands still inside its engine until a rule lets that answer; so policies
change, and jobs are lost and taken, under attempts that go on. What must have come of each answer is said by
`tests.unit.findings`, which knows nothing of the decision table.
"""

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
from sqlalchemy import select, update

from gateway import appeals
from gateway.access import Caller
from gateway.hindsight import redecide_pending
from gateway.recovery import give_up
from imprimatur.errors import (
    BudgetExhausted,
    FailedPrecondition,
    NotBegun,
    PermanentError,
    RateLimited,
    TimedOut,
    TransientError,
    UnreviewableInput,
)
from imprimatur.evidence import Category, Creative, EngineIdentity, Evidence
from imprimatur.guard import STRICT
from imprimatur.human import Agreement
from imprimatur.job import Claim, JobType, State
from imprimatur.policy import Decision, Mode, Policy
from imprimatur.retention import Retention
from imprimatur.storage import claims, clock, dispatch, jobs, people, policies, repeats, schema, tenants
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.repeats import Scope
from imprimatur.storage.review_queue import Waiting
from imprimatur.tenancy import Role
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.v1.policy_service_pb2 import RedecidePendingRequest
from imprimatur.wire.creatives import human_result
from imprimatur.wire.enums import from_wire, to_wire
from reviewer.attempt import Attempts
from reviewer.images.darkroom import Darkroom
from reviewer.images.fetching import Fetcher
from reviewer.images.images import Images
from reviewer.leases import Leases
from reviewer.tasks import creative_review
from reviewer.tasks.creative_review import CreativeReview
from reviewer.terms import NO_TERMS
from reviewer.twins import Twins
from tests import makers
from tests.unit.findings import NEAR_MISSES, deserves_approval, evidences, mostly, near_misses, usable
from tests.unit.policies import policies as any_policies

T = TypeVar("T")

BRIEF = settings(
    max_examples=40,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
)
LONG = settings(max_examples=2000, stateful_step_count=60, database=None, deadline=None)

#: How an engine fails. What may not come of an engine at all is there, too.
FAILURES: list[Exception] = [
    TransientError("down", code="provider_error"),
    TransientError("nonsense", code="invalid_answer"),
    TimedOut("slow"),
    RateLimited("wait", retry_after_seconds=0.0),
    NotBegun("left alone", retry_after_seconds=0.0),
    PermanentError("the model refuses", code="refused"),
    BudgetExhausted("the budget is used up"),
    UnreviewableInput("no image"),
    RuntimeError("a defect"),
]
_GOOD = st.just(makers.evidence())
answers = st.one_of(_GOOD, evidences, st.sampled_from(FAILURES))
#: The default ones in each mode more often than any other. What engine there is has no models.
live_policies = mostly(
    st.sampled_from(Mode).map(lambda mode: Policy(mode=mode)),
    any_policies().map(lambda policy: replace(policy, model=policy.model and "house-model")),
)
numbers = st.integers(0, 3)
declarations = st.sampled_from([frozenset[Category](), frozenset[Category](), frozenset({Category.ALCOHOL})])
reviewers = st.sampled_from(["ada", "bob"])
#: What ends much is done less often.
once_in_three = st.integers(0, 2).map(lambda chance: chance == 2)


def some(*states: State) -> Callable[[Any], bool]:
    return lambda machine: any(one.state in states for one in machine.stored.values())


def some_attempt(machine: Any) -> bool:
    return bool(machine.going)


class GatedEngine:
    """Answers when it is told to, each attempt for itself."""

    def __init__(self) -> None:
        self.identity = EngineIdentity(name="gated", version="1")
        self.asked: dict[asyncio.Task[Any] | None, asyncio.Future[Evidence]] = {}
        self._asked = asyncio.Condition()

    async def examine(self, creative: Creative) -> Evidence:
        """Wait for the answer."""
        task = asyncio.current_task()
        self.asked[task] = asyncio.get_running_loop().create_future()
        async with self._asked:
            self._asked.notify_all()
        try:
            return await self.asked[task]
        finally:
            del self.asked[task]

    async def is_asked_by(self, task: "asyncio.Task[Any]") -> None:
        """Wait for it."""
        async with self._asked:
            await self._asked.wait_for(lambda: task in self.asked)

    async def close(self) -> None:
        """Nothing to give back."""


@dataclass(eq=False)
class Seen:
    """One job, what was found in its creative, and who may have approved it."""

    id: uuid.UUID
    headline: str
    declared: frozenset[Category]
    appeal: bool = False
    barred: frozenset[str] = frozenset()  #: who must not decide it
    found: Evidence | None = None  #: by its own look, or an equal one's
    held: tuple[str, uuid.UUID | None] = ("", None)  #: by whom, with which token
    decided_by: str = ""  #: the person who did
    approved_by: str = ""


@dataclass(eq=False)
class Going:
    """An attempt that waits for its engine."""

    job: Seen
    claim: Claim
    task: "asyncio.Task[None]"
    asked_after_all: bool  #: it began by a policy that asks no engine


@dataclass(kw_only=True)
class Stored:
    """What the database has of a job."""

    state: State
    claim_no: int
    release_no: int
    result: pb.CreativeReviewResult = field(default_factory=pb.CreativeReviewResult)
    decision: str = ""
    waits: bool = False  #: for what an equal one finds


class Reviews(RuleBasedStateMachine):
    """One tenant's creatives."""

    reached: ClassVar[Counter[str]] = Counter()  #: how often the run came to what it should come to

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        super().__init__()
        self.runner = runner
        self.database = database
        self.engine = GatedEngine()
        self.all: list[Seen] = []
        self.going: list[Going] = []
        self.policy = Policy()
        self.versions: list[Policy] = [Policy()]  #: in the order of their numbers
        self.remembered: Policy | None = None  #: by the reviewer
        self.stored: dict[uuid.UUID, Stored] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        async def work() -> None:
            await makers.empty(self.database)
            self.owner = Owner(tenant_id=await makers.make_tenant(self.database))
            self.images = Images(self.database, Fetcher(STRICT), Darkroom(processes=1))
            self.admin = Caller(
                tenant_id=self.owner.tenant_id, tenant_name="", role=Role.ADMIN, user_id="", key_name="test"
            )
            twins = Twins(self.database, keep_seconds=3600.0)
            self.review = CreativeReview(
                self.database,
                self.images,
                self.engine,
                lambda: nullcontext(self.engine),
                terms=NO_TERMS,
                twins=twins,
            )
            self.leases = Leases(self.database, makers.worker(), lease_seconds=600.0)  # renewed when a rule says so
            self.attempts = Attempts(self.database, self.leases, {JobType.CREATIVE_REVIEW: self.review}, twins)

        self.run(work())
        for _ in range(2):
            self.submit(declared=frozenset(), max_attempts=2, begun=True)

    # --- what may come of it

    def approved_by_whom(self, job: Seen, found: Evidence | Exception | None) -> str:
        """Who approves the job now if that was found; empty if nobody may."""
        if job.appeal or not usable(found):
            return ""
        if self.policy.mode is Mode.AUTO_APPROVE:
            return "the mode"
        by_engine = self.policy.mode is Mode.AI_POWERED and deserves_approval(self.policy, job.declared, found)
        return "the engine" if by_engine else ""

    def approve(self, job: Seen, by: str) -> None:
        assert not job.approved_by
        job.approved_by = by
        self.reached[f"approved by {by}"] += 1

    # --- what is stored

    def look(self) -> None:
        async def work() -> dict[uuid.UUID, Stored]:
            async with self.database.read() as reader:
                rows = await reader.connection.execute(select(schema.jobs))
            return {
                row.id: Stored(
                    state=State(row.state),
                    claim_no=row.claim_no,
                    release_no=row.release_no,
                    result=pb.CreativeReviewResult.FromString(row.result or b""),
                    decision=row.decision,
                    waits=row.waits_for is not None,
                )
                for row in rows
            }

        self.stored = self.run(work())

    def one(self, number: int, *states: State) -> Seen | None:
        self.look()
        found = [job for job in self.all if self.stored[job.id].state in states]
        return found[number % len(found)] if found else None

    def move_instant(self, job: Seen, instant: str, seconds: float) -> None:
        async def work() -> None:
            async with self.database.begin() as tx:
                moved = {instant: clock.after(seconds)}
                await tx.connection.execute(update(schema.jobs).where(schema.jobs.c.id == job.id).values(moved))

        self.run(work())

    # --- callers

    @precondition(lambda self: len(self.all) < 12)
    @rule(declared=declarations, max_attempts=st.integers(1, 2), begun=st.booleans())
    def submit(self, declared: frozenset[Category], max_attempts: int, begun: bool) -> None:
        self.submit_one(f"number {len(self.all)}", declared, max_attempts, begun)

    @precondition(lambda self: len(self.all) < 12)
    @rule(number=numbers, begun=mostly(st.just(True), st.just(False)))
    def submit_an_equal(self, number: int, begun: bool) -> None:
        """But for its id, which no engine is shown. To one with evidence, if there is any."""
        others = [job for job in self.all if job.found is not None and not job.appeal] or self.all
        other = others[-1 - number % len(others)]
        self.submit_one(other.headline, other.declared, 2, begun)

    def submit_one(self, headline: str, declared: frozenset[Category], max_attempts: int, begun: bool) -> None:
        creative = pb.Creative(
            creative_id=f"cr-{len(self.all)}",
            headline=headline,
            declared_categories=[to_wire(pb.Category, "CATEGORY", one) for one in sorted(declared)],
        )
        task = pb.CreativeReviewTask(creative=creative).SerializeToString()
        new = makers.new_job(self.owner.tenant_id, content=task, max_attempts=max_attempts)
        self.run(makers.submit(self.database, new))
        self.all.append(Seen(new.id, headline, declared))
        if begun:
            self.begin_an_attempt(-1)

    @precondition(lambda self: len(self.all) < 12 and some(State.SUCCEEDED)(self))
    @rule(number=numbers)
    def appeal(self, number: int) -> None:
        old = self.one(number, State.SUCCEEDED)
        assert old is not None

        async def work() -> uuid.UUID | None:
            never = Retention(days={})
            new = await appeals.appeal_against(
                self.database, self.admin, old.id, reason="wrong", request_id="", retention=never
            )
            try:
                async with self.database.begin() as tx:
                    await appeals.store(tx, self.admin, new, release_at_once=makers.EVERYTHING, most_of_a_tenant=0)
            except FailedPrecondition:  # there is one
                return None
            return new.id

        made = self.run(work())
        if made is not None:
            barred = old.barred | {old.decided_by} - {""}
            self.all.append(Seen(made, old.headline, old.declared, appeal=True, barred=barred))
            self.reached["appealed"] += 1

    @precondition(some(State.QUEUED, State.RUNNING, State.AWAITING_REVIEW))
    @rule(number=numbers, really=once_in_three)
    def cancel(self, number: int, really: bool) -> None:
        job = self.one(number, State.QUEUED, State.RUNNING, State.AWAITING_REVIEW) if really else None

        async def work(job: Seen) -> None:
            async with self.database.begin() as tx:
                await jobs.cancel(tx, self.owner, job.id, reason="")

        if job is not None:
            self.run(work(job))

    @rule(policy=live_policies)
    def change_the_policy(self, policy: Policy) -> None:
        async def work() -> int:
            async with self.database.begin() as tx:
                return await tenants.put_policy(tx, self.owner.tenant_id, policy)

        self.versions.append(policy)
        assert self.run(work()) == len(self.versions)
        self.policy = policy

    @rule(number=numbers)
    def activate_an_older_version(self, number: int) -> None:
        version = number % len(self.versions) + 1

        async def work() -> bool:
            async with self.database.begin() as tx:
                return await policies.activate(tx, self.owner.tenant_id, version, by=Actor(person="ada"))

        self.reached["gone back"] += self.run(work())
        self.policy = self.versions[version - 1]

    @rule()
    def forget_the_policy(self) -> None:
        """So that the next attempt begins by the live one."""
        self.review._policies.clear()
        self.remembered = None

    @precondition(some(State.AWAITING_REVIEW))
    @rule(number=numbers)
    def review_again(self, number: int) -> None:
        job = self.one(number, State.AWAITING_REVIEW)

        async def work(job: Seen) -> int:
            async with self.database.begin() as tx:
                scope = Scope(owner=self.owner, wanted=Filter(), as_of=await clock.present(tx), ids=[job.id])
                return len(await repeats.review_again(tx, scope, limit=10, asked_by="test"))

        if job is None:
            return
        taken = self.run(work(job))
        assert not (taken and job.held[0])
        self.reached["reviewed again"] += taken

    @precondition(some(State.AWAITING_REVIEW))
    @rule()
    def decide_again(self) -> None:
        """By the policy of now, from what was found before."""
        self.look()
        waiting = [job for job in self.all if self.stored[job.id].state is State.AWAITING_REVIEW]
        free = [job for job in waiting if not job.held[0]]
        due = {job.id: by for job in free if (by := self.approved_again_by(job))}
        answer = self.run(redecide_pending(self.database, self.admin, RedecidePendingRequest()))
        assert {uuid.UUID(one.job_id) for one in answer.redecided if one.decision == pb.DECISION_APPROVED} == set(due)
        for job in free:
            if job.id in due:
                self.approve(job, f"{due[job.id]}, again")
        self.reached["left to who holds it"] += answer.held

    def approved_again_by(self, job: Seen) -> str:
        """As `approved_by_whom`, for what was found before: a model that the policy names would have to look."""
        by = self.approved_by_whom(job, job.found)
        return "" if by == "the engine" and self.policy.model else by

    def decide_again_by(self, policy: Policy) -> None:
        self.change_the_policy(policy)
        self.decide_again()

    @precondition(some_attempt)
    @rule(number=numbers, found=st.one_of(_GOOD, near_misses), policy=mostly(st.just(Policy()), live_policies))
    def answer_for_people_and_decide_again(self, number: int, found: Evidence, policy: Policy) -> None:
        self.change_the_policy(Policy(mode=Mode.REQUIRE_HUMAN))
        self.answer(number, found)
        self.decide_again_by(policy)

    # --- attempts

    @precondition(some(State.QUEUED))
    @rule(number=numbers)
    def begin_an_attempt(self, number: int) -> None:
        """In the mode that asks no engine it ends at once."""
        job = self.one(number, State.QUEUED)
        if job is None:
            return
        self.move_instant(job, "run_at", -1.0)

        async def work(job: Seen) -> Going | None:
            await makers.release(self.database)
            async with self.database.read() as reader:
                asked = select(schema.jobs.c.release_no).where(schema.jobs.c.id == job.id)
                release_no = (await reader.connection.execute(asked)).scalar_one()
            claim = await makers.claim(self.database, job.id, release_no=release_no, lease_seconds=600.0)
            if claim is None:  # it is overdue
                return None
            self.remembered = self.remembered or self.policy
            unasked = self.remembered.mode is Mode.AUTO_APPROVE
            if unasked and self.policy.mode is not Mode.AUTO_APPROVE:
                self.remembered = self.policy  # read anew before it asks after all
            going = Going(job, claim, asyncio.create_task(self.attempts.run(claim)), unasked)
            await self._stands_still(going)
            return going

        going = self.run(work(job))
        if going is None:
            return
        if not going.task.done():
            self.going.append(going)
        elif (source := self.source_of(job)) is not None:
            job.found = source.found
            by = self.approved_by_whom(job, job.found)
            self.expect(going, approved=bool(by), by=f"{by}, by an equal one")
            self.reached["taken from an equal one"] += 1
        else:
            waits = self.waits_for_its_equal(job)
            alone = self.policy.mode is Mode.AUTO_APPROVE and not (job.appeal or waits)
            self.expect(going, approved=alone, by="the mode alone")

    def source_of(self, job: Seen) -> Seen | None:
        """Whose evidence a job took: an equal one's, and one that had some to give."""
        self.look()
        review = self.stored[job.id].result.ai_review
        if not review.HasField("reused"):
            return None
        [source] = [other for other in self.all if str(other.id) == review.reused.job_id]
        assert (source.headline, source.declared) == (job.headline, job.declared)
        assert not job.appeal
        assert not source.appeal
        assert source.found is not None
        return source

    def waits_for_its_equal(self, job: Seen) -> bool:
        if not self.stored[job.id].waits:
            return False
        equal = [other for other in self.all if (other.headline, other.declared) == (job.headline, job.declared)]
        assert any(self.stored[other.id].state is State.RUNNING for other in equal)
        self.reached["waited for an equal one"] += 1
        return True

    async def _stands_still(self, going: Going) -> None:
        """Until it asks its engine, or has ended."""
        asks = asyncio.create_task(self.engine.is_asked_by(going.task))
        await asyncio.wait({asks, going.task}, return_when=asyncio.FIRST_COMPLETED)
        asks.cancel()
        if going.task.done():
            going.task.result()

    @precondition(some_attempt)
    @rule(number=numbers, mode=st.sampled_from(Mode), answer=answers)
    def answer_under_another_policy(self, number: int, mode: Mode, answer: Evidence | Exception) -> None:
        self.change_the_policy(Policy(mode=mode))
        self.answer(number, answer)

    @precondition(some_attempt)
    @rule(number=numbers)
    def answer_well(self, number: int) -> None:
        self.answer(number, makers.evidence())

    @precondition(some_attempt)
    @rule(number=numbers, found=near_misses)
    def answer_with_one_flaw(self, number: int, found: Evidence) -> None:
        self.answer(number, found)

    @precondition(some_attempt)
    @rule(number=numbers, answer=answers)
    def answer(self, number: int, answer: Evidence | Exception) -> None:
        going = self.going.pop(number % len(self.going))
        self.look()
        before = self.stored[going.job.id]
        holds = before.state is State.RUNNING and before.claim_no == going.claim.claim_no

        async def work() -> None:
            asked = self.engine.asked[going.task]
            if isinstance(answer, Exception):
                asked.set_exception(answer)
            else:
                asked.set_result(answer)
            await asyncio.wait({going.task})
            going.task.result()

        self.run(work())
        by = self.approved_by_whom(going.job, answer)
        self.note_what_came(going, answer, holds=holds, running=before.state is State.RUNNING)
        self.expect(going, approved=holds and bool(by), by=by, holds=holds)
        if holds and isinstance(answer, Evidence) and usable(answer):
            going.job.found = answer

    def note_what_came(self, going: Going, answer: Evidence | Exception, *, holds: bool, running: bool) -> None:
        if not holds:
            self.reached["late"] += 1
            self.reached["late while it runs elsewhere"] += running
            self.reached["late approval"] += deserves_approval(self.policy, going.job.declared, answer)
        elif self.policy.mode is Mode.AUTO_APPROVE and not usable(answer):
            self.reached["failed where all is approved"] += 1
        self.reached["asked after all"] += holds and going.asked_after_all

    def expect(self, going: Going, *, approved: bool, by: str, holds: bool = True) -> None:
        """What this attempt must have made of its job, just now."""
        self.look()
        now = self.stored[going.job.id]
        assert (holds and now.state is State.SUCCEEDED and now.decision == Decision.APPROVED) == approved, by
        if approved:
            self.approve(going.job, by)

    @precondition(some_attempt)
    @rule(really=once_in_three)
    def renew(self, really: bool) -> None:
        """Attempts whose jobs were taken are aborted."""
        if not really:
            return

        async def work() -> None:
            await self.leases._renew()
            aborted = [going for going in self.going if going.task.cancelling()]
            if aborted:
                await asyncio.wait({going.task for going in aborted})
            for going in aborted:
                going.task.result()

        self.run(work())
        self.reached["aborted"] += sum(going.task.done() for going in self.going)
        self.going = [going for going in self.going if not going.task.done()]

    @precondition(some(State.RUNNING))
    @rule(number=numbers, losses=st.sampled_from([0, 0, 9]), really=once_in_three)
    def lose_a_worker(self, number: int, losses: int, really: bool) -> None:
        """It goes on, and may answer later; `losses` it had before."""
        job = self.one(number, State.RUNNING) if really else None
        if job is None:
            return
        self.move_instant(job, "lease_until", -1.0)

        async def work(job: Seen) -> int:
            async with self.database.begin() as tx:
                if losses:
                    lost = update(schema.jobs).where(schema.jobs.c.id == job.id).values(losses=losses)
                    await tx.connection.execute(lost)
                late = await clock.present(tx) + timedelta(hours=1)  # however slow this machine is
                await claims.lost_leases(tx, as_of=late, limit=100)
                return len(await give_up(tx, dispatch.LOST_TOO_OFTEN, self.owner.tenant_id))

        self.reached["lost too often"] += self.run(work(job))
        self.reached["lost"] += 1

    @precondition(some(State.QUEUED))
    @rule(number=numbers, really=once_in_three)
    def let_the_deadline_pass(self, number: int, really: bool) -> None:
        job = self.one(number, State.QUEUED)
        if job is None or not really:
            return
        self.move_instant(job, "deadline_at", -1.0)

        async def work() -> int:
            async with self.database.begin() as tx:
                return len(await give_up(tx, dispatch.OVERDUE, self.owner.tenant_id))

        self.reached["overdue"] += self.run(work())
        if self.policy.mode is Mode.AUTO_APPROVE:
            self.reached["given up where all is approved"] += 1

    # --- people

    @precondition(some(State.AWAITING_REVIEW))
    @rule(number=numbers, reviewer=reviewers)
    def hold(self, number: int, reviewer: str) -> None:
        job = self.one(number, State.AWAITING_REVIEW)
        assert job is not None

        async def work() -> Waiting | None:
            async with self.database.begin() as tx:
                return await people.hold(tx, self.owner, job.id, by=Actor(person=reviewer), seconds=600.0)

        held = self.run(work())
        assert (held is not None) == self.is_for(job, reviewer)
        if held is not None:
            job.held = (reviewer, held.token)

    def is_for(self, job: Seen, reviewer: str) -> bool:
        return job.held[0] in ("", reviewer) and reviewer not in job.barred

    @precondition(some(State.AWAITING_REVIEW))
    @rule(number=numbers)
    def let_a_hold_run_out(self, number: int) -> None:
        job = self.one(number, State.AWAITING_REVIEW)
        if job is not None and job.held[0]:
            self.move_instant(job, "held_until", -1.0)
            job.held = ("", None)

    @precondition(some(State.AWAITING_REVIEW))
    @rule(number=numbers, reviewer=reviewers, decision=st.sampled_from([Decision.APPROVED, Decision.REJECTED]))
    def decide(self, number: int, reviewer: str, decision: Decision) -> None:
        job = self.one(number, State.AWAITING_REVIEW)
        assert job is not None
        token = job.held[1] if job.held[0] == reviewer else None

        async def work() -> bool:
            async with self.database.begin() as tx:
                waiting = await people.lock_waiting(tx, self.owner, job.id, reviewer=reviewer, token=token)
                if waiting is None:
                    return False
                now = await clock.present(tx)
                made = HumanDecision(
                    reviewer=reviewer,
                    decision=decision,
                    reason="seen",
                    ai_recommendation="",
                    overrides_ai=False,
                    decided_at=now,
                )
                result = human_result(
                    waiting.job.result,
                    decision=decision,
                    reason="seen",
                    reviewer=reviewer,
                    decided_at=now,
                    agreement=Agreement.NO_ADVICE,
                )
                await people.decide(tx, waiting, made, result=result)
                return True

        decided = self.run(work())
        assert decided == self.is_for(job, reviewer)
        if not decided:
            self.reached["not for this person"] += 1
            return
        job.decided_by = reviewer
        if decision is Decision.APPROVED:
            self.approve(job, "a person")

    # --- what always holds

    @invariant()
    def nothing_is_approved_but_by_whom_it_may_be(self) -> None:
        self.look()
        for job in self.all:
            one = self.stored[job.id]
            shown = from_wire(pb.Decision, "DECISION", one.result.decision, Decision)
            approved = {one.decision == Decision.APPROVED, shown is Decision.APPROVED}
            assert approved == {bool(job.approved_by)}
            if job.approved_by:
                assert one.state is State.SUCCEEDED
            of_machine = from_wire(pb.Decision, "DECISION", one.result.ai_review.decision, Decision)
            assert (of_machine is Decision.APPROVED) == (job.approved_by not in ("", "a person"))

    def teardown(self) -> None:
        """Nor does any history say so."""

        async def work() -> Counter[uuid.UUID]:
            tasks = [going.task for going in self.going]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if hasattr(self, "images"):
                await self.images.close()
            async with self.database.read() as reader:
                rows = await reader.connection.execute(select(schema.job_events.c.job_id, schema.job_events.c.details))
            return Counter(row.job_id for row in rows if row.details.get("decision") == Decision.APPROVED)

        told = self.run(work())
        if sys.exc_info()[0] is None:  # else a step has failed already
            assert told == Counter(job.id for job in self.all if job.approved_by)


@contextmanager
def machines(database_url: str) -> Iterator[Any]:  # of a class that is made without arguments
    """The machine with a database of that kind."""
    Reviews.reached.clear()
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(creative_review, "_REMEMBERED_SECONDS", 3600.0)  # else it depends on how long the steps take
        database = Database(database_url)

        class Here(Reviews):
            def __init__(self) -> None:
                super().__init__(runner, database)

        try:
            yield Here
        finally:
            runner.run(database.close())


@pytest.mark.timeout(600)  # to find the shortest example of a failure takes minutes
def test_nothing_is_approved_that_must_not_be_whatever_happens_in_whatever_order(database_url: str) -> None:
    with machines(database_url) as machine:
        run_state_machine_as_test(machine, settings=BRIEF)
    for what in ("approved by the engine", "approved by the engine, again", "taken from an equal one", "late", "lost"):
        assert Reviews.reached[what] > 0, f"{what}: {Reviews.reached}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nothing_is_however_long_it_goes_on(database_url: str) -> None:
    with machines(database_url) as machine:
        run_state_machine_as_test(machine, settings=LONG)
    assert all(Reviews.reached[what] > 0 for what in WHAT_IS_REACHED), Reviews.reached


#: All that the machine tells apart.
WHAT_IS_REACHED = (
    *("approved by the engine", "approved by the mode", "approved by the mode alone", "approved by a person"),
    *("late", "late approval", "lost", "lost too often", "aborted", "overdue", "reviewed again", "asked after all"),
    *("failed where all is approved", "given up where all is approved", "late while it runs elsewhere"),
    *("approved by the engine, again", "approved by the mode, again", "left to who holds it", "gone back"),
    *("approved by the engine, by an equal one", "approved by the mode, by an equal one"),
    *("taken from an equal one", "waited for an equal one", "appealed", "not for this person"),
)


def test_what_forbids_to_approve_forbids_it_when_it_is_decided_again_and_of_an_equal_one(database_url: str) -> None:
    by_people = Policy(mode=Mode.REQUIRE_HUMAN)
    forbidden = [(found, frozenset[Category]()) for found in NEAR_MISSES]
    forbidden.append((makers.evidence(), frozenset({Category.ALCOHOL})))
    with machines(database_url) as machine:
        one = machine()
        one.begin()
        for found, declared in forbidden:
            one.change_the_policy(by_people)
            one.submit(declared, 1, True)
            one.answer(-1, found)
            one.decide_again_by(Policy())
            one.submit_an_equal(0, True)
            if len(one.going) > 2:  # than those of the beginning: it looks for itself
                one.answer(-1, found)
        assert not any(job.approved_by for job in one.all)
        assert one.reached["taken from an equal one"] > len(forbidden) / 2
        one.teardown()


def test_the_machine_comes_to_all_that_it_tells_apart(database_url: str) -> None:
    approving, asking = Policy(mode=Mode.AUTO_APPROVE), Policy()
    nobody = frozenset[Category]()
    with machines(database_url) as machine:
        one = machine()
        one.begin()
        one.answer_well(0)
        one.lose_a_worker(0, 0, True)
        one.begin_an_attempt(0)
        one.answer_well(0)  # late, and to a job that runs elsewhere
        one.answer(0, makers.evidence(truncated=True))
        one.decide(0, "ada", Decision.APPROVED)
        one.submit(nobody, 1, True)
        one.change_the_policy(approving)
        one.answer_well(0)  # asked by the policy before
        one.submit(nobody, 1, True)
        one.answer(0, PermanentError("the model refuses"))
        one.review_again(0)
        one.forget_the_policy()
        one.begin_an_attempt(0)
        one.change_the_policy(asking)
        one.submit(nobody, 1, True)
        one.answer_well(0)  # asked in spite of the policy before
        one.submit(nobody, 1, False)
        one.change_the_policy(approving)
        one.let_the_deadline_pass(0, True)
        one.change_the_policy(asking)
        one.forget_the_policy()
        for losses in (0, 9):
            one.submit(nobody, 1, True)
            one.lose_a_worker(0, losses, True)
            one.renew(True)
        for mode in (Mode.AI_POWERED, Mode.AUTO_APPROVE):
            one.change_the_policy(asking)
            one.submit(nobody, 1, True)
            one.submit_one(one.all[-1].headline, nobody, 1, True)  # which waits
            one.change_the_policy(Policy(mode=Mode.REQUIRE_HUMAN))
            one.answer_well(-1)
            one.hold(-1, "ada")
            one.decide(-1, "bob", Decision.APPROVED)
            one.decide_again()
            one.let_a_hold_run_out(-1)
            one.decide_again_by(Policy(mode=mode))
            one.begin_an_attempt(-1)
        one.appeal(0)
        one.activate_an_older_version(0)
        one.nothing_is_approved_but_by_whom_it_may_be()
        one.teardown()
    assert {what for what, times in Reviews.reached.items() if times} == set(WHAT_IS_REACHED)
