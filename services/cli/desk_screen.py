"""What a desk shows of a review: the creative whole, why it waits, what the AI found, and what was before. Whatever
comes from others goes through `plain` or `one_line`: it may hold what steers a terminal."""

import sys
from contextlib import suppress

from rich.table import Table
from rich.text import Text

from cli import tables
from cli.output import Output, one_line, plain
from imprimatur.client import Client, ClientError
from imprimatur.v1.creative_pb2 import PolicyTrigger
from imprimatur.v1.job_pb2 import JobState, Priority
from imprimatur.v1.job_service_pb2 import JobFilter
from imprimatur.v1.review_service_pb2 import PendingReview

_MOST_FORMER = 3


class Screen:
    """The terminal of a desk."""

    def __init__(self, client: Client, output: Output) -> None:
        self._client = client
        self._console = output.console

    async def show(self, review: PendingReview, progress: str) -> None:
        """One review, with how the work goes."""
        job = review.job
        self._console.rule(plain(one_line(f" {job.subject_id} · {tables.word(Priority, job.priority)} · {progress} ")))
        found = tables.review_of(job) if job.HasField("creative_review") else Text()
        self._console.print(tables.sections(tables.creative_in_full(review.creative), _waits(review), found))
        await self._show_former(review)

    async def _show_former(self, review: PendingReview) -> None:
        """What was decided about the same creative before; nothing of it while the server is away."""
        found = 0
        with suppress(ClientError):
            async for job in self._client.list(JobFilter(subject_id=review.job.subject_id), page_size=_MOST_FORMER + 1):
                if job.id == review.job.id:
                    continue
                found += 1
                became = tables.decision_of(job) or tables.word(JobState, job.state)
                tell(f"before, {tables.when(job.create_time)}: {became}: {tables.why(job)}")
                if found == _MOST_FORMER:
                    return

    async def show_history(self, review: PendingReview) -> None:
        """Everything that happened to the job."""
        try:
            events = [event async for event in self._client.events(review.job.id)]
        except ClientError as error:
            tell(error.message)
        else:
            self._console.print(tables.events(events))


def _waits(review: PendingReview) -> Table:
    job = review.job
    return tables.facts(
        [
            ("waits because", tables.word(PolicyTrigger, job.creative_review.ai_review.policy_triggered)),
            ("since", tables.when(review.waiting_since)),
            ("due", tables.due_text(review)),
            ("user", job.user_id),
            ("labels", ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))),
            ("error", f"{job.error.code}: {job.error.message}" if job.HasField("error") else ""),
            *tables.appeal_facts(job),
        ]
    )


def tell(sentence: str) -> None:
    """A line, made harmless."""
    write(one_line(sentence) + "\n")


def write(text: str) -> None:
    """To the terminal as it is, at once: only our own words."""
    sys.stdout.write(text)
    sys.stdout.flush()
