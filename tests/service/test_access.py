"""Who may call what, and whose jobs they then see: keys, roles, tenants, users."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from gateway import access
from imprimatur.storage.tenants import KEY_PREFIX
from imprimatur.tenancy import Role
from imprimatur.v1 import (
    admin_service_pb2,
    asset_service_pb2,
    policy_service_pb2,
    review_service_pb2,
    webhook_service_pb2,
)
from imprimatur.v1 import job_service_pb2 as pb
from imprimatur.v1.admin_service_pb2 import (
    CleanUpRequest,
    ForgetEvidenceRequest,
    GetEvidenceStatsRequest,
    GetTenantLimitsRequest,
    SetTenantLimitsRequest,
)
from imprimatur.v1.asset_service_pb2 import (
    DeleteAssetRequest,
    DownloadAssetRequest,
    GetAssetRequest,
    UploadAssetRequest,
)
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.policy_service_pb2 import (
    ActivatePolicyVersionRequest,
    CreatePolicyVersionRequest,
    DiffPolicyVersionsRequest,
    GetPolicyRequest,
    ListPolicyActivationsRequest,
    ListPolicyVersionsRequest,
    PreviewPolicyRequest,
    RedecidePendingRequest,
)
from imprimatur.v1.review_service_pb2 import (
    ClaimNextReviewRequest,
    ClaimReviewRequest,
    GetReviewStatsRequest,
    ListAuditEntriesRequest,
    ListPendingReviewsRequest,
    ReleaseReviewRequest,
    RenewReviewRequest,
    ReviewFilter,
    WatchReviewQueueRequest,
)
from imprimatur.v1.webhook_service_pb2 import (
    CreateWebhookEndpointRequest,
    DeleteWebhookEndpointRequest,
    ListWebhookEndpointsRequest,
)
from tests import makers
from tests.service import engines
from tests.service.bad_calls import decision
from tests.service.engines import ScriptedEngine
from tests.service.statuses import Refusal, refusal, refusal_of
from tests.service.systems import Caller, System, on_sqlite, submission

NOBODYS = "0199c0de-0000-7000-8000-000000000000"

#: Every rpc there is: (service, a request that is refused at most for its content, roles that may call it).
EVERYBODY, SUBMITTERS = set(Role) - {Role.OPERATOR}, {Role.SUBMITTER, Role.ADMIN}
REVIEWERS, ADMINS, OPERATORS = {Role.REVIEWER, Role.ADMIN}, {Role.ADMIN}, {Role.OPERATOR}
RPCS: dict[str, tuple[str, Any, set[Role]]] = {
    "SubmitJob": ("jobs", pb.SubmitJobRequest(), SUBMITTERS),
    "BatchSubmitJobs": ("jobs", pb.BatchSubmitJobsRequest(), SUBMITTERS),
    "CancelJob": ("jobs", pb.CancelJobRequest(job_id=NOBODYS), SUBMITTERS),
    "RetryJob": ("jobs", pb.RetryJobRequest(job_id=NOBODYS), SUBMITTERS),
    "RetryJobs": ("jobs", pb.RetryJobsRequest(), SUBMITTERS),
    "ReviewJobsAgain": ("jobs", pb.ReviewJobsAgainRequest(), EVERYBODY),
    "GetJob": ("jobs", pb.GetJobRequest(job_id=NOBODYS), EVERYBODY),
    "ListJobs": ("jobs", pb.ListJobsRequest(page_size=-1), EVERYBODY),
    "WatchJob": ("jobs", pb.WatchJobRequest(job_id=NOBODYS), EVERYBODY),
    "WatchJobs": ("jobs", pb.WatchJobsRequest(filter=pb.JobFilter(user_id="\0")), EVERYBODY),
    "ListJobEvents": ("jobs", pb.ListJobEventsRequest(job_id=NOBODYS), EVERYBODY),
    "AppealJob": ("jobs", pb.AppealJobRequest(job_id=NOBODYS, reason="x"), SUBMITTERS),
    "GetSystemStatus": ("jobs", pb.GetSystemStatusRequest(), EVERYBODY),
    "GetStats": ("jobs", pb.GetStatsRequest(), EVERYBODY),
    "ListPendingReviews": ("reviews", review_service_pb2.ListPendingReviewsRequest(), REVIEWERS),
    "ClaimReview": ("reviews", ClaimReviewRequest(job_id=NOBODYS), REVIEWERS),
    "DecideReview": ("reviews", decision(NOBODYS), REVIEWERS),
    "ClaimNextReview": ("reviews", ClaimNextReviewRequest(token="none"), REVIEWERS),
    "RenewReview": ("reviews", RenewReviewRequest(job_id=NOBODYS, token=NOBODYS), REVIEWERS),
    "ReleaseReview": ("reviews", ReleaseReviewRequest(job_id=NOBODYS), REVIEWERS),
    "WatchReviewQueue": ("reviews", WatchReviewQueueRequest(filter=ReviewFilter(user_id="\0")), REVIEWERS),
    "ListAuditEntries": ("reviews", ListAuditEntriesRequest(page_size=-1), REVIEWERS),
    "GetReviewStats": ("reviews", GetReviewStatsRequest(), REVIEWERS),
    "CleanUp": ("admin", CleanUpRequest(job_days=-1), ADMINS),
    "GetEvidenceStats": ("admin", GetEvidenceStatsRequest(), ADMINS),
    "ForgetEvidence": ("admin", ForgetEvidenceRequest(), ADMINS),
    "CreateWebhookEndpoint": ("webhooks", CreateWebhookEndpointRequest(), ADMINS),
    "ListWebhookEndpoints": ("webhooks", ListWebhookEndpointsRequest(), ADMINS),
    "DeleteWebhookEndpoint": ("webhooks", DeleteWebhookEndpointRequest(endpoint_id=NOBODYS), ADMINS),
    "UploadAsset": ("assets", [UploadAssetRequest(data=b"not an image")], SUBMITTERS),
    "GetAsset": ("assets", GetAssetRequest(asset_id="none"), EVERYBODY),
    "DeleteAsset": ("assets", DeleteAssetRequest(asset_id="none"), ADMINS),
    "DownloadAsset": ("assets", DownloadAssetRequest(asset_id="none"), REVIEWERS),
    "CreatePolicyVersion": ("policies", CreatePolicyVersionRequest(), ADMINS),
    "ActivatePolicyVersion": ("policies", ActivatePolicyVersionRequest(), ADMINS),
    "RedecidePending": ("policies", RedecidePendingRequest(limit=-1), ADMINS),
    "GetPolicy": ("policies", GetPolicyRequest(version=-1), REVIEWERS),
    "ListPolicyVersions": ("policies", ListPolicyVersionsRequest(page_size=-1), REVIEWERS),
    "ListPolicyActivations": ("policies", ListPolicyActivationsRequest(page_size=-1), REVIEWERS),
    "DiffPolicyVersions": ("policies", DiffPolicyVersionsRequest(from_version=-1), REVIEWERS),
    "PreviewPolicy": ("policies", PreviewPolicyRequest(), REVIEWERS),
    "GetTenantLimits": ("administration", GetTenantLimitsRequest(tenant="nobody"), OPERATORS),
    "SetTenantLimits": ("administration", SetTenantLimitsRequest(tenant="nobody"), OPERATORS),
}
#: Those that lead to a person's decision.
DECIDING = ("ClaimReview", "ClaimNextReview", "RenewReview", "ReleaseReview", "DecideReview")
#: Those that are about one job.
ABOUT_A_JOB: dict[str, Callable[[str], Any]] = {
    "GetJob": lambda job_id: pb.GetJobRequest(job_id=job_id),
    "WatchJob": lambda job_id: pb.WatchJobRequest(job_id=job_id),
    "ListJobEvents": lambda job_id: pb.ListJobEventsRequest(job_id=job_id),
    "CancelJob": lambda job_id: pb.CancelJobRequest(job_id=job_id),
    "RetryJob": lambda job_id: pb.RetryJobRequest(job_id=job_id),
    "ClaimReview": lambda job_id: ClaimReviewRequest(job_id=job_id),
    "DecideReview": decision,
    "RenewReview": lambda job_id: RenewReviewRequest(job_id=job_id, token=NOBODYS),
    "ReleaseReview": lambda job_id: ReleaseReviewRequest(job_id=job_id),
    "AppealJob": lambda job_id: pb.AppealJobRequest(job_id=job_id, reason="x"),
}


def rpc_of(caller: Caller, rpc: str) -> Any:
    return getattr(getattr(caller, RPCS[rpc][0]), rpc)


async def refused(caller: Caller, rpc: str) -> Refusal | None:
    """How the rpc is refused; None when it is served."""
    try:
        return await refusal(rpc_of(caller, rpc)(RPCS[rpc][1]))
    except pytest.fail.Exception:
        return None


def test_every_rpc_is_in_the_table() -> None:
    files = (admin_service_pb2, asset_service_pb2, pb, policy_service_pb2, review_service_pb2, webhook_service_pb2)
    described = [file.DESCRIPTOR for file in files]
    services = [service for file in described for service in file.services_by_name.values()]
    assert {method.name for service in services for method in service.methods} == set(RPCS)


# --- keys and roles --------------------------------------------------------------------------------------


@on_sqlite
async def test_a_role_may_call_what_the_contract_says_and_nothing_else(system: System) -> None:
    for role in Role:
        caller = await system.caller(role)
        for rpc, (_, _, roles) in RPCS.items():
            seen = await refused(caller, rpc)
            denied = seen is not None and seen.code is grpc.StatusCode.PERMISSION_DENIED
            assert denied == (role not in roles), (role, rpc)
            if seen is not None and denied:
                assert (seen.reason, seen.domain) == ("ROLE_NOT_ALLOWED", "imprimatur")
                assert seen.message == f"a key with the role {role} may not call {rpc}"


BAD_KEYS = {
    "none": (None, "MISSING_API_KEY"),
    "an empty one": ("", "MISSING_API_KEY"),
    "one of another kind": ("sk-123", "MISSING_API_KEY"),
    "an endless one": (KEY_PREFIX + "x" * 1000, "MISSING_API_KEY"),
    "an invented one": (KEY_PREFIX + "x" * 43, "INVALID_API_KEY"),
}


@on_sqlite
async def test_nothing_is_served_without_a_good_key(system: System) -> None:
    for key, reason in BAD_KEYS.values():
        caller = await system.holder(key)
        for rpc in RPCS:
            seen = await refused(caller, rpc)
            assert seen is not None
            assert (seen.code, seen.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason), rpc
            assert not key or key not in seen.message


@on_sqlite
async def test_a_revoked_key_is_refused_once_it_has_been_remembered_for_two_seconds(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access.KEY_MEMORY_SECONDS == 2.0
    monkeypatch.setattr(access, "KEY_MEMORY_SECONDS", 0.2)
    other = await system.caller(Role.REVIEWER)
    await other.jobs.GetStats(pb.GetStatsRequest())
    await system.revoke(other)
    await makers.until(lambda: _is_refused(other))  # however often it is used meanwhile


async def _is_refused(caller: Caller) -> bool:
    seen = await refused(caller, "GetStats")
    return seen is not None and seen.reason == "INVALID_API_KEY"


# --- tenants ---------------------------------------------------------------------------------------------


async def test_another_tenants_job_does_not_exist(system: System, me: Caller, engine: ScriptedEngine) -> None:
    queued = await me.submit(engines.APPROVE, "theirs", labels={"team": "a"}, request_id="r-1")
    async with system.reviewer(engine):
        waiting = await me.until(await me.submit(engines.HUMAN, "theirs"), AWAITING)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    for job in (queued, waiting):
        for rpc, make in ABOUT_A_JOB.items():
            seen = await refusal(rpc_of(stranger, rpc)(make(job.id)))
            assert (seen.code, seen.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND"), rpc
            assert seen.message == f"there is no job {job.id}; finished jobs are kept for 7 days"
    assert (await me.get(waiting)).version == waiting.version
    await sees_nothing(stranger)
    own = await stranger.submit(engines.APPROVE, request_id="r-1")  # request ids are each tenant's own
    assert own.id != queued.id


async def sees_nothing(stranger: Caller) -> None:
    assert not (await stranger.jobs.ListJobs(pb.ListJobsRequest())).jobs
    assert not (await stranger.jobs.ListJobs(pb.ListJobsRequest(filter=pb.JobFilter(subject_id="theirs")))).jobs
    stream: Any = stranger.jobs.WatchJobs(pb.WatchJobsRequest())
    assert (await stream.read()).snapshot_complete
    assert not (await stranger.jobs.GetStats(pb.GetStatsRequest())).types
    status = await stranger.jobs.GetSystemStatus(pb.GetSystemStatusRequest())
    assert (status.running, status.awaiting_review, sum(one.due + one.scheduled for one in status.queues)) == (0, 0, 0)
    assert not (await stranger.reviews.ListPendingReviews(ListPendingReviewsRequest())).reviews
    assert not (await stranger.webhooks.ListWebhookEndpoints(ListWebhookEndpointsRequest())).endpoints


async def test_another_tenants_changes_are_not_watched(system: System, me: Caller) -> None:
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    stream: Any = stranger.jobs.WatchJobs(pb.WatchJobsRequest())
    assert (await stream.read()).snapshot_complete
    await me.submit(engines.APPROVE, "theirs")
    own = await stranger.submit(engines.APPROVE, "own")
    assert (await stream.read()).job.id == own.id
    stream.cancel()


async def test_another_tenants_endpoint_cannot_be_deleted(system: System, me: Caller) -> None:
    made = await me.webhooks.CreateWebhookEndpoint(CreateWebhookEndpointRequest(url="https://ads.example/hook"))
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    request = DeleteWebhookEndpointRequest(endpoint_id=made.endpoint.id)
    assert (await refusal(stranger.webhooks.DeleteWebhookEndpoint(request))).code is grpc.StatusCode.NOT_FOUND
    listed = await me.webhooks.ListWebhookEndpoints(ListWebhookEndpointsRequest())
    assert [one.id for one in listed.endpoints] == [made.endpoint.id]
    assert made.secret not in str(listed)


@on_sqlite
async def test_an_admin_key_that_is_bound_to_a_user_may_not_touch_what_is_of_all_users_nor_decide_on_its_own(
    system: System,
) -> None:
    ada = await system.caller(Role.ADMIN, user_id="ada")
    of_all_users = [rpc for rpc, (service, _, _) in RPCS.items() if service in ("webhooks", "policies")]
    for rpc in (*of_all_users, "CleanUp", "GetEvidenceStats", "ForgetEvidence", "DeleteAsset", *DECIDING):
        seen = await refused(ada, rpc)
        assert seen is not None
        assert (seen.code, seen.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED"), rpc
        assert "bound to a user" in seen.message


# --- users -----------------------------------------------------------------------------------------------


async def test_a_user_bound_key_sees_and_touches_its_users_jobs_alone(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    ada, bob = [await system.caller(Role.ADMIN, user_id=name) for name in ("ada", "bob")]
    mine = await ada.submit(engines.APPROVE, "mine")
    assert mine.user_id == "ada"
    nobodys = await me.submit(engines.APPROVE, "nobody's")
    async with system.reviewer(engine):
        theirs = await bob.until(await bob.submit(engines.HUMAN, "theirs"), AWAITING)
    for job in (theirs, nobodys):
        for rpc, make in ABOUT_A_JOB.items():
            reason = "ROLE_NOT_ALLOWED" if rpc in DECIDING else "JOB_NOT_FOUND"
            assert (await refusal(rpc_of(ada, rpc)(make(job.id)))).reason == reason, rpc
    assert await ids_seen(ada) == [mine.id]
    assert await ids_seen(me) == [theirs.id, nobodys.id, mine.id]
    stats = await ada.jobs.GetStats(pb.GetStatsRequest())
    assert [one.created for one in stats.types] == [1]
    assert not (await ada.reviews.ListPendingReviews(ListPendingReviewsRequest())).reviews


async def ids_seen(caller: Caller) -> list[str]:
    return [job.id for job in (await caller.jobs.ListJobs(pb.ListJobsRequest())).jobs]


async def test_a_user_bound_key_cannot_submit_for_another(system: System) -> None:
    ada = await system.caller(Role.SUBMITTER, user_id="ada")
    for user_id in ("bob", "x" * 300):
        seen = await refusal(ada.jobs.SubmitJob(submission(user_id=user_id)))
        assert (seen.code, seen.reason) == (grpc.StatusCode.PERMISSION_DENIED, "USER_NOT_ALLOWED")
        assert seen.metadata["field"] == "user_id"
    batch = pb.BatchSubmitJobsRequest(items=[submission(user_id="ada"), submission(user_id="bob")])
    first, second = (await ada.jobs.BatchSubmitJobs(batch)).results
    assert first.accepted.job.state == QUEUED
    denied = refusal_of(second.error)
    assert (denied.reason, denied.metadata["field"]) == ("USER_NOT_ALLOWED", "items[1].user_id")


async def test_a_request_id_of_another_user_tells_nothing_of_their_job(system: System) -> None:
    ada, bob = [await system.caller(Role.SUBMITTER, user_id=name) for name in ("ada", "bob")]
    theirs = await bob.submit(engines.APPROVE, request_id="r-1")
    seen = await refusal(ada.jobs.SubmitJob(submission(request_id="r-1")))
    assert (seen.code, seen.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert theirs.id not in str(seen)


async def test_a_reviewer_bound_to_a_user_sees_the_whole_tenants_queue(
    system: System, me: Caller, engine: ScriptedEngine
) -> None:
    async with system.reviewer(engine):
        job: Job = await me.until(await me.submit(engines.HUMAN, user_id="bob"), AWAITING)
    ada = await system.caller(Role.REVIEWER, user_id="ada")
    [waiting] = (await ada.reviews.ListPendingReviews(ListPendingReviewsRequest())).reviews
    assert waiting.job.id == job.id
    held = await ada.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id))
    assert held.review.claimed_by == "ada"
    for call in (
        ada.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id, reviewer="bob")),
        ada.reviews.DecideReview(decision(job.id, reviewer="bob")),
    ):
        assert (await refusal(call)).reason == "USER_NOT_ALLOWED"
    decided = (await ada.reviews.DecideReview(decision(job.id, token=held.review.claim_token))).job
    assert decided.creative_review.human_review.reviewer == "ada"
