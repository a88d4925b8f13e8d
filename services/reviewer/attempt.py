"""One attempt at one claimed job: run its task within its time-out, and write how it ended.

Whatever happens in here ends in exactly one conclusion, or in none when the job is not ours any more.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import structlog

from imprimatur import metrics, tracing
from imprimatur.errors import AttemptError, TimedOut, TransientError, Unavailable
from imprimatur.job import DEFAULTS, AttemptOutcome, Claim, Happening, Job, JobError, JobType, State, outcome_of
from imprimatur.retry import Again, after_error
from imprimatur.storage import claims
from imprimatur.storage.attempts import Spent
from imprimatur.storage.claims import Conclusion
from imprimatur.storage.database import Database, Transaction
from imprimatur.tracing import Attribute, Kind, SpanContext
from reviewer.leases import Leases
from reviewer.tasks import NotEnough, Task, Work

log = structlog.get_logger(__name__)

#: How long the end of an attempt is tried to be written while the database is away; and of a process that stops.
_INSIST_SECONDS = 60.0
_INSIST_WHEN_STOPPING_SECONDS = 2.0

_Decide = Callable[[Transaction], Awaitable[Conclusion]]


class Attempts:
    """Runs attempts of every job type."""

    def __init__(self, database: Database, leases: Leases, tasks: Mapping[JobType, Task]) -> None:
        self._database = database
        self._leases = leases
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
        ):
            if span.recording:
                span.set(_about(claim))
            conclusion = await self._run(claim)
            if span.recording and conclusion is not None:
                span.set(_end_of(conclusion))
            outcome = conclusion.outcome if conclusion else AttemptOutcome.CANCELLED
            seconds = time.perf_counter() - began
            log.info("an attempt ended", outcome=outcome, seconds=round(seconds, 3))
        metrics.attempt_seconds.labels(claim.type, outcome).observe(seconds)

    def stop(self) -> None:
        """From here on, an attempt that is cancelled hands its job back."""
        self._stopping = True

    async def _run(self, claim: Claim) -> Conclusion | None:
        try:
            return await self._to_its_end(claim, self._tasks[claim.type])
        except asyncio.CancelledError:
            if self._leases.taken(claim):
                _uncancel()
                tracing.current().fail("taken")
                await self._book_abandoned(claim)
                return None
            if self._stopping:
                _uncancel()
                return await self._write(claim, _HANDED_BACK, Spent())
            raise

    async def _to_its_end(self, claim: Claim, task: Task) -> Conclusion | None:
        began = time.monotonic()
        try:
            return await self._work(claim, task, in_full=False)
        except AttemptError as error:
            return await self._failed(claim, task, error, time.monotonic() - began)
        except Unavailable as fault:
            self._leases.concluding(claim)
            tracing.current().fail("database_away")
            log.warning("the database was away in the middle of an attempt; it is handed back", error=fault.message)
            return await self._write(claim, _DATABASE_AWAY, Spent())
        except Exception:
            log.exception("a task failed in a way it does not declare")
            unexpected = TransientError("the review failed unexpectedly; the operator's log says more", code="internal")
            return await self._failed(claim, task, unexpected, time.monotonic() - began)

    async def _work(self, claim: Claim, task: Task, *, in_full: bool) -> Conclusion | None:
        async def report(percent: int, stage: str, message: str) -> None:
            async with self._database.begin() as tx:
                await claims.report_progress(tx, claim, percent=percent, stage=stage, message=message)

        try:
            async with asyncio.timeout(claim.timeout_seconds) as clock:
                work = await task.run(claim, report, partial(_stopped, clock), in_full=in_full)
        except TimeoutError:
            raise TimedOut(f"the attempt took longer than its time-out of {claim.timeout_seconds:g} s") from None
        self._leases.concluding(claim)
        try:
            return await self._finish(claim, task, work)
        except NotEnough:
            self._leases.concluding(claim, really=False)
            return await self._work(claim, task, in_full=True)

    async def _finish(self, claim: Claim, task: Task, work: Work) -> Conclusion | None:
        async def write(tx: Transaction) -> Conclusion:
            return await task.conclude(tx, claim, work)

        return await self._write(claim, write, work.spent)

    async def _failed(self, claim: Claim, task: Task, error: AttemptError, after_seconds: float) -> Conclusion | None:
        self._leases.concluding(claim)
        tracing.current().fail(error.code)
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
            return await self._write(claim, _retry(error, step), _spent(error))

        async def give_up(tx: Transaction) -> Conclusion:
            return await task.give_up(tx, claim, error)

        return await self._write(claim, give_up, _spent(error))

    async def _book_abandoned(self, claim: Claim) -> None:
        try:
            async with self._database.begin() as tx:
                await claims.book(tx, claim, _TAKEN, Spent())
        except Unavailable:
            log.warning("an aborted attempt could not be booked")

    @property
    def _insist_seconds(self) -> float:
        return _INSIST_WHEN_STOPPING_SECONDS if self._stopping else _INSIST_SECONDS

    async def _write(self, claim: Claim, conclude: _Decide | Conclusion, spent: Spent) -> Conclusion | None:
        """Write the end; None when it does not count, or could not be written."""
        try:
            with tracing.span("conclude"):
                return await self._insist(claim, conclude, spent)
        except _NotApplied as fault:
            tracing.current().fail(fault.code)
            return None

    async def _insist(self, claim: Claim, conclude: _Decide | Conclusion, spent: Spent) -> Conclusion:
        """Write the end, again and again while the database is away; the fence makes repetition harmless."""
        began = time.monotonic()
        pause, repeated = 0.1, False
        while True:
            try:
                if repeated:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 2.0)
                async with self._database.begin() as tx:
                    conclusion = conclude if isinstance(conclude, Conclusion) else await conclude(tx)
                    job = await claims.conclude(tx, claim, conclusion, spent)
            except Unavailable:
                if time.monotonic() - began > self._insist_seconds:
                    log.error("the end of an attempt could not be written; its lease will run out")  # noqa: TRY400
                    raise _NotApplied("not_written") from None
                repeated = True
                continue
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
                _uncancel()  # the process stops; what was worked out, and paid for, is written all the same
                began, repeated = time.monotonic(), True
                continue
            if job is None:
                if not repeated:  # after an unknown commit the fence may be our own
                    metrics.fenced_writes.inc()
                    log.warning("a result was discarded: the job was cancelled or taken over")
                raise _NotApplied("unknown" if repeated else "fenced")
            _count(job, claim)
            return conclusion


class _NotApplied(Exception):
    """The end of an attempt moved no job: it was `fenced`, `not_written`, or it is `unknown` which of two tries did."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


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
    shown = conclusion.shown or {}
    decided = {f"imprimatur.{name}": str(shown[name]) for name in ("decision", "policy_triggered") if name in shown}
    return {"imprimatur.outcome": conclusion.outcome, "imprimatur.event": conclusion.happening, **decided}


def _spent(error: AttemptError) -> Spent:
    return Spent(
        engine=error.engine,
        input_tokens=error.input_tokens,
        output_tokens=error.output_tokens,
        cost_micros=error.cost_micros,
    )


def _retry(error: AttemptError, step: Again) -> Conclusion:
    return Conclusion(
        happening=Happening.RETRY_SCHEDULED,
        outcome=outcome_of(error),
        spends_attempt=step.spends_attempt,
        delay_seconds=step.delay_seconds,
        error=JobError.of(error),
        details={"error": error.code, "delay_seconds": f"{step.delay_seconds:.1f}"},
    )


def _count(job: Job, claim: Claim) -> None:
    if job.state is State.QUEUED:
        return
    metrics.jobs_finished.labels(job.type, job.state).inc()
    if job.policy_triggered:
        metrics.decisions.labels(job.decision, job.policy_triggered).inc()
    seconds = (job.updated_at - (claim.first_due_at or job.created_at)).total_seconds()
    metrics.submit_to_end_seconds.labels(job.type, job.priority.name.lower()).observe(seconds)


def _uncancel() -> None:
    """This cancellation was ours and ends here."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
