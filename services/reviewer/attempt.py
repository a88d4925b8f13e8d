"""One attempt at one claimed job: run its task within its time-out, and write how it ended.

Whatever happens in here ends in exactly one conclusion, or in none when the job is not ours any more.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import structlog

from imprimatur import metrics, tracing
from imprimatur.errors import AttemptError, NotBegun, TimedOut, TransientError, Unavailable
from imprimatur.job import DEFAULTS, AttemptOutcome, Claim, Happening, JobError, JobType, outcome_of
from imprimatur.retry import Again, after_error
from imprimatur.storage import claims
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion
from imprimatur.storage.database import Database
from imprimatur.tracing import Attribute, Kind, SpanContext
from reviewer.endings import Endings, uncancel
from reviewer.engines import Receipt, note_cost, receiving, timed_by
from reviewer.leases import Leases
from reviewer.tasks import HandedBack, NotEnough, Task
from reviewer.twins import Twins

log = structlog.get_logger(__name__)


class Attempts:
    """Runs attempts of every job type."""

    def __init__(self, database: Database, leases: Leases, tasks: Mapping[JobType, Task], twins: Twins) -> None:
        self._database = database
        self._leases = leases
        self._twins = twins
        self._endings = Endings(database, twins.led_by)
        self._tasks = tasks
        self._stopping = False

    async def run(self, claim: Claim) -> None:
        """Run one attempt to its end."""
        began = time.perf_counter()
        with (
            structlog.contextvars.bound_contextvars(
                job_id=str(claim.job_id), claim_no=claim.claim_no, tenant_id=str(claim.tenant_id)
            ),
            tracing.continued("review", SpanContext.read(claim.traceparent), kind=Kind.CONSUMER) as span,
            self._leases.held(claim),
            self._twins.known(claim),
            receiving() as receipt,
        ):
            if span.recording:
                span.set(_about(claim))
            conclusion = await self._run(claim, receipt)
            if span.recording and conclusion is not None:
                span.set(_end_of(conclusion))
            outcome = conclusion.outcome if conclusion else AttemptOutcome.CANCELLED
            seconds = time.perf_counter() - began
            log.info("an attempt ended", outcome=outcome, seconds=round(seconds, 3))
        metrics.attempt_seconds.labels(claim.type, outcome).observe(seconds)

    def stop(self) -> None:
        """From here on, an attempt that is cancelled hands its job back."""
        self._stopping = True
        self._endings.stop()

    async def _run(self, claim: Claim, receipt: Receipt) -> Conclusion | None:
        try:
            return await self._to_its_end(claim, self._tasks[claim.type], receipt)
        except asyncio.CancelledError:
            if self._leases.taken(claim):
                uncancel()
                tracing.current().fail("taken")
                await self._endings.book(claim, _TAKEN, Spent(**vars(receipt)))
                return None
            if self._stopping:
                uncancel()
                return await self._endings.write(claim, _HANDED_BACK, Spent(**vars(receipt)))
            raise

    async def _to_its_end(self, claim: Claim, task: Task, receipt: Receipt) -> Conclusion | None:
        began = time.monotonic()
        try:
            return await self._work(claim, task, receipt, in_full=False)
        except HandedBack as done:
            self._leases.concluding(claim)
            return done.conclusion
        except AttemptError as error:
            return await self._failed(claim, task, error, receipt, time.monotonic() - began)
        except Unavailable as fault:
            self._leases.concluding(claim)
            tracing.current().fail("database_away")
            log.warning("the database was away in the middle of an attempt; it is handed back", error=fault.message)
            return await self._endings.write(claim, _DATABASE_AWAY, Spent(**vars(receipt)))
        except Exception:
            log.exception("a task failed in a way it does not declare")
            unexpected = TransientError("the review failed unexpectedly; the operator's log says more", code="internal")
            return await self._failed(claim, task, unexpected, receipt, time.monotonic() - began)

    async def _work(self, claim: Claim, task: Task, receipt: Receipt, *, in_full: bool) -> Conclusion | None:
        async def report(percent: int, stage: str, message: str) -> None:
            async with self._database.begin() as tx:
                await claims.report_progress(tx, claim, percent=percent, stage=stage, message=message)

        try:
            async with asyncio.timeout(claim.timeout_seconds) as clock:
                with timed_by(clock.expired):
                    work = await task.run(claim, report, partial(_stopped, clock), in_full=in_full)
        except TimeoutError:
            raise TimedOut(f"the attempt took longer than its time-out of {claim.timeout_seconds:g} s") from None
        self._leases.concluding(claim)
        try:
            return await self._endings.write(claim, partial(task.conclude, claim, work), _all(work.spent, receipt))
        except NotEnough:
            self._leases.concluding(claim, really=False)
            note_cost(**asdict(work.spent))
            return await self._work(claim, task, receipt, in_full=True)

    async def _failed(
        self, claim: Claim, task: Task, error: AttemptError, receipt: Receipt, after_seconds: float
    ) -> Conclusion | None:
        self._leases.concluding(claim)
        tracing.current().fail(error.code)
        if isinstance(error, NotBegun):
            metrics.attempts_postponed.labels(claim.type, error.code).inc()
            log.info("an attempt is postponed", code=error.code, seconds=round(error.retry_after_seconds, 3))
        else:
            metrics.attempt_errors.labels(claim.type, error.code).inc()
            log.warning("an attempt failed", code=error.code, error=error.message)
        step = after_error(
            error,
            attempts_before=claim.attempts,
            max_attempts=claim.max_attempts,
            remaining_seconds=claim.remaining_seconds - after_seconds,
            backoff=DEFAULTS[claim.type].backoff,
            jitter=random.random(),  # noqa: S311  # spreads retries, guards nothing
        )
        if isinstance(step, Again):
            return await self._endings.write(claim, _retry(error, step), _all(_spent(error), receipt))
        return await self._endings.write(claim, partial(task.give_up, claim, error), _all(_spent(error), receipt))


_HANDED_BACK = Conclusion(
    happening=Happening.HANDED_BACK,
    outcome=AttemptOutcome.HANDED_BACK,
    spends_attempt=False,
    details={"reason": "the worker is stopping"},
)
_DATABASE_AWAY = Conclusion(
    happening=Happening.HANDED_BACK,
    outcome=AttemptOutcome.HANDED_BACK,
    spends_attempt=False,
    delay_seconds=1.0,
    details={"reason": "the database was out of reach"},
)
_TAKEN = Conclusion(happening=Happening.CANCELLED, outcome=AttemptOutcome.CANCELLED, spends_attempt=False)


@contextmanager
def _stopped(clock: asyncio.Timeout) -> Iterator[None]:
    """Inside the block the clock does not run; afterwards it has as long as it had before."""
    ends_at = clock.when()
    assert ends_at is not None, "it is not stopped twice"
    stopped_at = time.monotonic()
    clock.reschedule(None)
    try:
        yield
    finally:
        clock.reschedule(ends_at + time.monotonic() - stopped_at)


def _about(claim: Claim) -> dict[str, Attribute]:
    return {
        "imprimatur.job.id": str(claim.job_id),
        "imprimatur.job.type": claim.type,
        "imprimatur.tenant.id": str(claim.tenant_id),
        "imprimatur.claim_no": claim.claim_no,
        "imprimatur.attempt": claim.attempts + 1,
        "imprimatur.losses": claim.losses,
    }


def _end_of(conclusion: Conclusion) -> dict[str, Attribute]:
    told: dict[str, Attribute] = {
        "imprimatur.outcome": conclusion.outcome,
        "imprimatur.event": conclusion.happening,
    }
    if conclusion.shown is not None:
        told["imprimatur.decision"] = conclusion.shown.decision
        told["imprimatur.policy_triggered"] = conclusion.shown.policy_triggered
    return told


def _all(spent: Spent, receipt: Receipt) -> Spent:
    """What the last examination of an attempt has cost, and what came before it."""
    return Spent(
        engine=spent.engine or receipt.engine,
        input_tokens=spent.input_tokens + receipt.input_tokens,
        output_tokens=spent.output_tokens + receipt.output_tokens,
        cost_micros=spent.cost_micros + receipt.cost_micros,
    )


def _spent(error: AttemptError) -> Spent:
    return Spent(
        engine=error.engine,
        input_tokens=error.input_tokens,
        output_tokens=error.output_tokens,
        cost_micros=error.cost_micros,
    )


def _retry(error: AttemptError, step: Again) -> Conclusion:
    if isinstance(error, NotBegun):
        return Conclusion(
            happening=Happening.HANDED_BACK,
            outcome=outcome_of(error),
            spends_attempt=step.spends_attempt,
            delay_seconds=step.delay_seconds,
            details={"reason": error.message, "delay_seconds": f"{step.delay_seconds:.1f}"},
        )
    return Conclusion(
        happening=Happening.RETRY_SCHEDULED,
        outcome=outcome_of(error),
        spends_attempt=step.spends_attempt,
        delay_seconds=step.delay_seconds,
        error=JobError.of(error),
        details={"error": error.code, "delay_seconds": f"{step.delay_seconds:.1f}"},
    )
