"""What end-to-end tests submit, and how they wait for its end."""

import asyncio
from collections.abc import Iterable

from examples.demo import material
from imprimatur.client import Client, ClientError, submission
from imprimatur.identity import new_id
from imprimatur.v1.creative_pb2 import Creative
from imprimatur.v1.job_pb2 import Job, JobState
from imprimatur.v1.job_service_pb2 import SubmitJobRequest
from tests.patience import PATIENCE_SECONDS

SETTLE_SECONDS = 2 * PATIENCE_SECONDS


def examples() -> list[Creative]:
    """All of examples/creatives."""
    return [item.creative for item in material.items()]


def plain_creative(number: int) -> Creative:
    """A harmless one, which no other job is about."""
    return Creative(
        creative_id=f"cr-{number}-{new_id()}",
        name=f"Plain {number}",
        headline="Fresh figs, daily",
        body="From our own trees.",
    )


def plain_creatives(number: int) -> list[Creative]:
    """So many of them."""
    return [plain_creative(one) for one in range(number)]


def requests(creatives: Iterable[Creative], callback_url: str) -> list[SubmitJobRequest]:
    """To be submitted together: a job for each, whatever is under way of the same creatives."""
    return [submission(creative, callback_url=callback_url, concurrency_key=str(new_id())) for creative in creatives]


async def submit_all(client: Client, wanted: list[SubmitJobRequest]) -> list[str]:
    """The ids of the jobs; all must be accepted."""
    answers = await client.submit_batch(wanted)
    refused = [answer for answer in answers if isinstance(answer, ClientError)]
    assert not refused, refused
    return [answer.id for answer in answers if isinstance(answer, Job)]


async def settled(client: Client, job_ids: Iterable[str]) -> dict[str, Job]:
    """Watch them all until the machine's part is over; each as it stood then."""
    wanted = list(job_ids)
    waits = (client.wait(job_id, SETTLE_SECONDS, until_terminal=False) for job_id in wanted)
    return dict(zip(wanted, await asyncio.gather(*waits), strict=True))


def outcomes(jobs: Iterable[Job]) -> set[tuple[str, str]]:
    """(job id, event type) of what must be told of jobs that stand so."""
    return {(job.id, f"job.{JobState.Name(job.state).removeprefix('JOB_STATE_').lower()}") for job in jobs}
