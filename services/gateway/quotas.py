"""What one tenant may take of this system, and what becomes of the rest: jobs a second, open jobs, images. What it has
in hand, is `load`.

A refusal says which limit it was, how much it is, and when to come again. Rates are counted by each gateway process
for itself, so that of n gateways a tenant gets n times as much. Open jobs are counted in the database, by each gateway
again and again and not at each submit; the limit may so be exceeded by what the other gateways accept between two
counts. An accepted request id is answered whatever the limits are, and costs nothing, as a refusal does; all else that
is looked at counts towards the rate, whatever becomes of it. What the rate has no room for is not looked at, unless it
has a request id.
"""

import asyncio
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import structlog

from gateway.access import Caller
from gateway.reading import SharedReads
from imprimatur import metrics
from imprimatur.errors import InvalidRequest, RequestError, ResourceExhausted
from imprimatur.job import Job, NewJob
from imprimatur.storage import acceptance, jobs
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.database import Database
from imprimatur.storage.keys import Request
from imprimatur.tenancy import Limits

log = structlog.get_logger(__name__)

#: A count of open jobs older than this is taken again, while the tenant submits.
COUNT_SECONDS = 2.0
#: At the limit, sooner: jobs end.
_COUNT_AT_LIMIT_SECONDS = 0.5
#: When to come again where nothing says how soon there is room.
_COME_AGAIN_SECONDS = 2.0
#: Tenants remembered. Of one forgotten the jobs are counted anew, and its rate begins with a whole burst.
_MOST_ACCOUNTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the settings allow. 0: no limit.

    `burst_seconds`: a tenant that was quiet may submit so many seconds' worth at once.
    """

    submits_per_second: float = 1000.0
    burst_seconds: float = 10.0
    open_jobs: int = 100_000
    running_jobs: int = 0  #: of one tenant, which the dispatcher heeds
    streams: int = 5000  #: of one tenant, per process
    all_streams: int = 12_000  #: of one process
    asset_bytes: int = 1024**3  #: kept for one tenant

    def of(self, tenant: Limits) -> "Allowance":
        """With a tenant's own limits."""
        own = {name: limit for name, limit in vars(tenant).items() if limit is not None}
        return replace(self, **own) if own else self


class Quotas:
    """The accounts of all tenants at this gateway."""

    def __init__(self, database: Database, allowance: Allowance) -> None:
        self._database = database
        self._allowance = allowance
        self._accounts: OrderedDict[uuid.UUID, _Account] = OrderedDict()
        self._counts = SharedReads(self._count)
        self._repeats = SharedReads(self._accepted_before)

    async def stop(self) -> None:
        """End what is being read."""
        await self._counts.stop()
        await self._repeats.stop()

    # --- submits -----------------------------------------------------------------------------------------

    def screen(self, who: Caller) -> "Screening":
        """Which of the jobs that one request asks for are looked at."""
        return Screening(self._account_of(who.tenant_id), self._allowance.of(who.limits))

    async def admit(self, who: Caller, new_jobs: Sequence[NewJob]) -> "Admission":
        """Which of these may be stored now, in their order, and the answers to the others.

        Raises:
            Unavailable: what is open could not be counted.
        """
        account, allowed = self._account_of(who.tenant_id), self._allowance.of(who.limits)
        await self._keep_counted(account, allowed, len(new_jobs))
        if account.room(allowed) >= len(new_jobs):
            return Admission(account, len(new_jobs), new_jobs, {})
        answers: dict[uuid.UUID, Submitted | RequestError] = {}
        known = await self._repeats.of((new.tenant_id, new.request_id) for new in new_jobs if new.request_id)
        for new in new_jobs:
            if new.request_id and (found := known.get((new.tenant_id, new.request_id))):
                answers[new.id] = acceptance.again(new, *found)
        fresh = [new for new in new_jobs if new.id not in answers]
        taken = int(min(len(fresh), account.room(allowed)))
        for place, new in enumerate(fresh[taken:], start=taken + 1):
            answers[new.id] = account.refusal(allowed, place)
        return Admission(account, taken, fresh[:taken], answers)

    async def admit_up_to(self, who: Caller, wanted: int) -> "Admission":
        """Room for some of so many jobs that are made elsewhere, and at least for one.

        Raises:
            ResourceExhausted: there is none.
            Unavailable: what is open could not be counted.
        """
        account, allowed = self._account_of(who.tenant_id), self._allowance.of(who.limits)
        await self._keep_counted(account, allowed, wanted)
        taken = int(min(wanted, account.room(allowed)))
        if not taken:
            raise account.refusal(allowed, place=1)
        return Admission(account, taken, (), {})

    async def _keep_counted(self, account: "_Account", allowed: Allowance, wanted: int) -> None:
        if not allowed.open_jobs:
            return
        age = account.count_age
        if math.isinf(age):
            await self._recount(account)
        elif age > COUNT_SECONDS and not account.being_counted:
            account.hold(asyncio.create_task(self._recount(account)))
        if account.open + wanted > allowed.open_jobs and age > _COUNT_AT_LIMIT_SECONDS:
            await self._recount(account)

    async def _recount(self, account: "_Account") -> None:
        began, settled = time.monotonic(), account.settled
        found = await self._counts.of([account.tenant_id])
        account.counted(found.get(account.tenant_id, 0), at=began, settled=settled)

    async def _count(self, tenants: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
        async with self._database.read() as reader:
            return await jobs.count_open(reader, tenants)

    async def _accepted_before(self, requests: Collection[Request]) -> dict[Request, tuple[Job, bytes]]:
        async with self._database.read() as reader:
            return await acceptance.accepted_before(reader, requests)

    def _account_of(self, tenant_id: uuid.UUID) -> "_Account":
        account = self._accounts.pop(tenant_id, None) or _Account(tenant_id=tenant_id)
        self._accounts[tenant_id] = account
        if len(self._accounts) > _MOST_ACCOUNTS:
            self._accounts.popitem(last=False)
        return account

    # --- images ------------------------------------------------------------------------------------------

    def check_asset_bytes(self, who: Caller, kept: int) -> None:
        """Refuse what would make the images kept for this caller's tenant so many bytes.

        Raises:
            ResourceExhausted: it is more than the tenant may keep. No waiting helps.
        """
        most = self._allowance.of(who.limits).asset_bytes
        if most and kept > most:
            metrics.limit_refusals.labels("asset_bytes").inc()
            raise ResourceExhausted(
                f"the limit is reached: at most {most:,} bytes of images are kept for this tenant",
                reason="ASSET_BYTES_EXCEEDED",
                limit="asset_bytes",
                value=str(most),
            )


@dataclass(kw_only=True)
class _Account:
    """What one tenant has taken here."""

    tenant_id: uuid.UUID
    settled: int = 0  #: jobs made here, ever
    _under_way: int = 0  #: admitted and not yet settled
    _tokens: float = math.inf  #: jobs that the rate allows now
    _filled_at: float = field(default_factory=time.monotonic)
    _count: int = 0
    _counted_at: float = -math.inf
    _settled_at_count: int = 0
    _counting: asyncio.Task[None] | None = None

    @property
    def count_age(self) -> float:
        """Seconds since the database was asked."""
        return time.monotonic() - self._counted_at

    @property
    def being_counted(self) -> bool:
        """Whether that is under way in the background."""
        return self._counting is not None and not self._counting.done()

    @property
    def open(self) -> int:
        """Queued and running jobs, as far as is known here; what is being written may be counted twice."""
        return self._count + self.settled - self._settled_at_count + self._under_way

    def counted(self, count: int, *, at: float, settled: int) -> None:
        """The database's answer to a question asked then, when so many were settled here."""
        if at > self._counted_at:
            self._count, self._counted_at, self._settled_at_count = count, at, settled

    def hold(self, counting: asyncio.Task[None]) -> None:
        """Being counted in the background; a failure shows at the next submit that needs the count."""
        self._counting = counting
        counting.add_done_callback(_retrieved)

    def tokens(self, allowed: Allowance) -> float:
        """How many jobs the rate lets be submitted now."""
        now = time.monotonic()
        rate, most = allowed.submits_per_second, max(1.0, allowed.submits_per_second * allowed.burst_seconds)
        self._tokens = min(most, self._tokens + rate * (now - self._filled_at)) if rate else math.inf
        self._filled_at = now
        return self._tokens

    def room(self, allowed: Allowance) -> float:
        """How many jobs may be submitted now."""
        return max(0.0, min(self.tokens(allowed), self._open_room(allowed)))

    def spend_one(self, allowed: Allowance) -> None:
        """One was looked at in vain. Nobody comes to owe for that."""
        tokens = self.tokens(allowed)
        self._tokens = min(tokens, max(0.0, tokens - 1.0))

    def take(self, number: int) -> None:
        """So many are being written."""
        self._tokens -= number
        self._under_way += number

    def settle(self, number: int, *, spent: int, made: int) -> None:
        """Of so many taken, so many count towards the rate, and these became jobs."""
        self._tokens += number - spent
        self._under_way -= number
        self.settled += made

    def refusal(self, allowed: Allowance, place: int) -> ResourceExhausted:
        """For the `place`-th (from 1) of those for whom there is no room now."""
        if self._open_room(allowed) < self._tokens:
            what = "jobs of this tenant are queued or running"
            return refused("open_jobs", allowed.open_jobs, what, "TOO_MANY_OPEN_JOBS")
        return self.too_fast(allowed, place)

    def too_fast(self, allowed: Allowance, place: int) -> ResourceExhausted:
        """For the `place`-th (from 1) of those for whom the rate has no room now."""
        rate = allowed.submits_per_second
        wait = max(0.05, (place - self._tokens) / rate)
        what = "jobs a second may be submitted by this tenant"
        return refused("submits_per_second", rate, what, "SUBMIT_RATE_EXCEEDED", wait_seconds=wait)

    def _open_room(self, allowed: Allowance) -> float:
        return allowed.open_jobs - self.open if allowed.open_jobs else math.inf


class Screening:
    """The jobs that one request asks for, in their order, before anything in them is looked at."""

    def __init__(self, account: _Account, allowed: Allowance) -> None:
        self._account = account
        self._allowed = allowed
        self._ahead = 0  #: without a request id, and not found to be invalid

    def refusal(self, request_id: str) -> ResourceExhausted | None:
        """The answer to the next one, if the rate has no room for it and no job can have been accepted for it before:
        whatever it holds, it would not be stored now."""
        if request_id:
            return None
        self._ahead += 1
        if self._account.tokens(self._allowed) >= self._ahead:
            return None
        return self._account.too_fast(self._allowed, self._ahead)

    def invalid(self, request_id: str) -> None:
        """That one is no job; it counts towards the rate at once."""
        self._ahead -= not request_id
        self._account.spend_one(self._allowed)


class Admission:
    """Jobs that may be stored; inside a `with` block, at whose end the quota is settled.

    Attributes:
        number: how many that are.
        jobs: those to store.
    """

    def __init__(
        self,
        account: _Account,
        number: int,
        admitted: Sequence[NewJob],
        answers: Mapping[uuid.UUID, Submitted | RequestError],
    ) -> None:
        self.number = number
        self.jobs = admitted
        self._account = account
        self._answers = answers
        self._spent = self._made = 0  # what raises on the way has cost nothing
        account.take(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is asyncio.CancelledError:  # of a caller who went away, what was begun is written all the same
            self._spent = self._made = self.number
        self._account.settle(self.number, spent=self._spent, made=self._made)

    def stored(self, made: int) -> None:
        """So many jobs were made elsewhere."""
        self._spent = self._made = made

    def answers(
        self, new_jobs: Sequence[NewJob], stored: Sequence[Submitted | RequestError]
    ) -> list[Submitted | RequestError]:
        """One for each of all that were asked for, in their order; `stored`: what became of those to store."""
        looked_at = [one for one in stored if isinstance(one, Submitted)]
        invalid = sum(isinstance(one, InvalidRequest) for one in stored)
        self._spent = sum(not one.repeated for one in looked_at) + invalid
        self._made = sum(one.created for one in looked_at)
        rest = iter(stored)
        return [self._answers[new.id] if new.id in self._answers else next(rest) for new in new_jobs]


def refused(
    limit: str, value: float, what: str, reason: str, *, wait_seconds: float = _COME_AGAIN_SECONDS
) -> ResourceExhausted:
    """What a tenant is told that is at one of its limits; it is counted."""
    metrics.limit_refusals.labels(limit).inc()
    most = f"{value:.15g}"  # not 1e+06
    message = f"the limit is reached: at most {most} {what}; try again in {wait_seconds:.1f} s"
    return ResourceExhausted(message, reason=reason, limit=limit, value=most).retry_after(wait_seconds)


def _retrieved(counting: asyncio.Task[None]) -> None:
    if not counting.cancelled() and (fault := counting.exception()) is not None:
        log.warning("open jobs could not be counted now", reason=str(fault))
