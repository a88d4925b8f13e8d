"""How attempts end in the database: many in one transaction, again and again while the database is away.

The fence makes repetition harmless, and the policy by which a product is decided stays in force until the end that
it decided is committed.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar
from uuid import UUID

import structlog

from imprimatur import metrics, tracing
from imprimatur.errors import Unavailable
from imprimatur.gathering import LINGER_SECONDS, Gathering
from imprimatur.job import Claim, State
from imprimatur.policy import LivePolicy
from imprimatur.storage import conclusions, tenants
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion, Ended, Ending
from imprimatur.storage.database import Database

log = structlog.get_logger(__name__)

#: How long the end of an attempt is tried to be written while the database is away; and of a process that stops.
_INSIST_SECONDS = 60.0
_INSIST_WHEN_STOPPING_SECONDS = 2.0
#: Half of what a worker runs by default, as of claims: while these end, others begin. All at once would take turns.
_ENDED_TOGETHER = 32

_Result = TypeVar("_Result")

#: What an attempt makes of its job, by the policy in force at that moment or whatever that is.
Decide: TypeAlias = Callable[[LivePolicy], Conclusion] | Conclusion


@dataclass(frozen=True, kw_only=True)
class _Open:
    """An end to be decided and written."""

    claim: Claim
    decide: Decide
    spent: Spent
    leads_to: bytes | None


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What was written; without a job when the claim was lost before."""

    conclusion: Conclusion
    job: Ended | None


class Endings:
    """Writes the ends of attempts.

    Args:
        leads_to: the key of the evidence that an attempt was to make for others, too.
    """

    def __init__(self, database: Database, leads_to: Callable[[Claim], bytes | None] = lambda _: None) -> None:
        self._database = database
        self._leads_to = leads_to
        self._together: Gathering[_Open, _Written] = Gathering(
            "endings", self._write_all, most=_ENDED_TOGETHER, linger_seconds=LINGER_SECONDS
        )
        self._stopping = False

    def stop(self) -> None:
        """From here on, a caller that is cancelled has its end written all the same, and nothing is tried for long."""
        self._stopping = True

    async def write(self, claim: Claim, decide: Decide, spent: Spent) -> Conclusion | None:
        """Write an attempt's end; None when it does not count, or could not be written.

        Raises:
            what `decide` raises: nothing is written then.
        """
        try:
            with tracing.span("conclude"):
                end = _Open(claim=claim, decide=decide, spent=spent, leads_to=self._leads_to(claim))
                return await self._insist(end)
        except _NotApplied as fault:
            tracing.current().fail(fault.code)
            return None

    async def book(self, claim: Claim, conclusion: Conclusion, spent: Spent) -> None:
        """Note on the attempt alone how it ended and what it cost; the job is somebody else's by now."""
        try:
            async with self._database.begin() as tx:
                await conclusions.book(tx, [Ending(claim=claim, conclusion=conclusion, spent=spent)])
        except Unavailable:
            log.warning("an aborted attempt could not be booked")

    async def _insist(self, end: _Open) -> Conclusion:
        began = time.monotonic()
        pause, repeated = 0.1, False
        while True:
            try:
                written = await self._come_what_may(self._together.put(end))
            except Unavailable:
                if time.monotonic() - began > self._insist_seconds:
                    log.error("the end of an attempt could not be written; its lease will run out")  # noqa: TRY400
                    raise _NotApplied("not_written") from None
                await self._come_what_may(asyncio.ensure_future(asyncio.sleep(pause)))
                pause, repeated = min(2 * pause, 2.0), True
                continue
            if written.job is None:
                if not repeated:  # after an unknown commit the fence may be our own
                    metrics.fenced_writes.inc()
                    log.warning("a result was discarded: the job was cancelled or taken over")
                raise _NotApplied("unknown" if repeated else "fenced")
            _count(written.job, end.claim)
            return written.conclusion

    @property
    def _insist_seconds(self) -> float:
        return _INSIST_WHEN_STOPPING_SECONDS if self._stopping else _INSIST_SECONDS

    async def _come_what_may(self, answer: "asyncio.Future[_Result]") -> "_Result":
        """Wait for it. What was worked out, and paid for, is written even when the process stops."""
        while not answer.done():
            try:
                await asyncio.wait({answer})
            except asyncio.CancelledError:
                if not self._stopping:
                    answer.cancel()
                    raise
                uncancel()
        return answer.result()

    async def _write_all(self, ends: Sequence[_Open], lock_seconds: float | None) -> list[_Written | Exception]:
        async with self._database.begin(lock_seconds=lock_seconds) as tx:
            by_policy = {end.claim.tenant_id for end in ends if not isinstance(end.decide, Conclusion)}
            live = await tenants.keep_policies(tx, by_policy) if by_policy else {}
            decided = [_decided(end, live) for end in ends]
            jobs = iter(await conclusions.conclude(tx, [one for one in decided if isinstance(one, Ending)]))
        return [
            _Written(conclusion=one.conclusion, job=next(jobs)) if isinstance(one, Ending) else one for one in decided
        ]


def _decided(end: _Open, live: Mapping[UUID, LivePolicy]) -> Ending | Exception:
    """The end, or what kept it from being decided: that is its own attempt's, and no other's."""
    try:
        conclusion = end.decide if isinstance(end.decide, Conclusion) else end.decide(live[end.claim.tenant_id])
    except Exception as fault:  # noqa: BLE001  # raised to the attempt
        return fault
    return Ending(claim=end.claim, conclusion=conclusion, spent=end.spent, leads_to=end.leads_to)


class _NotApplied(Exception):
    """The end of an attempt moved no job: it was `fenced`, `not_written`, or it is `unknown` which of two tries did."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _count(job: Ended, claim: Claim) -> None:
    if job.state is State.QUEUED:
        return
    metrics.jobs_finished.labels(job.type, job.state).inc()
    if job.policy_triggered:
        metrics.decisions.labels(job.decision, job.policy_triggered).inc()
    seconds = (job.at - (claim.first_due_at or job.created_at)).total_seconds()
    metrics.submit_to_end_seconds.labels(job.type, job.priority.name.lower()).observe(seconds)


def uncancel() -> None:
    """This cancellation of the current task was ours and ends here."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
