"""Many jobs done again: as many calls as it takes, each of which may be repeated without doing anything twice.

The first call only counts, and fixes the moment `as_of` which the jobs are taken: what fails again while the
others follow is not taken a second time.
"""

from typing import TYPE_CHECKING

from imprimatur.client.calls import Calls
from imprimatur.v1.job_service_pb2 import (
    RetryJobsRequest,
    RetryJobsResponse,
    ReviewJobsAgainRequest,
    ReviewJobsAgainResponse,
)

if TYPE_CHECKING:  # stubs of calls exist for the type checker only
    from imprimatur.v1.job_service_pb2_grpc import JobServiceAsyncStub


async def retry_all(
    calls: Calls, jobs: "JobServiceAsyncStub", request: RetryJobsRequest, *, dry_run: bool
) -> RetryJobsResponse:
    """Retry everything that `request` names; the answers as one."""
    request.dry_run = True
    whole = await calls.unary(jobs.RetryJobs, request, repeatable=True)
    request.dry_run = False
    request.as_of.CopyFrom(whole.as_of)
    while whole.left and not dry_run:
        answer = await calls.unary(jobs.RetryJobs, request, repeatable=True)
        whole.retried.extend(answer.retried)
        whole.left = answer.left
    return whole


async def review_all_again(
    calls: Calls, jobs: "JobServiceAsyncStub", request: ReviewJobsAgainRequest, *, dry_run: bool
) -> ReviewJobsAgainResponse:
    """Send everything that `request` names back to the engine; the answers as one."""
    request.dry_run = True
    whole = await calls.unary(jobs.ReviewJobsAgain, request, repeatable=True)
    request.dry_run = False
    request.as_of.CopyFrom(whole.as_of)
    while whole.left and not dry_run:
        answer = await calls.unary(jobs.ReviewJobsAgain, request, repeatable=True)
        whole.job_ids.extend(answer.job_ids)
        whole.held, whole.left = answer.held, answer.left
    return whole
