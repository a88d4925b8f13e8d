"""Nothing is approved that must not be, whatever engines come with and whatever happens meanwhile, in whatever order.

Real attempts by the reviewer's own code on both databases, driven by Hypothesis: claims, losses, cancellations,
retries, changes of the policy, late results, people. An attempt stands still inside its engine until a rule lets that
answer; so policies change, and jobs are lost and taken, under attempts that go on. What must have come of each answer
is said by `tests.unit.findings`, which knows nothing of the decision table.
"""

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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
from sqlalchemy import delete, select, update

from gateway.recovery import give_up
from imprimatur.errors import (
    BudgetExhausted,
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
from imprimatur.storage import claims, clock, dispatch, jobs, people, repeats, schema, tenants
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.people import HumanDecision
from imprimatur.storage.repeats import Scope
from imprimatur.v1 import creative_pb2 as pb
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
from tests.unit.findings import deserves_approval, evidences, mostly, near_misses, some_categories, usable
from tests.unit.policies import policies

T = TypeVar("T")

BRIEF = settings(
    max_examples=30,
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
#: The default ones in each mode more often than any other.
live_policies = mostly(st.sampled_from(Mode).map(lambda mode: Policy(mode=mode)), policies())
numbers = st.integers(0, 3)
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
    """One job, and who may have approved it."""

    id: uuid.UUID
    declared: frozenset[Category]
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
        self.remembered: Policy | None = None  #: by the reviewer
        self.stored: dict[uuid.UUID, Stored] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        async def work() -> None:
            async with self.database.begin() as tx:
                for table in reversed(schema.metadata.sorted_tables):
                    await tx.connection.execute(delete(table))
            self.owner = Owner(tenant_id=await makers.make_tenant(self.database))
            self.images = Images(self.database, Fetcher(STRICT), Darkroom(processes=1))
            twins = Twins(self.database, keep_seconds=0.0)
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
    @rule(declared=some_categories, max_attempts=st.integers(1, 2), begun=st.booleans())
    def submit(self, declared: frozenset[Category], max_attempts: int, begun: bool) -> None:
        creative = pb.Creative(
            creative_id=f"cr-{len(self.all)}",
            declared_categories=[to_wire(pb.Category, "CATEGORY", one) for one in sorted(declared)],
        )
        task = pb.CreativeReviewTask(creative=creative).SerializeToString()
        new = makers.new_job(self.owner.tenant_id, content=task, max_attempts=max_attempts)
        self.run(makers.submit(self.database, new))
        self.all.append(Seen(new.id, declared))
        if begun:
            self.begin_an_attempt(-1)

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
        async def work() -> None:
            async with self.database.begin() as tx:
                await tenants.put_policy(tx, self.owner.tenant_id, policy)

        self.run(work())
        self.policy = Policy.from_document(policy.document() | {"model": None}) if policy.model else policy
        if policy.model:  # the engine has none: what is about them is tested elsewhere
            self.change_the_policy(self.policy)

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

        if job is not None:
            self.reached["reviewed again"] += self.run(work(job))

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
        if going.task.done():
            self.expect(going, approved=self.policy.mode is Mode.AUTO_APPROVE, by="the mode alone")
        else:
            self.going.append(going)

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
        by_mode = self.policy.mode is Mode.AUTO_APPROVE and usable(answer)
        by_engine = self.policy.mode is Mode.AI_POWERED and deserves_approval(self.policy, going.job.declared, answer)
        self.note_what_came(going, answer, holds=holds, running=before.state is State.RUNNING)
        self.expect(
            going, approved=holds and (by_mode or by_engine), by="the mode" if by_mode else "the engine", holds=holds
        )

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
            assert not going.job.approved_by
            going.job.approved_by = by
            self.reached[f"approved by {by}"] += 1

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
    @rule(number=numbers, decision=st.sampled_from([Decision.APPROVED, Decision.REJECTED]))
    def decide(self, number: int, decision: Decision) -> None:
        job = self.one(number, State.AWAITING_REVIEW)

        async def work(job: Seen) -> None:
            async with self.database.begin() as tx:
                waiting = await people.lock_waiting(tx, self.owner, job.id, reviewer="ada")
                assert waiting is not None
                now = await clock.present(tx)
                made = HumanDecision(
                    reviewer="ada",
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
                    reviewer="ada",
                    decided_at=now,
                    agreement=Agreement.NO_ADVICE,
                )
                await people.decide(tx, waiting, made, result=result)

        if job is None:
            return
        self.run(work(job))
        if decision is Decision.APPROVED:
            job.approved_by = "a person"
            self.reached["approved by a person"] += 1

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
    for what in ("approved by the engine", "late", "lost"):
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
)


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
        one.decide(0, Decision.APPROVED)
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
        one.nothing_is_approved_but_by_whom_it_may_be()
        one.teardown()
    assert {what for what, times in Reviews.reached.items() if times} == set(WHAT_IS_REACHED)
