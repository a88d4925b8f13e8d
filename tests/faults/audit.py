"""Holds the database against what the users were told and what the webhook receiver saw. Every finding is a defect.

It reads the tables by plain SQL, past the code that it judges.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # ships no types

from imprimatur.job import SUBMITTED, TERMINAL, TRANSITIONS
from imprimatur.v1.job_pb2 import JobState
from tests.faults.load import LABEL, Load, Told
from tests.faults.scripts import Kind

#: How long what is unfinished may take once nothing strikes any more.
_CALM_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_TELLING = {str(kind): step.notifies for kind, step in TRANSITIONS.items() if step.notifies}
#: Kinds of events after which the machine or a person is through with a job.
_ENDING = {str(kind) for kind, step in TRANSITIONS.items() if step.target in TERMINAL}


@dataclass(kw_only=True)
class Findings:
    """What is wrong, by promise broken; one sentence each.

    Attributes:
        lost_unstruck: attempts that were taken from a worker that nothing had struck.
    """

    lost: list[str] = field(default_factory=list)
    applied_twice: list[str] = field(default_factory=list)
    wrong_ends: list[str] = field(default_factory=list)
    regressions: list[str] = field(default_factory=list)
    ends_missed: list[str] = field(default_factory=list)
    webhooks_missing: list[str] = field(default_factory=list)
    innocents_charged: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    lost_unstruck: list[str] = field(default_factory=list)

    def defects(self, *, cut_off: bool = False) -> list[str]:
        """Every one of them; where reviewers were `cut_off` from the database, all but what they lost by that."""
        excused = {"lost_unstruck"} if cut_off else set()
        return [f"{kind}: {one}" for kind, found in vars(self).items() if kind not in excused for one in found]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the database says of one campaign's jobs, by job id."""

    jobs: dict[str, Any]
    events: dict[str, list[Any]]
    attempts: dict[str, list[Any]]
    deliveries: dict[str, list[Any]]
    outbox: int

    @property
    def undelivered(self) -> list[str]:
        """Webhooks that are still to be posted, or were given up."""
        return [
            f"{job_id}: a webhook is {delivery['state']} after {delivery['attempts']} attempts"
            for job_id, deliveries in self.deliveries.items()
            for delivery in deliveries
            if delivery["state"] != "delivered"
        ]

    @property
    def unfinished(self) -> list[str]:
        """Jobs of which something is still to come; a poisoned one waits for a person, and may."""
        return [
            job_id
            for job_id, job in self.jobs.items()
            if job["state"] not in TERMINAL
            and not (job["state"] == "awaiting_review" and job["script"].startswith(Kind.POISON))
        ]


async def calm(load: Load) -> Record:
    """Wait until nothing moves any more, or too long; the record then."""
    give_up_at = time.monotonic() + _CALM_SECONDS
    while True:
        record = await read(load)
        still = record.unfinished or record.outbox or record.undelivered or _untold(load, record)
        if not (still or _blind(load, record)) or time.monotonic() > give_up_at:
            return record
        await asyncio.sleep(_LOOK_SECONDS)


async def read(load: Load) -> Record:
    """One look at the tables."""
    connection = await asyncpg.connect(load.world.dsn)
    try:
        jobs = await connection.fetch(
            f"SELECT *, parameters->>'headline' AS script FROM jobs WHERE labels->>'{LABEL}' = $1", load.campaign
        )
        ids = [job["id"] for job in jobs]

        async def of(tables: str, order: str) -> dict[str, list[Any]]:
            query = f"SELECT * FROM {tables} WHERE job_id = ANY($1) ORDER BY job_id, {order}"
            found = defaultdict(list)
            for row in await connection.fetch(query, ids):
                found[str(row["job_id"])].append(row)
            return found

        return Record(
            jobs={str(job["id"]): job for job in jobs},
            events=await of("job_events", "version"),
            attempts=await of("attempts", "claim_no"),
            deliveries=await of("webhook_messages m JOIN webhook_deliveries d ON d.message_id = m.id", "m.version"),
            outbox=await connection.fetchval("SELECT count(*) FROM outbox"),
        )
    finally:
        await connection.close()


def judge(load: Load, record: Record) -> Findings:
    """Everything that is not as promised."""
    found = Findings(regressions=list(load.regressions), surprises=list(load.surprises))
    for told in load.told.values():
        _judge_what_was_told(told, record, found)
    for job_id, job in record.jobs.items():
        script = load.asked[job["request_id"]]
        history, attempts = record.events[job_id], record.attempts[job_id]
        if (job["state"], job["decision"]) not in script.endings:
            path = " ".join(event["kind"] for event in history)
            found.wrong_ends.append(f"{job_id} ({script.headline}): {job['state']} {job['decision']!r}, {path}")
        if job["attempts"] > script.most_attempts:
            found.innocents_charged.append(f"{job_id} ({script.headline}): {job['attempts']} attempts, {attempts}")
        _judge_history(job, history, attempts, found)
    found.webhooks_missing += _untold(load, record)
    found.surprises += _false_webhooks(load, record)
    found.surprises += [f"a webhook could not be verified: {post.headers}" for post in load.world.refused]
    load.world.refused.clear()
    found.surprises += record.undelivered
    if record.outbox:
        found.surprises.append(f"{record.outbox} outbox rows are left")
    found.lost_unstruck += _lost_unstruck(record, load.world.struck_workers)
    for seat in load.world.seats:
        if seat.deaths_unmeant > 0:
            found.surprises.append(f"{seat.name} died {seat.deaths_unmeant} times without being struck")
            seat.deaths_meant = seat.starts - 1
    return found


def _lost_unstruck(record: Record, struck_workers: Container[str]) -> list[str]:
    return [
        f"{job_id}: attempt {attempt['claim_no']} was taken from {attempt['worker']}, which nothing had struck"
        for job_id, attempts in record.attempts.items()
        for attempt in attempts
        if attempt["outcome"] == "lost" and attempt["worker"] not in struck_workers
    ]


def _judge_what_was_told(told: Told, record: Record, found: Findings) -> None:
    job = record.jobs.get(told.job_id)
    if job is None:
        found.lost.append(f"{told.job_id} was accepted and is not there")
        return
    if told.cancelled and job["state"] != "cancelled":
        found.wrong_ends.append(f"{told.job_id} was cancelled, and {job['state']}")
    if told.script.kind is Kind.POISON:
        return
    seen = JobState.Name(told.end.state).removeprefix("JOB_STATE_").lower() if told.end else "nothing"
    if seen != job["state"] or (told.end and told.end.version != job["version"]):
        found.ends_missed.append(f"{told.job_id}: its watcher saw {seen} at {told.seen}, it {job['state']}")


def _judge_history(job: Any, history: list[Any], attempts: list[Any], found: Findings) -> None:
    job_id = str(job["id"])
    kinds = [event["kind"] for event in history]
    if sum(kind in _ENDING for kind in kinds) > 1 or any(kind in _ENDING for kind in kinds[:-1]):
        found.applied_twice.append(f"{job_id}: {' '.join(kinds)}")
    if sum(attempt["outcome"] == "succeeded" for attempt in attempts) > 1:
        found.applied_twice.append(f"{job_id}: two attempts succeeded")
    if kinds[:1] != [SUBMITTED] or history[-1]["state"] != job["state"] or history[-1]["version"] > job["version"]:
        found.wrong_ends.append(f"{job_id}: its history {' '.join(kinds)} does not lead to {job['state']}")
    if job["state"] in TERMINAL and any(attempt["outcome"] is None for attempt in attempts):
        found.wrong_ends.append(f"{job_id}: ended with an attempt left open")
    if kinds.count("started") != len(attempts) or [one["claim_no"] for one in attempts] != list(
        range(1, len(attempts) + 1)
    ):
        found.wrong_ends.append(f"{job_id}: {kinds.count('started')} starts and {len(attempts)} attempts")


# --- webhooks --------------------------------------------------------------------------------------------


def _outcomes(record: Record) -> Counter[tuple[str, str]]:
    """(job id, event type) of what must be told, and how often it happened."""
    return Counter(
        (job_id, _TELLING[event["kind"]])
        for job_id, events in record.events.items()
        for event in events
        if event["kind"] in _TELLING
    )


def _received(load: Load, record: Record) -> dict[tuple[str, str], dict[str, set[bytes]]]:
    """What the receiver verified and took of these jobs: (job id, event type) → webhook-id → bodies."""
    received: dict[tuple[str, str], dict[str, set[bytes]]] = defaultdict(lambda: defaultdict(set))
    for post in load.world.taken:
        body = json.loads(post.body)
        if body["data"]["job_id"] in record.jobs:
            received[body["data"]["job_id"], body["type"]][post.id].add(post.body)
    return received


def _untold(load: Load, record: Record) -> list[str]:
    received = _received(load, record)
    return [
        f"{job_id}: {kind} happened {times} times, told {len(received.get((job_id, kind), {}))} times"
        for (job_id, kind), times in _outcomes(record).items()
        if len(received.get((job_id, kind), {})) < times
    ]


def _false_webhooks(load: Load, record: Record) -> list[str]:
    happened = _outcomes(record)
    faults = []
    for (job_id, kind), ids in _received(load, record).items():
        if len(ids) > happened[job_id, kind]:
            faults.append(f"{job_id}: {kind} happened {happened[job_id, kind]} times, told as {len(ids)} messages")
        faults += [f"{one}: sent with different bodies" for one, bodies in ids.items() if len(bodies) > 1]
    return faults


def _blind(load: Load, record: Record) -> bool:
    """Whether a watcher is still on its way to what the database knows."""
    return any(
        told.end is None and job["state"] in TERMINAL
        for told in load.told.values()
        if (job := record.jobs.get(told.job_id)) is not None
    )


# --- recovery --------------------------------------------------------------------------------------------


def restarts(record: Record, strikes: Iterable[tuple[datetime, str]]) -> list[float]:
    """For each job that a struck worker lost: seconds from the last strike at that worker until it was started again.

    Args:
        strikes: when, and at which worker as the attempt log names it.
    """
    by_worker: dict[str, list[datetime]] = defaultdict(list)
    for at, worker in strikes:
        by_worker[worker].append(at)
    return [
        (following["started_at"] - max(struck)).total_seconds()
        for attempts in record.attempts.values()
        for lost, following in itertools.pairwise(attempts)
        if lost["outcome"] == "lost"
        and (struck := [at for at in by_worker[lost["worker"]] if lost["started_at"] < at < lost["finished_at"]])
    ]
