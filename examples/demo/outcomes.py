"""Whether everything that had to happen has happened: outcomes against webhooks, decisions against expectations."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cli.tables import word
from examples.demo.material import Item
from imprimatur.client import is_settled
from imprimatur.v1.creative_pb2 import DECISION_APPROVED
from imprimatur.v1.job_pb2 import Job, JobState

#: A job's id and the webhook's type, such as "job.succeeded".
Outcome = tuple[str, str]


def outcome_of(job: Job) -> Outcome:
    """What the webhook tells of a job in this state."""
    return job.id, f"job.{word(JobState, job.state)}"


def received(path: Path) -> list[dict[str, Any]]:
    """What the receiver verified so far; a line that is being written is left for later."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def told(messages: Iterable[Mapping[str, Any]]) -> Counter[Outcome]:
    """How often each outcome was told."""
    return Counter((message["body"]["data"]["job_id"], message["body"]["type"]) for message in messages)


def faults(items: Mapping[str, Item], jobs: Mapping[str, Job], outcomes: set[Outcome], path: Path) -> list[str]:
    """What is missing or wrong, a sentence each.

    Args:
        items: what was submitted, by job id.
        jobs: how each stood when it came to rest.
        outcomes: what must have been told, once each.
        path: what was verified.
    """
    count = told(received(path))
    names = {job_id: item.creative.name for job_id, item in items.items()}
    unsettled = [names[job_id] for job_id in items if job_id not in jobs or not is_settled(jobs[job_id])]
    wrong = [items[job_id].creative.name for job_id in approved(jobs) if items[job_id].must_not_approve]
    return [
        *(f"{name}: neither finished nor with a person" for name in unsettled),
        *(f"{names[job_id]}: no verified webhook {kind}" for job_id, kind in sorted(outcomes - set(count))),
        *(f"{names.get(job_id, job_id)}: an unexpected webhook {kind}" for job_id, kind in set(count) - outcomes),
        *(f"{names[key[0]]}: {times} different webhooks {key[1]}" for key, times in count.items() if times > 1),
        *(f"{name}: approved by the AI, and must not be" for name in wrong),
    ]


def approved(jobs: Mapping[str, Job]) -> list[str]:
    """The jobs that the AI approved, whatever a person said afterwards."""
    return [job_id for job_id, job in jobs.items() if job.creative_review.ai_review.decision == DECISION_APPROVED]
