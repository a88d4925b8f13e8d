"""JobService: accept, find, watch, cancel, retry, and say how the system is."""

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from gateway import appeals, holds, repeats, statistics, submissions, validation
from gateway.accepting import Accepting
from gateway.access import Caller, caller
from gateway.deadlines import allowed_seconds
from gateway.dispatcher import Dispatcher
from gateway.errors import known, status_of
from gateway.paging import foreign_token, position_of, token_of
from gateway.quotas import Quotas, Screening
from gateway.validation import id_of, job_not_found
from gateway.watching import Watchtower
from imprimatur import metrics
from imprimatur.broker import Broker
from imprimatur.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImprimaturError,
    InvalidRequest,
    OutOfRange,
    RequestError,
)
from imprimatur.guard import Guard
from imprimatur.job import RETRYABLE, Job, NewJob, State
from imprimatur.retention import Retention
from imprimatur.storage import attempts, jobs
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.keys import Ruling, Verdict
from imprimatur.v1 import job_service_pb2 as pb
from imprimatur.v1.job_service_pb2_grpc import JobServiceServicer
from imprimatur.wire.jobs import event_to_wire, job_to_wire

_DAY = timedelta(hours=24)
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)
_SNAPSHOT_COMPLETE = pb.WatchJobsResponse(snapshot_complete=True).SerializeToString()
#: Of a large batch so many are worked on before others have a turn of the event loop.
_AT_A_STRETCH = 25
_Item = TypeVar("_Item")
_VERSION = re.compile(r"[0-9]{1,18}")


class Jobs(JobServiceServicer):
    """The service for those who have work reviewed."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        dispatcher: Dispatcher,
        watchtower: Watchtower,
        *,
        quotas: Quotas,
        guard: Guard,
        retention: Retention,
    ) -> None:
        self._database = database
        self._broker = broker
        self._dispatcher = dispatcher
        self._watchtower = watchtower
        self._quotas = quotas
        self._guard = guard
        self._retention = retention
        self._estimates = statistics.Estimates(database)
        self._accepting = Accepting(database, dispatcher, quotas, self._estimates)

    # --- accept ------------------------------------------------------------------------------------------

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.SubmitJobResponse:
        """Accept one job."""
        who = caller()
        new = self._checked(request, who, self._quotas.screen(who), rpc="SubmitJob")
        if isinstance(new, RequestError):
            raise new
        return _accepted(await self._accepting.one(who, new), who)

    async def BatchSubmitJobs(self, request: pb.BatchSubmitJobsRequest, context: Any) -> pb.BatchSubmitJobsResponse:
        """Accept up to 1,000 jobs, each for itself."""
        who = caller()
        if not 1 <= len(request.items) <= submissions.MOST_BATCH_ITEMS:
            count, most = len(request.items), submissions.MOST_BATCH_ITEMS
            raise InvalidRequest("items", f"has {count} entries, must have 1 to {most}", reason="BATCH_SIZE")
        screening = self._quotas.screen(who)
        outcomes = [
            self._checked(item, who, screening, rpc="BatchSubmitJobs") async for item in _unhurried(request.items)
        ]
        good = [outcome for outcome in outcomes if isinstance(outcome, NewJob)]
        submitted = iter(await self._accepting.batch(who, good))
        return pb.BatchSubmitJobsResponse(
            results=[
                _batch_result(next(submitted) if isinstance(outcome, NewJob) else outcome, who, f"items[{place}].")
                async for place, outcome in _unhurried(enumerate(outcomes))
            ]
        )

    def _checked(
        self, item: pb.SubmitJobRequest, who: Caller, screening: Screening, *, rpc: str
    ) -> NewJob | RequestError:
        """The job that is asked for; or why there can be none, for which it need not be looked at where the tenant is
        at its rate."""
        if (refusal := screening.refusal(item.request_id)) is not None:
            return refusal
        try:
            return submissions.new_job(item, who, self._guard, datetime.now(UTC))
        except ImprimaturError as fault:
            screening.invalid(item.request_id)
            return known(fault, rpc=rpc)

    # --- find --------------------------------------------------------------------------------------------

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        """One job, with its attempts."""
        job_id = id_of(request.job_id)
        async with self._database.read() as reader:
            job = await jobs.find(reader, caller().owner, job_id)
            if job is None:
                raise job_not_found(job_id, self._retention)
            history = await attempts.of_job(reader, job_id, seen_by=caller().owner.user_id)
        return pb.GetJobResponse(job=job_to_wire(job, caller().tenant_name, history))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """A page of jobs, newest first."""
        size = validation.page_size_within(request.page_size, 50, 500)
        wanted = validation.filter_of(request.filter)
        position = position_of(request.page_token, 1, request.filter)
        before = _id_in_token(position[0]) if position else None
        async with self._database.read() as reader:
            found = await jobs.list_newest(reader, caller().owner, wanted, before=before, limit=size + 1)
        page = found[:size]
        return pb.ListJobsResponse(
            jobs=[job_to_wire(job, caller().tenant_name) for job in page],
            next_page_token=token_of([str(page[-1].id)], request.filter) if len(found) > size else "",
        )

    async def ListJobEvents(self, request: pb.ListJobEventsRequest, context: Any) -> pb.ListJobEventsResponse:
        """A page of a job's history, oldest first."""
        job_id = id_of(request.job_id)
        size = validation.page_size_within(request.page_size, 100, 1000)
        position = position_of(request.page_token, 2)
        if position and (position[0] != str(job_id) or not _VERSION.fullmatch(position[1])):
            raise foreign_token()
        after = int(position[1]) if position else 0
        async with self._database.read() as reader:
            if await jobs.find(reader, caller().owner, job_id) is None:
                raise job_not_found(job_id, self._retention)
            found = await jobs.history(reader, job_id, after_version=after, limit=size + 1)
        page = found[:size]
        more = token_of([str(job_id), str(page[-1].version)]) if len(found) > size else ""
        return pb.ListJobEventsResponse(events=[event_to_wire(event) for event in page], next_page_token=more)

    # --- watch -------------------------------------------------------------------------------------------

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncGenerator[Any]:
        """The job now and whenever it changes, up to its terminal state. Gives WatchJobResponses as bytes."""
        job_id = id_of(request.job_id)
        tenant = caller().tenant_name
        after_version = request.after_version
        first = True
        within = allowed_seconds(context)
        async with aclosing(self._watchtower.watch(caller().owner, job_id, open_within_seconds=within)) as versions:
            async for version in versions:
                if first and after_version > version.number:
                    raise _from_the_future(after_version, version.number)
                first = False
                if version.number > after_version or version.terminal:
                    yield version.answer(tenant)
        if first:
            raise job_not_found(job_id, self._retention)

    async def WatchJobs(self, request: pb.WatchJobsRequest, context: Any) -> AsyncGenerator[Any]:
        """Every matching job now, and every change after which one matches. Gives WatchJobsResponses as bytes."""
        tenant = caller().tenant_name
        wanted = validation.filter_of(request.filter)
        within = allowed_seconds(context)
        follow = self._watchtower.follow(caller().owner, wanted, tenant=tenant, open_within_seconds=within)
        async with aclosing(follow) as answers:
            async for answer in answers:
                yield _SNAPSHOT_COMPLETE if answer is None else answer

    # --- stop and repeat ---------------------------------------------------------------------------------

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        """Cancel a job that is not finished."""
        job_id = id_of(request.job_id)
        validation.without_nul(request)
        reason = validation.text_within(request.reason, "reason", 1000)
        async with self._database.begin() as tx:
            job = await holds.cancel(tx, caller(), job_id, reason)
            found = job or await jobs.find(tx, caller().owner, job_id)
        if found is None:
            raise job_not_found(job_id, self._retention)
        if found.state is not State.CANCELLED:
            raise FailedPrecondition(
                f"the job has {found.state} and cannot be cancelled any more",
                reason="JOB_FINISHED",
                state=found.state,
            )
        if job is not None:
            metrics.jobs_finished.labels(job.type, job.state).inc()
        return pb.CancelJobResponse(job=job_to_wire(found, caller().tenant_name))

    async def RetryJob(self, request: pb.RetryJobRequest, context: Any) -> pb.RetryJobResponse:
        """Submit a failed or cancelled job's task again, as a new job."""
        who = caller()
        job_id = id_of(request.job_id)
        validation.without_nul(request)
        request_id = validation.text_within(request.request_id, "request_id", 200)
        async with self._database.read() as reader:
            old = await jobs.content_of(reader, who.owner, job_id)
        if old is None:
            raise job_not_found(job_id, self._retention)
        if old.state not in RETRYABLE:
            raise FailedPrecondition(
                f"the job is {old.state}; only failed and cancelled jobs can be tried again",
                reason="JOB_NOT_RETRYABLE",
                state=old.state,
            )
        new = repeats.retry_of(old, request_id, fresh=request.fresh)
        return pb.RetryJobResponse(job=_accepted(await self._accepting.one(who, new), who).job)

    async def AppealJob(self, request: pb.AppealJobRequest, context: Any) -> pb.AppealJobResponse:
        """Have a decided creative decided again, by another person."""
        who = caller()
        job_id = id_of(request.job_id)
        validation.without_nul(request)
        new = await appeals.appeal_against(
            self._database,
            who,
            job_id,
            reason=validation.text_within(request.reason, "reason", 5000, required=True),
            request_id=validation.text_within(request.request_id, "request_id", 200),
            retention=self._retention,
        )

        async def write(tx: Transaction, admitted: Sequence[NewJob], room: int) -> list[Submitted]:
            most = self._dispatcher.most_of_a_tenant
            return [await appeals.store(tx, who, one, release_at_once=room, most_of_a_tenant=most) for one in admitted]

        submitted = await self._accepting.one(who, new, write)
        if isinstance(submitted, Submitted):
            appeals.count(submitted)
        return pb.AppealJobResponse(job=_accepted(submitted, who).job)

    async def RetryJobs(self, request: pb.RetryJobsRequest, context: Any) -> pb.RetryJobsResponse:
        """Retry what matches and is not retried yet, up to a limit."""
        answer = await repeats.retry_jobs(self._database, self._quotas, caller(), request)
        self._dispatcher.wake()
        return answer

    async def ReviewJobsAgain(self, request: pb.ReviewJobsAgainRequest, context: Any) -> pb.ReviewJobsAgainResponse:
        """Send back to the engine what waits because it failed, up to a limit."""
        answer = await repeats.review_jobs_again(self._database, caller(), request)
        self._dispatcher.wake()
        return answer

    # --- the system --------------------------------------------------------------------------------------

    async def GetSystemStatus(self, request: pb.GetSystemStatusRequest, context: Any) -> pb.GetSystemStatusResponse:
        """Whether the system can do its work now, and how much waits."""
        return await statistics.system_status(self._database, self._broker, self._estimates, caller().owner)

    async def GetStats(self, request: pb.GetStatsRequest, context: Any) -> pb.GetStatsResponse:
        """What was created and finished in a window of time."""
        now = datetime.now(UTC)
        until = validation.instant_of(request.until, "until") or now
        since = validation.instant_of(request.since, "since") or until - min(_DAY, until - _FIRST_INSTANT)
        if not timedelta(0) < until - since <= timedelta(days=366):
            raise InvalidRequest("since", "must be before until, by 366 days at most")
        return await statistics.stats(self._database, caller().owner, since, until)


def _id_in_token(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise foreign_token() from None


def _accepted(submitted: Submitted | RequestError, who: Caller, path: str = "") -> pb.SubmitJobResponse:
    if isinstance(submitted, RequestError):
        raise submitted
    if not submitted.same_content:
        mine = who.owner.user_id in ("", submitted.job.user_id)
        raise AlreadyExists(
            f"{path}request_id: stands for a job with other content already; use a new request_id",
            reason="REQUEST_ID_REUSED",
            field=f"{path}request_id",
            **({"job_id": str(submitted.job.id)} if mine else {}),
        )
    if submitted.refused is not None:
        raise _refusal(submitted.job, submitted.refused, who)
    return pb.SubmitJobResponse(job=job_to_wire(submitted.job, who.tenant_name), already_accepted=not submitted.created)


def _refusal(job: Job, ruling: Ruling, who: Caller) -> RequestError:
    """Why a job's key, or its revision, does not let it in."""
    told = {"job_id": str(job.id)} if who.owner.owns(job) else {}
    if ruling.verdict is Verdict.BUSY:
        message = "an unfinished job has the same concurrency key; wait for its end, or ask to supersede it"
        return AlreadyExists(message, reason="KEY_BUSY", **told)
    told["revision"] = str(ruling.revision)
    if ruling.verdict is Verdict.OUTDATED:
        message = f"revision {ruling.revision} was accepted before, which is newer"
        return AlreadyExists(message, reason="REVISION_OUTDATED", **told)
    message = f"revision {ruling.revision} was accepted before, with other content; use a higher one"
    return AlreadyExists(message, reason="REVISION_REUSED", **told)


async def _unhurried(items: Iterable[_Item]) -> AsyncIterator[_Item]:
    """The same items; after every few of them others have a turn of the event loop."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_A_STRETCH == 0:
            await asyncio.sleep(0)


def _batch_result(submitted: Submitted | RequestError, who: Caller, path: str) -> pb.BatchSubmitJobsResult:
    if isinstance(submitted, RequestError):
        return pb.BatchSubmitJobsResult(error=status_of(submitted.within(path)))
    try:
        return pb.BatchSubmitJobsResult(accepted=_accepted(submitted, who, path))
    except RequestError as error:
        return pb.BatchSubmitJobsResult(error=status_of(error))


def _from_the_future(after_version: int, version: int) -> RequestError:
    return OutOfRange(
        f"after_version: is {after_version}, but the job is at version {version}",
        reason="VERSION_FROM_THE_FUTURE",
        field="after_version",
    )
