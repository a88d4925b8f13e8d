"""Watches that outlive their connection: they resume where they stopped, skip nothing final, repeat nothing old."""

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc

from imprimatur.client.calls import Calls, Patience
from imprimatur.client.errors import ClientError
from imprimatur.v1.job_pb2 import (
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    Job,
)
from imprimatur.v1.job_service_pb2 import (
    GetJobRequest,
    GetJobResponse,
    JobFilter,
    WatchJobRequest,
    WatchJobsRequest,
    WatchJobsResponse,
)

if TYPE_CHECKING:  # stubs of calls exist for the type checker only
    from imprimatur.v1.job_service_pb2_grpc import JobServiceAsyncStub

#: Nothing follows these.
TERMINAL_STATES = frozenset({JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED})

#: A watch over many jobs knows this many that ended, so as not to tell of one twice.
MOST_ENDED_REMEMBERED = 10_000

_ENDED_EARLY = "the stream ended before its time"


def is_terminal(job: Job) -> bool:
    """Whether nothing follows."""
    return job.state in TERMINAL_STATES


def is_settled(job: Job) -> bool:
    """Whether the machine's part is over: terminal, or a person decides (or has the engine look again)."""
    return is_terminal(job) or job.state == JOB_STATE_AWAITING_REVIEW


async def watch_one(
    calls: Calls, jobs: "JobServiceAsyncStub", job_id: str, after_version: int, patience_seconds: float | None
) -> AsyncGenerator[Job]:
    """The job's versions above `after_version`, rising, up to the terminal state."""
    seen = after_version
    patience = Patience(patience_seconds, now=time.monotonic())
    while True:
        lost = ClientError(grpc.StatusCode.UNAVAILABLE, _ENDED_EARLY)
        try:
            with calls.stream(jobs.WatchJob, WatchJobRequest(job_id=job_id, after_version=seen)) as stream:
                async for response in stream:
                    job = response.job
                    patience.renew(time.monotonic())
                    if job.version > seen or (job.version == seen and is_terminal(job)):
                        seen = job.version
                        yield job
                    if is_terminal(job):
                        return
        except ClientError as error:
            lost = error
        await patience.wait(lost)


class ManyJobs:
    """One watch over all jobs of a filter, with what must be remembered to resume it."""

    def __init__(
        self, calls: Calls, jobs: "JobServiceAsyncStub", job_filter: JobFilter, patience_seconds: float | None
    ) -> None:
        self._calls = calls
        self._jobs = jobs
        self._filter = job_filter
        self._patience = Patience(patience_seconds, now=time.monotonic())
        self._given: dict[str, int] = {}  # versions of unfinished jobs
        self._ended: OrderedDict[str, None] = OrderedDict()  # jobs given for the last time, newest last
        self._complete = False  # whether the marker was given

    async def changes(self) -> AsyncGenerator[WatchJobsResponse]:
        """The snapshot, its marker once, then the changes. Never ends by itself."""
        while True:
            lost = ClientError(grpc.StatusCode.UNAVAILABLE, _ENDED_EARLY)
            try:
                async with aclosing(self._one_stream()) as changes:
                    async for change in changes:
                        yield change
            except ClientError as error:
                lost = error
            await self._patience.wait(lost)

    async def _one_stream(self) -> AsyncGenerator[WatchJobsResponse]:
        missing = set(self._given)
        with self._calls.stream(self._jobs.WatchJobs, WatchJobsRequest(filter=self._filter)) as stream:
            async for response in stream:
                self._patience.renew(time.monotonic())
                if response.HasField("job"):
                    missing.discard(response.job.id)
                    if self._is_news(response.job):
                        yield response
                    continue
                for job_id in missing:
                    job = await self._what_became_of(job_id)
                    if job is not None:
                        yield WatchJobsResponse(job=job)
                if not self._complete:
                    self._complete = True
                    yield response

    def _is_news(self, job: Job) -> bool:
        if job.version <= self._given.get(job.id, 0) or job.id in self._ended:
            return False
        if not is_terminal(job):
            self._given[job.id] = job.version
            return True
        self._given.pop(job.id, None)
        self._ended[job.id] = None
        if len(self._ended) > MOST_ENDED_REMEMBERED:
            self._ended.popitem(last=False)
        return True

    async def _what_became_of(self, job_id: str) -> Job | None:
        """A job that a new snapshot does not have; None if there is nothing to tell."""
        try:
            answer = await self._calls.unary(self._jobs.GetJob, GetJobRequest(job_id=job_id), repeatable=True)
        except ClientError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            answer = GetJobResponse()  # gone
        job = answer.job
        if not job.id or not _can_match(job, self._filter):
            self._given.pop(job_id, None)
            return None
        job.ClearField("attempt_history")  # a watch never has it
        return job if self._is_news(job) else None


def _can_match(job: Job, job_filter: JobFilter) -> bool:
    """Whether the job passes the parts of the filter that can change in its life."""
    review = job.creative_review
    pairs: tuple[tuple[int, Sequence[int]], ...] = (
        (job.state, job_filter.states),
        (review.decision, job_filter.decisions),
        (review.ai_review.policy_triggered, job_filter.policy_triggered),
    )
    return all(not allowed or value in allowed for value, allowed in pairs)
