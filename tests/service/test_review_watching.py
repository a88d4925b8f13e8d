"""The client's watch over the queue, against a scripted gateway that goes away."""

from contextlib import aclosing

from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job
from imprimatur.v1.review_service_pb2 import LeftReview, PendingReview, WatchReviewQueueResponse
from tests.service.scripted import HANG, UNAVAILABLE, Script
from tests.service.test_client import connected

COMPLETE = WatchReviewQueueResponse(snapshot_complete=True)


def waits(job_id: str, version: int) -> WatchReviewQueueResponse:
    return WatchReviewQueueResponse(review=PendingReview(job=Job(id=job_id, version=version)))


def left(job_id: str) -> WatchReviewQueueResponse:
    return WatchReviewQueueResponse(left=LeftReview(job_id=job_id, state=JOB_STATE_SUCCEEDED))


async def test_a_watch_that_was_cut_goes_on_with_what_is_new_and_tells_what_left_meanwhile() -> None:
    script = Script().on(
        "WatchReviewQueue",
        [waits("a", 1), waits("b", 1), waits("c", 1), COMPLETE, left("c"), UNAVAILABLE],
        [waits("a", 1), waits("d", 4), COMPLETE, waits("a", 2), left("never seen"), HANG],
    )
    seen: list[str] = []
    async with connected(script) as client, aclosing(client.watch_reviews()) as news:
        async for one in news:
            if one.HasField("review"):
                seen.append(f"{one.review.job.id}{one.review.job.version}")
            else:
                seen.append(f"-{one.left.job_id}" if one.HasField("left") else "complete")
            if seen[-1] == "a2":
                break
    assert seen == ["a1", "b1", "c1", "complete", "-c", "d4", "-b", "a2"]
