"""The human queue, watched so that the watch outlives its connection; the other calls about it are in `client`."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc

from imprimatur.client.calls import Calls, Patience
from imprimatur.client.errors import ClientError
from imprimatur.v1.review_service_pb2 import (
    LeftReview,
    ReviewFilter,
    WatchReviewQueueRequest,
    WatchReviewQueueResponse,
)

if TYPE_CHECKING:  # stubs of calls exist for the type checker only
    from imprimatur.v1.review_service_pb2_grpc import ReviewServiceAsyncStub


class QueueWatch:
    """One watch over the queue, with what must be remembered to resume it."""

    def __init__(
        self,
        calls: Calls,
        reviews: "ReviewServiceAsyncStub",
        review_filter: ReviewFilter,
        patience_seconds: float | None,
    ) -> None:
        self._calls = calls
        self._reviews = reviews
        self._filter = review_filter
        self._patience = Patience(patience_seconds, now=time.monotonic())
        self._given: dict[str, int] = {}  # versions of what is in the queue
        self._complete = False  # whether the marker was given

    async def news(self) -> AsyncGenerator[WatchReviewQueueResponse]:
        """The snapshot, its marker once, then the news. Never ends by itself."""
        while True:
            lost = ClientError(grpc.StatusCode.UNAVAILABLE, "the stream ended before its time")
            try:
                async with aclosing(self._one_stream()) as news:
                    async for one in news:
                        yield one
            except ClientError as error:
                lost = error
            await self._patience.wait(lost)

    async def _one_stream(self) -> AsyncGenerator[WatchReviewQueueResponse]:
        missing = set(self._given)
        request = WatchReviewQueueRequest(filter=self._filter)
        with self._calls.stream(self._reviews.WatchReviewQueue, request) as stream:
            async for one in stream:
                self._patience.renew(time.monotonic())
                if one.HasField("review"):
                    job = one.review.job
                    missing.discard(job.id)
                    if job.version > self._given.get(job.id, 0):
                        self._given[job.id] = job.version
                        yield one
                elif one.HasField("left"):
                    if self._given.pop(one.left.job_id, None) is not None:
                        yield one
                else:
                    for job_id in sorted(missing):  # they left while nobody was told
                        del self._given[job_id]
                        yield WatchReviewQueueResponse(left=LeftReview(job_id=job_id))
                    if not self._complete:
                        self._complete = True
                        yield one
