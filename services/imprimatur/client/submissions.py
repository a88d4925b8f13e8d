"""Requests to submit: made from a creative, given the id that makes them repeatable, cut into calls that fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypedDict, Unpack

from imprimatur.client.errors import ClientError
from imprimatur.client.times import duration, timestamp
from imprimatur.identity import new_id
from imprimatur.v1.creative_pb2 import Creative, CreativeReviewTask
from imprimatur.v1.job_pb2 import PRIORITY_UNSPECIFIED, Priority
from imprimatur.v1.job_service_pb2 import WHEN_BUSY_UNSPECIFIED, SubmitJobRequest, WhenBusy

#: The contract's limit of one batch.
LARGEST_BATCH = 1000
#: A server takes 4 MiB a message; what the batch adds to its items stays well below the rest.
LARGEST_BATCH_BYTES = 4 * 1024 * 1024 - 64 * 1024
#: Items that were refused for no longer than this go again together.
SHORT_PAUSE_SECONDS = 2.0


class SubmitFields(TypedDict, total=False):
    """What may be said of a job besides its task; see SubmitJobRequest."""

    request_id: str
    user_id: str
    priority: Priority.ValueType
    labels: Mapping[str, str]
    max_attempts: int
    timeout: timedelta
    deadline: timedelta
    run_at: datetime
    callback_url: str
    concurrency_key: str
    when_busy: WhenBusy.ValueType
    revision: int | None
    fresh: bool


def submission(creative: Creative, **fields: Unpack[SubmitFields]) -> SubmitJobRequest:
    """The request to review `creative`."""
    return SubmitJobRequest(
        creative_review=CreativeReviewTask(creative=creative),
        request_id=fields.get("request_id", ""),
        user_id=fields.get("user_id", ""),
        priority=fields.get("priority", PRIORITY_UNSPECIFIED),
        labels=fields.get("labels", {}),
        max_attempts=fields.get("max_attempts", 0),
        timeout=duration(fields.get("timeout")),
        deadline=duration(fields.get("deadline")),
        run_at=timestamp(fields.get("run_at")),
        callback_url=fields.get("callback_url", ""),
        concurrency_key=fields.get("concurrency_key", ""),
        when_busy=fields.get("when_busy", WHEN_BUSY_UNSPECIFIED),
        revision=fields.get("revision"),
        fresh=fields.get("fresh", False),
    )


def repeatable(request: SubmitJobRequest) -> SubmitJobRequest:
    """The same request with a request_id, so that submitting it twice makes one job."""
    if request.request_id:
        return request
    identified = SubmitJobRequest()
    identified.CopyFrom(request)
    identified.request_id = str(new_id())
    return identified


def throttled(outcomes: Sequence[object]) -> dict[int, ClientError]:
    """Of a batch's outcomes those that a limit left no room for, by their places."""
    refused = ((place, one) for place, one in enumerate(outcomes) if isinstance(one, ClientError))
    return {place: one for place, one in refused if one.throttled}


def worth_waiting_for(refused: Iterable[ClientError]) -> ClientError:
    """Whose pause to wait for: the longest of those that are short, so that many go together, or else the shortest."""
    ordered = sorted(refused, key=_pause_of)
    short = [one for one in ordered if _pause_of(one) <= SHORT_PAUSE_SECONDS]
    return short[-1] if short else ordered[0]


def _pause_of(refused: ClientError) -> float:
    return refused.retry_after_seconds or 0.0


def batches(requests: Iterable[SubmitJobRequest]) -> Iterator[list[SubmitJobRequest]]:
    """The requests in order, cut so that each part fits one call; a part has at least one."""
    batch: list[SubmitJobRequest] = []
    size = 0
    for request in requests:
        weight = request.ByteSize() + 8
        if batch and (len(batch) == LARGEST_BATCH or size + weight > LARGEST_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += weight
    if batch:
        yield batch
