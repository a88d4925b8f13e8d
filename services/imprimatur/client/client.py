"""The client: one method per thing that the gateway does. How calls and watches are made lives beside it."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self, Unpack

from imprimatur.client.calls import Calls
from imprimatur.client.channel import KEEPALIVE_SECONDS, open_channel
from imprimatur.client.cleaning import clean_everything, forget_everything
from imprimatur.client.errors import ClientError
from imprimatur.client.policies import Policies
from imprimatur.client.repeats import retry_all, review_all_again
from imprimatur.client.reviews import QueueWatch
from imprimatur.client.submissions import SubmitFields, batches, repeatable, submission, throttled, worth_waiting_for
from imprimatur.client.times import duration, timestamp
from imprimatur.client.uploads import download, too_large, upload
from imprimatur.client.watches import ManyJobs, is_settled, is_terminal, watch_one
from imprimatur.identity import new_id
from imprimatur.v1 import admin_service_pb2 as admin_v1
from imprimatur.v1 import job_service_pb2 as jobs_v1
from imprimatur.v1 import review_service_pb2 as reviews_v1
from imprimatur.v1 import webhook_service_pb2 as webhooks_v1
from imprimatur.v1.admin_service_pb2 import (
    CleanUpRequest,
    CleanUpResponse,
    ForgetEvidenceRequest,
    GetEvidenceStatsRequest,
    GetEvidenceStatsResponse,
)
from imprimatur.v1.admin_service_pb2_grpc import AdminServiceStub
from imprimatur.v1.asset_service_pb2 import Asset, DeleteAssetRequest, GetAssetRequest
from imprimatur.v1.asset_service_pb2_grpc import AssetServiceStub
from imprimatur.v1.creative_pb2 import Creative, Decision
from imprimatur.v1.job_pb2 import Job, JobEvent
from imprimatur.v1.job_service_pb2_grpc import JobServiceStub
from imprimatur.v1.policy_service_pb2_grpc import PolicyServiceStub
from imprimatur.v1.review_service_pb2_grpc import ReviewServiceStub
from imprimatur.v1.webhook_service_pb2_grpc import WebhookServiceStub

#: What became of a batch, item by item.
Outcomes = list[Job | ClientError]
Requests = list[jobs_v1.SubmitJobRequest]
Endpoints = list[webhooks_v1.WebhookEndpoint]

_NO_FILTER = jobs_v1.JobFilter()
_ALL_REVIEWS = reviews_v1.ReviewFilter()


class Client:
    """A caller of one Imprimatur. To be used as an async context manager, or closed by `close`.

    Every method raises ClientError when the gateway refuses or does not answer. Reads, and what can be done
    twice without harm, are repeated by themselves while the gateway is away, and after the pause that it asks for
    where a limit is reached (RESOURCE_EXHAUSTED with a RetryInfo).

    `policies` has what is to be done about the tenant's policy (`client.policies.Policies`).

    Args:
        target: "host:port", or any name that gRPC resolves; calls are spread over all its addresses.
        api_key: shown nowhere.
        tls: None decides: with TLS, unless the target is this machine and no certificate is given.
        root_certificates: PEM of whom to trust; None trusts what gRPC ships.
        client_certificate: PEM chain that shows who the caller is (mTLS), with `client_key`.
        client_key: PEM of its private key.
        deadline_seconds: how long one call may take, its repetitions included. Watches have none.
        retry_seconds: how long a call is repeated while the gateway is away or a limit is reached.
        patience_seconds: how long a watch tries to resume without a word from a gateway; None: for ever.

    Raises:
        ValueError: the options contradict each other, or the key cannot be one.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str,
        tls: bool | None = None,
        root_certificates: bytes | None = None,
        client_certificate: bytes | None = None,
        client_key: bytes | None = None,
        deadline_seconds: float = 30.0,
        retry_seconds: float = 10.0,
        patience_seconds: float | None = 300.0,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        self.target = target
        self._calls = Calls(api_key, deadline_seconds=deadline_seconds, retry_seconds=retry_seconds)
        self._patience_seconds = patience_seconds
        self._channel = open_channel(
            target,
            tls=tls,
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
            keepalive_seconds=keepalive_seconds,
        )
        self._assets = AssetServiceStub(self._channel)
        self._jobs = JobServiceStub(self._channel)
        self._reviews = ReviewServiceStub(self._channel)
        self._webhooks = WebhookServiceStub(self._channel)
        self._admin = AdminServiceStub(self._channel)
        self.policies = Policies(self._calls, PolicyServiceStub(self._channel))

    def __repr__(self) -> str:
        return f"Client({self.target!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls and watches that are under way are cancelled."""
        await self._channel.close()

    # --- submit ------------------------------------------------------------------------------------------

    async def submit(
        self,
        request: jobs_v1.SubmitJobRequest | None = None,
        *,
        creative: Creative | None = None,
        **fields: Unpack[SubmitFields],
    ) -> Job:
        """Have work done: either a whole `request`, or a `creative` with the fields to go with it.

        Without a request_id it gets a fresh one, so that a lost answer never makes two jobs. Returns the job as
        accepted now; or as it stands if the request_id was accepted before, or if it is unfinished and has the same
        concurrency key (unless one is given: that of the creative) and the same content.
        """
        if (request is None) == (creative is None) or (request is not None and fields):
            raise TypeError("give either a request, or creative=… with its fields")
        if creative is not None:
            request = submission(creative, **fields)
        assert request is not None
        return (await self._calls.unary(self._jobs.SubmitJob, repeatable(request), repeatable=True)).job

    async def submit_batch(self, requests: Iterable[jobs_v1.SubmitJobRequest]) -> Outcomes:
        """Have much work done: for each request its Job, or the ClientError that refuses it, in their order.

        Any number of requests: they go in as few calls as fit; items for which a limit left no room go again, as
        long as calls are repeated. Where a whole call fails, that error stands for
        each of its items. Request ids are filled in as by `submit`.
        """
        outcomes: Outcomes = []
        for batch in batches([repeatable(request) for request in requests]):
            outcomes += await self._submit_one_batch(batch)
        return outcomes

    # --- images ------------------------------------------------------------------------------------------

    async def upload_asset(self, content: bytes) -> Asset:
        """Have an image kept, for creatives to name by its `asset_id`. The same bytes are kept once."""
        return await upload(self._calls, self._assets, content)

    async def asset(self, asset_id: str) -> Asset:
        """What is known of an image."""
        request = GetAssetRequest(asset_id=asset_id)
        return (await self._calls.unary(self._assets.GetAsset, request, repeatable=True)).asset

    async def download_asset(self, asset_id: str) -> bytes:
        """An image's bytes; for reviewers and admins. Not repeated by itself."""
        return await download(self._calls, self._assets, asset_id)

    async def delete_asset(self, asset_id: str) -> None:
        """Remove an image that no unfinished job names; for admins. Not repeated by itself."""
        request = DeleteAssetRequest(asset_id=asset_id)
        await self._calls.unary(self._assets.DeleteAsset, request, repeatable=False)

    async def sendable(self, creative: Creative) -> Creative:
        """The same creative; where it is too large for a request, with its largest images uploaded, and named."""
        whole = Creative()
        whole.CopyFrom(creative)
        for place in list(too_large(creative)):
            image = whole.images[place]
            image.asset_id = (await self.upload_asset(image.data)).asset_id
        return whole

    # --- see ---------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job:
        """One job, with its attempts."""
        return (await self._calls.unary(self._jobs.GetJob, jobs_v1.GetJobRequest(job_id=job_id), repeatable=True)).job

    async def list(self, job_filter: jobs_v1.JobFilter = _NO_FILTER, *, page_size: int = 0) -> AsyncIterator[Job]:
        """All jobs of the filter, newest first; pages are fetched as they are needed."""
        request = jobs_v1.ListJobsRequest(filter=job_filter, page_size=page_size)
        while True:
            page = await self._calls.unary(self._jobs.ListJobs, request, repeatable=True)
            for job in page.jobs:
                yield job
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def events(self, job_id: str, *, page_size: int = 0) -> AsyncIterator[JobEvent]:
        """A job's whole history, oldest first."""
        request = jobs_v1.ListJobEventsRequest(job_id=job_id, page_size=page_size)
        while True:
            page = await self._calls.unary(self._jobs.ListJobEvents, request, repeatable=True)
            for event in page.events:
                yield event
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(self, job_id: str, after_version: int = 0) -> AsyncGenerator[Job]:
        """The job now and whenever it changed, without its attempts; ends with the terminal state.

        Versions only rise; some may be skipped. A lost connection is resumed. `after_version` is the newest
        version already seen; the terminal state is given even if it is that one.
        """
        return watch_one(self._calls, self._jobs, job_id, after_version, self._patience_seconds)

    def watch_many(self, job_filter: jobs_v1.JobFilter = _NO_FILTER) -> AsyncGenerator[jobs_v1.WatchJobsResponse]:
        """All matching unfinished jobs now, `snapshot_complete` once, then every change after which a job matches.

        Never ends by itself. A lost connection is resumed with a new snapshot, of which only what is new is
        given, and jobs that finished meanwhile are given too.
        """
        return ManyJobs(self._calls, self._jobs, job_filter, self._patience_seconds).changes()

    async def wait(self, job_id: str, timeout: float | None = None, *, until_terminal: bool = True) -> Job:
        """The job at its end, without its attempts.

        Args:
            timeout: seconds; None waits for ever.
            until_terminal: False returns also when the machine has done its part and a person decides.

        Raises:
            TimeoutError: it has not ended in that time.
        """
        ended = is_terminal if until_terminal else is_settled
        async with asyncio.timeout(timeout), aclosing(self.watch(job_id)) as versions:
            async for job in versions:
                if ended(job):
                    return job
        raise AssertionError("a watch ends with a terminal state")

    async def status(self) -> jobs_v1.GetSystemStatusResponse:
        """Whether the system can do its work now, and how much is waiting."""
        return await self._calls.unary(self._jobs.GetSystemStatus, jobs_v1.GetSystemStatusRequest(), repeatable=True)

    async def stats(self, since: datetime | None = None, until: datetime | None = None) -> jobs_v1.GetStatsResponse:
        """What was created and finished from `since` (default: 24 h before) to `until` (default: now)."""
        request = jobs_v1.GetStatsRequest(since=timestamp(since), until=timestamp(until))
        return await self._calls.unary(self._jobs.GetStats, request, repeatable=True)

    # --- stop and retry ----------------------------------------------------------------------------------

    async def cancel(self, job_id: str, reason: str = "") -> Job:
        """Cancel a job that is not finished; a cancelled one is returned as it is."""
        request = jobs_v1.CancelJobRequest(job_id=job_id, reason=reason)
        return (await self._calls.unary(self._jobs.CancelJob, request, repeatable=True)).job

    async def retry(self, job_id: str, request_id: str = "", *, fresh: bool = False) -> Job:
        """Submit a failed or cancelled job's task again; returns the new job. With `fresh` the engine looks anew,
        whatever it found in equal creatives."""
        request = jobs_v1.RetryJobRequest(job_id=job_id, request_id=request_id or str(new_id()), fresh=fresh)
        return (await self._calls.unary(self._jobs.RetryJob, request, repeatable=True)).job

    async def retry_many(
        self, job_filter: jobs_v1.JobFilter, *, dry_run: bool = False, fresh: bool = False
    ) -> jobs_v1.RetryJobsResponse:
        """Retry every failed or cancelled job of the filter that was not retried yet, in as many calls as it takes.

        Returns the new jobs, beside those that they retry; with `dry_run` only how many would be `left` to do. Where
        the answer to a call was lost it is repeated, and what it did is done, but not among those returned.
        """
        request = jobs_v1.RetryJobsRequest(filter=job_filter, fresh=fresh)
        return await retry_all(self._calls, self._jobs, request, dry_run=dry_run)

    async def review_again(
        self,
        job_filter: jobs_v1.JobFilter = _NO_FILTER,
        *,
        job_ids: Iterable[str] = (),
        dry_run: bool = False,
        fresh: bool = False,
    ) -> jobs_v1.ReviewJobsAgainResponse:
        """Send back to the engine what waits for a person because the engine failed, in as many calls as it takes.

        Returns the ids that are queued again, and how many a person holds; with `dry_run` only how many would be
        `left` to do. Ids that do not wait so are passed over. Lost answers are repeated as by `retry_many`.
        """
        request = jobs_v1.ReviewJobsAgainRequest(filter=job_filter, job_ids=job_ids, fresh=fresh)
        return await review_all_again(self._calls, self._jobs, request, dry_run=dry_run)

    # --- people decide -----------------------------------------------------------------------------------

    async def pending_reviews(
        self,
        review_filter: reviews_v1.ReviewFilter = _ALL_REVIEWS,
        *,
        unclaimed_only: bool = False,
        page_size: int = 0,
    ) -> AsyncIterator[reviews_v1.PendingReview]:
        """What waits for a person: what is overdue, then HIGH priority, then what waits longest. Without images."""
        request = reviews_v1.ListPendingReviewsRequest(
            filter=review_filter, unclaimed_only=unclaimed_only, page_size=page_size
        )
        while True:
            page = await self._calls.unary(self._reviews.ListPendingReviews, request, repeatable=True)
            for review in page.reviews:
                yield review
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch_reviews(
        self, review_filter: reviews_v1.ReviewFilter = _ALL_REVIEWS
    ) -> AsyncGenerator[reviews_v1.WatchReviewQueueResponse]:
        """What waits and matches now, `snapshot_complete` once, then each review that enters, changes or leaves.

        Never ends by itself. A lost connection is resumed with a new snapshot, of which only what is new is given;
        what left meanwhile is given as left, with no state.
        """
        return QueueWatch(self._calls, self._reviews, review_filter, self._patience_seconds).news()

    async def claim_review(
        self, job_id: str, *, lease: timedelta | None = None, reviewer: str = "", token: str = ""
    ) -> reviews_v1.PendingReview:
        """Take a review for a while (default 15 min), with the images; its `claim_token` stands for the claim.

        Without a token one's own claim is taken over, and the tokens before are good for nothing; with the present
        token it is prolonged.
        """
        request = reviews_v1.ClaimReviewRequest(job_id=job_id, lease=duration(lease), reviewer=reviewer, token=token)
        return (await self._calls.unary(self._reviews.ClaimReview, request, repeatable=True)).review

    async def claim_next_review(
        self,
        review_filter: reviews_v1.ReviewFilter = _ALL_REVIEWS,
        *,
        lease: timedelta | None = None,
        reviewer: str = "",
        except_job_ids: Iterable[str] = (),
    ) -> reviews_v1.ClaimNextReviewResponse:
        """Take the most urgent review that nobody holds; without a `review` when there is none. A lost answer is asked
        for again, and the same review comes."""
        request = reviews_v1.ClaimNextReviewRequest(
            filter=review_filter,
            lease=duration(lease),
            reviewer=reviewer,
            except_job_ids=except_job_ids,
            token=str(uuid.uuid4()),
        )
        return await self._calls.unary(self._reviews.ClaimNextReview, request, repeatable=True)

    async def renew_review(
        self, job_id: str, token: str, *, lease: timedelta | None = None, reviewer: str = ""
    ) -> datetime:
        """Prolong a claim; returns until when it holds. CLAIM_LOST when it is over."""
        request = reviews_v1.RenewReviewRequest(job_id=job_id, token=token, lease=duration(lease), reviewer=reviewer)
        answer = await self._calls.unary(self._reviews.RenewReview, request, repeatable=True)
        return answer.claimed_until.ToDatetime(tzinfo=UTC)

    async def release_review(
        self, job_id: str, token: str = "", *, reviewer: str = "", of_anybody: bool = False, reason: str = ""
    ) -> Job:
        """Give a claim back; with an admin's key, that of anybody. Not repeated by itself."""
        request = reviews_v1.ReleaseReviewRequest(
            job_id=job_id, token=token, reviewer=reviewer, of_anybody=of_anybody, reason=reason
        )
        return (await self._calls.unary(self._reviews.ReleaseReview, request, repeatable=False)).job

    async def decide(
        self, job_id: str, decision: Decision.ValueType, reason: str, *, reviewer: str = "", token: str = ""
    ) -> Job:
        """Decide a review: with the token of one's claim, or without one what nobody holds. Not repeated by itself:
        ask `get` when no answer came."""
        request = reviews_v1.DecideReviewRequest(
            job_id=job_id, decision=decision, reason=reason, reviewer=reviewer, token=token
        )
        return (await self._calls.unary(self._reviews.DecideReview, request, repeatable=False)).job

    async def appeal(self, job_id: str, reason: str, request_id: str = "") -> Job:
        """Appeal against the decision on a creative; returns the new job, which another person decides."""
        request = jobs_v1.AppealJobRequest(job_id=job_id, reason=reason, request_id=request_id or str(new_id()))
        return (await self._calls.unary(self._jobs.AppealJob, request, repeatable=True)).job

    async def audit_entries(
        self,
        *,
        job_id: str = "",
        person: str = "",
        actions: Iterable[reviews_v1.AuditAction.ValueType] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[reviews_v1.AuditEntry]:
        """The record of who did what in the queue, newest first."""
        request = reviews_v1.ListAuditEntriesRequest(
            job_id=job_id,
            person=person,
            actions=actions,
            since=timestamp(since),
            until=timestamp(until),
            page_size=page_size,
        )
        while True:
            page = await self._calls.unary(self._reviews.ListAuditEntries, request, repeatable=True)
            for entry in page.entries:
                yield entry
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def review_stats(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> reviews_v1.GetReviewStatsResponse:
        """What waits for people now, and what they decided from `since` (default: 24 h before) to `until` (now)."""
        request = reviews_v1.GetReviewStatsRequest(since=timestamp(since), until=timestamp(until))
        return await self._calls.unary(self._reviews.GetReviewStats, request, repeatable=True)

    # --- webhooks ----------------------------------------------------------------------------------------

    async def create_webhook_endpoint(
        self, url: str, *, description: str = "", event_types: Iterable[str] = ()
    ) -> webhooks_v1.CreateWebhookEndpointResponse:
        """Add an endpoint; its secret is in this answer only. Not repeated by itself."""
        request = webhooks_v1.CreateWebhookEndpointRequest(url=url, description=description, event_types=event_types)
        return await self._calls.unary(self._webhooks.CreateWebhookEndpoint, request, repeatable=False)

    async def list_webhook_endpoints(self) -> Endpoints:
        """The tenant's endpoints, oldest first, without secrets."""
        request = webhooks_v1.ListWebhookEndpointsRequest()
        answer = await self._calls.unary(self._webhooks.ListWebhookEndpoints, request, repeatable=True)
        return [*answer.endpoints]

    async def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        """Remove an endpoint. Not repeated by itself."""
        request = webhooks_v1.DeleteWebhookEndpointRequest(endpoint_id=endpoint_id)
        await self._calls.unary(self._webhooks.DeleteWebhookEndpoint, request, repeatable=False)

    # --- administration ----------------------------------------------------------------------------------

    async def clean_up(self, *, job_days: int = 0, dry_run: bool = False) -> CleanUpResponse:
        """Remove the tenant's finished work that was kept for its days, or only count it.

        `job_days` (from 1 on): finished jobs go after so many, whatever the server is set to.
        """
        request = CleanUpRequest(job_days=job_days, dry_run=dry_run)
        return await clean_everything(self._calls, self._admin, request)

    async def tenant_limits(self, tenant: str) -> admin_v1.GetTenantLimitsResponse:
        """What a tenant may take and spend, and what it has spent today; for operators."""
        request = admin_v1.GetTenantLimitsRequest(tenant=tenant)
        return await self._calls.unary(self._admin.GetTenantLimits, request, repeatable=True)

    async def set_tenant_limits(
        self, tenant: str, limits: admin_v1.TenantLimits | None = None, *, budget: admin_v1.TenantBudget | None = None
    ) -> admin_v1.SetTenantLimitsResponse:
        """Replace all of a tenant's own limits, all of its own budget, or both; for operators. Without either, the
        limits are as the settings say from now on."""
        request = admin_v1.SetTenantLimitsRequest(tenant=tenant, limits=limits, budget=budget)
        return await self._calls.unary(self._admin.SetTenantLimits, request, repeatable=True)

    async def evidence_stats(self) -> GetEvidenceStatsResponse:
        """What the tenant's evidence that is kept for equal creatives was good for."""
        return await self._calls.unary(self._admin.GetEvidenceStats, GetEvidenceStatsRequest(), repeatable=True)

    async def forget_evidence(self, request: ForgetEvidenceRequest) -> int:
        """Have equal creatives examined anew, in as many calls as it takes; returns how much evidence was forgotten.

        What a call did whose answer was lost is missing in the sum.
        """
        return await forget_everything(self._calls, self._admin, request)

    async def _submit_one_batch(self, batch: Requests) -> Outcomes:
        """One call, and others for what was throttled of it, until nothing is or no more fits for so long."""
        outcomes = await self._submit_once(batch)
        patience = self._calls.patience()
        while refused := throttled(outcomes):
            try:
                await patience.wait(worth_waiting_for(refused.values()))
            except ClientError:
                break
            again = await self._submit_once([batch[place] for place in refused])
            if any(isinstance(one, Job) for one in again):
                patience.renew(time.monotonic())
            for place, one in zip(refused, again, strict=True):
                outcomes[place] = one
        return outcomes

    async def _submit_once(self, batch: Requests) -> Outcomes:
        request = jobs_v1.BatchSubmitJobsRequest(items=batch)
        try:
            answer = await self._calls.unary(self._jobs.BatchSubmitJobs, request, repeatable=True)
        except ClientError as error:
            return [error] * len(batch)
        return [
            result.accepted.job if result.HasField("accepted") else ClientError.of_status(result.error)
            for result in answer.results
        ]
