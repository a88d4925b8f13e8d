"""A known load on the three services, and what came of it, as its callers were told."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deploy.local.ports import free_port
from deploy.local.stack import Stack
from imprimatur.client import Client, ClientError, submission
from imprimatur.identity import new_id
from imprimatur.v1.creative_pb2 import (
    DECISION_APPROVED,
    DECISION_REJECTED,
    Creative,
    CreativeImage,
    Decision,
    PolicyTrigger,
)
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW, PRIORITY_HIGH, PRIORITY_LOW, Job, JobState
from imprimatur.v1.job_service_pb2 import JobFilter, SubmitJobRequest
from tests.contract.polling import eventually
from tests.e2e import jobs
from tests.e2e.processes import Receiver, Samples, scrape

#: Creatives that the builtin engine approves, rejects and leaves to a person: all three are among so many.
_EXAMPLES = 20
_BROKEN = CreativeImage(name="broken.png", data=b"\x89PNG\r\n\x1a\n" + bytes(40))
_TOLD_SECONDS = 30.0
#: Of each round.
SCHEDULED, CANCELLED, UNKNOWN = 3, 1, 3
#: While the panels are looked at.
WATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of the load came to."""

    accepted: Counter[str]  #: by priority
    left: Counter[str]  #: jobs that left the machine's hands, by state
    decisions: Counter[tuple[str, str]]  #: of the machine, with the row of its table
    by_people: Counter[tuple[str, bool]]  #: and whether they override the AI
    posts: Counter[str]  #: webhook posts, by outcome
    images: int  #: in all creatives
    image_bytes: int  #: of those that came in the requests
    scheduled: list[str]  #: ids of jobs that wait for their time
    settled: int  #: jobs that were watched until the machine was done with them
    began: float  #: seconds of the epoch
    settled_at: float
    ended: float

    @property
    def worked_on(self) -> int:
        """Jobs that a reviewer had."""
        return self.left["succeeded"] + self.left["failed"] + self.left["awaiting_review"]

    @property
    def waiting(self) -> int:
        """Jobs that it left with the people."""
        return self.left["awaiting_review"] - self.by_people.total()

    @property
    def work_seconds(self) -> float:
        """From the first submit until the machine was done with all that was due."""
        return self.settled_at - self.began

    @property
    def seconds(self) -> float:
        """From the first submit until the last webhook."""
        return self.ended - self.began


async def run(client: Client, receiver: Receiver, stack: Stack) -> Round:
    """One round, to its end: every outcome told, or given up, and counted."""
    later = datetime.now(UTC) + timedelta(hours=1)
    wanted = [
        *jobs.requests(jobs.examples()[:_EXAMPLES], receiver.url),
        *jobs.requests([Creative(creative_id="broken", headline="Look", images=[_BROKEN])] * 2, receiver.url),
        # A page in place of an image, at an address that answers.
        *jobs.requests(
            [Creative(creative_id="page", headline="Look", images=[CreativeImage(url=_page(stack))])], receiver.url
        ),
        *_prioritised(receiver.url),
        submission(jobs.plain_creative(0), callback_url=f"http://127.0.0.1:{free_port()}/nobody"),
    ]
    images = [image for request in wanted for image in request.creative_review.creative.images]
    planned = [submission(jobs.plain_creative(one), run_at=later) for one in range(SCHEDULED)]
    posted_before = _posted(stack)
    began = time.time()
    ids = await jobs.submit_all(client, wanted)
    single = await client.submit(creative=jobs.plain_creative(1), callback_url=receiver.url)
    scheduled = await jobs.submit_all(client, planned)
    settled = [*(await jobs.settled(client, [*ids, single.id])).values()]
    settled_at = time.time()
    for job_id in scheduled[:CANCELLED]:
        await client.cancel(job_id)
    decided = await _decide(client, settled)
    for _ in range(UNKNOWN):
        with suppress(ClientError):
            await client.get(str(new_id()))
    told = jobs.outcomes(job for job in settled if job.id != ids[-1]) | jobs.outcomes(decided)
    await eventually(lambda: told <= set(receiver.told()), "a webhook of each outcome", seconds=_TOLD_SECONDS)
    posts = Counter({"delivered": len(told), "failed": 2})
    posted = posted_before + posts.total()
    await eventually(lambda: _posted(stack) >= posted and _is_calm(stack), "calm", seconds=20)
    priorities = Counter({"high": 2, "low": 1})
    return Round(
        accepted=priorities + Counter({"normal": len(wanted) + 1 + SCHEDULED - priorities.total()}),
        left=Counter({"cancelled": CANCELLED}) + Counter(map(_state, settled)),
        decisions=Counter(_decision(job) for job in settled if job.creative_review.HasField("ai_review")),
        by_people=Counter(
            (_lower(Decision.Name(human.decision), "DECISION_"), human.overrides_ai)
            for human in (job.creative_review.human_review for job in decided)
        ),
        posts=posts,
        images=len(images),
        image_bytes=sum(len(image.data) for image in images),
        scheduled=scheduled[CANCELLED:],
        settled=len(settled),
        began=began,
        settled_at=settled_at,
        ended=time.time(),
    )


def _page(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.ports['gateway']}/livez"


def _prioritised(callback_url: str) -> list[SubmitJobRequest]:
    return [
        submission(jobs.plain_creative(number), priority=priority, callback_url=callback_url)
        for number, priority in enumerate((PRIORITY_HIGH, PRIORITY_HIGH, PRIORITY_LOW))
    ]


async def _decide(client: Client, settled: list[Job]) -> list[Job]:
    """A person approves one of what waits, and rejects another."""
    waiting = [job.id for job in settled if job.state == JOB_STATE_AWAITING_REVIEW]
    wanted = zip(waiting, (DECISION_APPROVED, DECISION_REJECTED), strict=False)
    return [await client.decide(job_id, decision, "So.", reviewer="ann") for job_id, decision in wanted]


def _state(job: Job) -> str:
    return _lower(JobState.Name(job.state), "JOB_STATE_")


def _decision(job: Job) -> tuple[str, str]:
    found = job.creative_review.ai_review
    return (
        _lower(Decision.Name(found.decision), "DECISION_"),
        _lower(PolicyTrigger.Name(found.policy_triggered), "POLICY_TRIGGER_"),
    )


def _lower(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


@asynccontextmanager
async def watching(client: Client, job_ids: list[str]) -> AsyncIterator[None]:
    """Inside the block streams are open: one of each job, and one of all jobs."""
    async with aclosing(client.watch_many(JobFilter())) as many:
        await anext(many)
        streams = [client.watch(job_id) for job_id in job_ids]
        try:
            await asyncio.gather(*(anext(stream) for stream in streams))
            yield
        finally:
            await asyncio.gather(*(stream.aclose() for stream in streams))


def _posted(stack: Stack) -> float:
    """Webhook posts that were made: the gauges of what is open are some seconds old."""
    return _sum(scrape(stack.ports["notifier"]), "imprimatur_webhook_attempts_total")


def _is_calm(stack: Stack) -> bool:
    """Whether everything that was begun is counted."""
    reviewer, notifier = scrape(stack.ports["reviewer"]), scrape(stack.ports["notifier"])
    return (
        _sum(reviewer, "imprimatur_claims_total", "claimed")
        == _sum(reviewer, "imprimatur_attempt_duration_seconds_count")
        and _sum(notifier, "imprimatur_webhook_deliveries_pending") == 0
        and _sum(notifier, "imprimatur_webhook_events_pending") == 0
        and all(_sum(scrape(port), "imprimatur_outbox_messages") == 0 for port in stack.ports.values())
    )


def _sum(samples: Samples, name: str, value: str = "") -> float:
    return sum(
        number
        for (one, labels), number in samples.items()
        if one == name and (not value or value in dict(labels).values())
    )
