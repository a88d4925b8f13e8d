"""The table of all other calls that nobody should make, with the answer that each gets."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from imprimatur.v1 import job_service_pb2 as pb
from imprimatur.v1.admin_service_pb2 import CleanUpRequest
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, DECISION_PENDING
from imprimatur.v1.job_pb2 import JobState
from imprimatur.v1.job_service_pb2 import JobFilter
from imprimatur.v1.review_service_pb2 import ClaimReviewRequest, DecideReviewRequest, ListPendingReviewsRequest
from imprimatur.v1.webhook_service_pb2 import CreateWebhookEndpointRequest, DeleteWebhookEndpointRequest
from tests.service.bad_submissions import URL, YEAR_10000, Refused, duration, submission

NOBODYS = "0199c0de-0000-7000-8000-000000000000"
_NUL, _LONG, _EMPTY = "NUL_CHARACTER", "FIELD_TOO_LONG", "FIELD_REQUIRED"
_INVALID = "INVALID_FIELD"


@dataclass(frozen=True)
class BadCall:
    """A call that is refused. `request` gets the ids of the world's jobs, by what they are."""

    says: str
    service: str
    rpc: str
    request: Callable[[Mapping[str, str]], Any]
    refused: Refused
    metadata: Mapping[str, str] = field(default_factory=dict)  #: what the ErrorInfo holds


def decision(job_id: str, decision: Any = DECISION_APPROVED, reason: str = "Fine.", **more: str) -> DecideReviewRequest:
    """A person's word."""
    return DecideReviewRequest(job_id=job_id, decision=decision, reason=reason, **more)


_REQUESTS: dict[str, Callable[..., Any]] = {
    "GetJob": pb.GetJobRequest,
    "WatchJob": pb.WatchJobRequest,
    "ListJobEvents": pb.ListJobEventsRequest,
    "CancelJob": pb.CancelJobRequest,
    "RetryJob": pb.RetryJobRequest,
    "ClaimReview": ClaimReviewRequest,
    "DecideReview": decision,
    "BatchSubmitJobs": pb.BatchSubmitJobsRequest,
    "ListJobs": pb.ListJobsRequest,
    "WatchJobs": pb.WatchJobsRequest,
    "GetStats": pb.GetStatsRequest,
    "ListPendingReviews": ListPendingReviewsRequest,
    "CleanUp": CleanUpRequest,
    "CreateWebhookEndpoint": CreateWebhookEndpointRequest,
    "DeleteWebhookEndpoint": DeleteWebhookEndpointRequest,
}


def _service(rpc: str) -> str:
    return "admin" if rpc == "CleanUp" else "webhooks" if "Webhook" in rpc else "reviews" if "Review" in rpc else "jobs"


def _call(says: str, rpc: str, refused: Refused, job: str, metadata: Mapping[str, str], **fields: Any) -> BadCall:
    def request(ids: Mapping[str, str]) -> Any:
        return _REQUESTS[rpc](**({"job_id": ids[job]} if job else {}), **fields)

    return BadCall(says, _service(rpc), rpc, request, refused, metadata)


def invalid(says: str, rpc: str, name: str, reason: str = _INVALID, /, job: str = "", **fields: Any) -> BadCall:
    """A field that is not as it must be."""
    return _call(says, rpc, Refused(reason=reason, field=name), job, {}, **fields)


def refused(says: str, rpc: str, reason: str, job: str, /, tells: Mapping[str, str], **fields: Any) -> BadCall:
    """Something that the state of things does not allow."""
    code = StatusCode.FAILED_PRECONDITION
    return _call(says, rpc, Refused(code=code, reason=reason), job, tells, **fields)


def _job_ids() -> Iterable[BadCall]:
    """Every call about one job, with ids that are none and the id of nobody's job."""
    for rpc in ("GetJob", "WatchJob", "ListJobEvents", "CancelJob", "RetryJob", "ClaimReview", "DecideReview"):
        # The calls of people look for NULs first.
        nul = _NUL if "Review" in rpc else _INVALID
        for says, reason, job_id in (("no job", _EMPTY, ""), ("no UUID", _INVALID, "42"), ("a NUL", nul, "\0")):
            yield invalid(f"{rpc} of {says}", rpc, "job_id", reason, job_id=job_id)
        missing = Refused(code=StatusCode.NOT_FOUND, reason="JOB_NOT_FOUND")
        yield _call(f"{rpc} of nobody's job", rpc, missing, "", {"job_id": NOBODYS}, job_id=NOBODYS)


def _filters() -> Iterable[BadCall]:
    state = JobState.ValueType
    bad: dict[str, tuple[str, str, JobFilter]] = {
        "an unknown state": ("states[0]", _INVALID, JobFilter(states=[state(77)])),
        "state 0": ("states[1]", _INVALID, JobFilter(states=[state(1), state(0)])),
        "9 labels": ("labels", _INVALID, JobFilter(labels={str(number): "" for number in range(9)})),
        "a NUL in a label": ("labels", _NUL, JobFilter(labels={"a\0": ""})),
        "a NUL in the user": ("user_id", _NUL, JobFilter(user_id="\0")),
        "an overlong subject": ("subject_id", _LONG, JobFilter(subject_id="x" * 201)),
        "a beginning in the year 10000": ("created_from", _INVALID, JobFilter(created_from=YEAR_10000)),
        "an end with negative nanos": ("created_before", _INVALID, JobFilter(created_before=Timestamp(nanos=-9))),
    }
    for says, (name, reason, wanted) in bad.items():
        for rpc in ("ListJobs", "WatchJobs"):
            yield invalid(f"{rpc} with {says}", rpc, f"filter.{name}", reason, filter=wanted)


CALLS = (
    *_job_ids(),
    *_filters(),
    invalid("an empty batch", "BatchSubmitJobs", "items", "BATCH_SIZE"),
    invalid("a batch of 1,001", "BatchSubmitJobs", "items", "BATCH_SIZE", items=[submission()] * 1001),
    invalid("a negative page of jobs", "ListJobs", "page_size", page_size=-1),
    invalid("a negative page of events", "ListJobEvents", "page_size", job="queued", page_size=-5),
    invalid("a negative page of reviews", "ListPendingReviews", "page_size", page_size=-(2**31)),
    _call(
        "a version from the future",
        "WatchJob",
        Refused(code=StatusCode.OUT_OF_RANGE, reason="VERSION_FROM_THE_FUTURE", field="after_version"),
        "queued",
        {},
        after_version=1000,
    ),
    refused("cancelling what succeeded", "CancelJob", "JOB_FINISHED", "succeeded", tells={"state": "succeeded"}),
    refused("cancelling what failed", "CancelJob", "JOB_FINISHED", "failed", tells={"state": "failed"}),
    invalid("an overlong reason to cancel", "CancelJob", "reason", _LONG, job="queued", reason="x" * 1001),
    refused("retrying what succeeded", "RetryJob", "JOB_NOT_RETRYABLE", "succeeded", tells={"state": "succeeded"}),
    refused("retrying what is queued", "RetryJob", "JOB_NOT_RETRYABLE", "queued", tells={"state": "queued"}),
    refused("retrying what waits", "RetryJob", "JOB_NOT_RETRYABLE", "waiting", tells={"state": "awaiting_review"}),
    invalid("an overlong id of a retry", "RetryJob", "request_id", _LONG, job="failed", request_id="x" * 201),
    invalid("statistics until the year 10000", "GetStats", "until", until=YEAR_10000),
    invalid("statistics with negative nanos", "GetStats", "since", since=Timestamp(seconds=1, nanos=-1)),
    invalid("statistics until the first instant", "GetStats", "since", until=Timestamp(seconds=-62_135_596_800)),
    invalid("statistics of the future", "GetStats", "since", since=Timestamp(seconds=4_000_000_000)),
    invalid("statistics of all time", "GetStats", "since", since=Timestamp(seconds=1)),
    invalid("a decision of 0", "DecideReview", "decision", job="waiting", decision=0),
    invalid("a decision to wait", "DecideReview", "decision", job="waiting", decision=DECISION_PENDING),
    invalid("an unknown decision", "DecideReview", "decision", job="waiting", decision=42),
    invalid("a decision without a reason", "DecideReview", "reason", _EMPTY, job="waiting", reason=" "),
    invalid("a reason that nobody sees", "DecideReview", "reason", _EMPTY, job="waiting", reason=" \u200b\u2060\u3164"),
    invalid("an overlong reason", "DecideReview", "reason", _LONG, job="waiting", reason="x" * 5001),
    invalid("a NUL in a reason", "DecideReview", "reason", _NUL, job="waiting", reason="a\0"),
    invalid("an overlong reviewer", "DecideReview", "reviewer", _LONG, job="waiting", reviewer="x" * 201),
    refused(
        "deciding what was decided",
        "DecideReview",
        "ALREADY_DECIDED",
        "decided",
        tells={"reviewer": "ada", "decision": "rejected"},
    ),
    refused(
        "deciding what another holds",
        "DecideReview",
        "CLAIMED_BY_ANOTHER",
        "held",
        tells={"claimed_by": "ada"},
        reviewer="bob",
    ),
    refused("deciding what is queued", "DecideReview", "WRONG_STATE", "queued", tells={"state": "queued"}),
    refused("deciding what the AI did", "DecideReview", "WRONG_STATE", "succeeded", tells={"state": "succeeded"}),
    refused("claiming what was decided", "ClaimReview", "ALREADY_DECIDED", "decided", tells={"reviewer": "ada"}),
    refused(
        "claiming what another holds",
        "ClaimReview",
        "CLAIMED_BY_ANOTHER",
        "held",
        tells={"claimed_by": "ada"},
        reviewer="bob",
    ),
    refused("claiming what was cancelled", "ClaimReview", "WRONG_STATE", "cancelled", tells={"state": "cancelled"}),
    invalid("a claim for 9 s", "ClaimReview", "lease", job="waiting", lease=duration(9)),
    invalid("a claim for 9 h", "ClaimReview", "lease", job="waiting", lease=duration(9 * 3600)),
    invalid("a claim of mixed signs", "ClaimReview", "lease", job="waiting", lease=duration(60, -5)),
    invalid("clean-up of what ended tomorrow", "CleanUp", "job_days", job_days=-1),
    invalid("clean-up of what ended in antiquity", "CleanUp", "job_days", job_days=2**31 - 1),
    invalid("clean-up from anywhere", "CleanUp", "page_token", "INVALID_PAGE_TOKEN", page_token="WzFd"),
    invalid("an endpoint without a URL", "CreateWebhookEndpoint", "url", _EMPTY),
    invalid("an endpoint on oneself", "CreateWebhookEndpoint", "url", "INVALID_URL", url="https://[::1]/"),
    invalid(
        "an endpoint with a long story", "CreateWebhookEndpoint", "description", _LONG, url=URL, description="x" * 501
    ),
    invalid(
        "an unknown event", "CreateWebhookEndpoint", "event_types[1]", url=URL, event_types=["job.failed", "x" * 10**5]
    ),
    invalid("a NUL in an event", "CreateWebhookEndpoint", "event_types[0]", _NUL, url=URL, event_types=["\0"]),
    invalid("no endpoint to delete", "DeleteWebhookEndpoint", "endpoint_id", _EMPTY),
    _call(
        "deleting nobody's endpoint",
        "DeleteWebhookEndpoint",
        Refused(code=StatusCode.NOT_FOUND, reason="WEBHOOK_ENDPOINT_NOT_FOUND"),
        "",
        {},
        endpoint_id=NOBODYS,
    ),
)
