"""What can be counted: the answers to GetStats and GetSystemStatus, the expected duration, and the gauges.

The SQL is `storage.statistics`.
"""

import time
import uuid
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from itertools import product

from imprimatur import metrics
from imprimatur.broker import Broker
from imprimatur.errors import Unavailable
from imprimatur.job import JobType, NewJob, Priority, State
from imprimatur.storage import statistics as stored
from imprimatur.storage import workers
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.jobs import Owner
from imprimatur.v1 import job_service_pb2 as pb
from imprimatur.wire.creatives import timestamp
from imprimatur.wire.jobs import duration, priority_to_wire, type_to_wire

#: A worker not heard of for longer does not count.
_SILENT_SECONDS = 5.0
_ESTIMATE_SECONDS = 30.0
_MOST_ESTIMATES = 10_000
_UNFINISHED = (State.QUEUED, State.RUNNING, State.AWAITING_REVIEW)


class Estimates:
    """How long jobs of a type took lately, by tenant; asked of the database every half minute at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[tuple[uuid.UUID, JobType], tuple[float, float | None]] = {}

    async def put(self, new: NewJob) -> NewJob:
        """The job with its expected duration, where anything is known."""
        return replace(new, estimated_seconds=await self.seconds(new.tenant_id, new.type))

    async def seconds(self, tenant_id: uuid.UUID, job_type: JobType) -> float | None:
        """The mean of the newest successful attempts of this tenant; None without any."""
        asked_at, mean = self._known.get((tenant_id, job_type), (-_ESTIMATE_SECONDS, None))
        if time.monotonic() - asked_at < _ESTIMATE_SECONDS:
            return mean
        async with self._database.read() as reader:
            mean = await stored.recent_mean_seconds(reader, tenant_id, job_type)
        if len(self._known) >= _MOST_ESTIMATES:
            self._known.clear()
        self._known[tenant_id, job_type] = (time.monotonic(), mean)
        return mean


async def show_unfinished(reader: Reader) -> None:
    """Set the gauges of unfinished jobs."""
    now = await stored.unfinished(reader)
    # Nothing there is zero, not a series that goes away.
    metrics.jobs_by_state.show(
        {
            (state, job_type, priority.name.lower()): now.counts.get((state, job_type, priority), 0)
            for state, job_type, priority in product(_UNFINISHED, JobType, Priority)
        }
    )
    metrics.due_jobs.show(
        {
            (job_type, priority.name.lower()): now.due.get((job_type, priority), 0)
            for job_type, priority in product(JobType, Priority)
        }
    )
    metrics.oldest_due_seconds.show(
        {(priority.name.lower(),): now.oldest_due_seconds.get(priority, 0.0) for priority in Priority}
    )
    metrics.awaiting_oldest_seconds.show(now.oldest_awaiting_seconds or 0.0)


async def system_status(
    database: Database, broker: Broker, estimates: Estimates, owner: Owner
) -> pb.GetSystemStatusResponse:
    """Whether everything answers, and how much waits."""
    answer = pb.GetSystemStatusResponse(server_version=version("imprimatur"))
    answer.broker.up = broker.connected
    answer.database.up = False  # unless it answers
    began = time.perf_counter()
    try:
        await database.ping()
    except Unavailable:
        return answer
    answer.database.up = True
    answer.database.latency.CopyFrom(duration(time.perf_counter() - began) or answer.database.latency)
    try:
        await _count(answer, database, estimates, owner)
    except Unavailable:
        answer.database.up = False
    return answer


async def _count(answer: pb.GetSystemStatusResponse, database: Database, estimates: Estimates, owner: Owner) -> None:
    async with database.read() as reader:
        queues = await stored.queue_status(reader, owner)
        under_way = await stored.under_way(reader, owner)
        everybody = await stored.unfinished(reader)
        answer.workers, answer.slots = await workers.live_capacity(reader, silent_seconds=_SILENT_SECONDS)
    answer.running, answer.awaiting_review = under_way.running, under_way.awaiting_review
    expected = await estimates.seconds(owner.tenant_id, JobType.CREATIVE_REVIEW)
    for queue in queues:
        ahead = sum(
            number
            for (state, _, priority), number in everybody.counts.items()
            if state is State.RUNNING or (state is State.QUEUED and priority <= queue.priority)
        )
        answer.queues.append(
            pb.QueueStatus(
                priority=priority_to_wire(queue.priority),
                due=queue.due,
                scheduled=queue.scheduled,
                oldest_age=duration(queue.oldest_seconds),
                estimated_wait=duration(_wait(ahead, answer.slots, expected)),
            )
        )


def _wait(ahead: int, slots: int, expected_seconds: float | None) -> float | None:
    """Whole rounds of all slots that the jobs ahead fill; None when nobody works or nothing is known yet."""
    if slots == 0:
        return None
    rounds = ahead // slots
    if rounds == 0:
        return 0.0
    return rounds * expected_seconds if expected_seconds is not None else None


async def stats(database: Database, owner: Owner, since: datetime, until: datetime) -> pb.GetStatsResponse:
    """What was created and finished from `since` until before `until`."""
    async with database.read() as reader:
        types = await stored.type_stats(reader, owner, since, until)
        errors = await stored.error_counts(reader, owner, since, until)
        hours = await stored.hours(reader, owner, since, until)
    return pb.GetStatsResponse(
        types=[_type_stats(one) for one in types],
        errors=[pb.ErrorCount(code=one.code, attempts=one.attempts) for one in errors],
        hours=[pb.HourStats(hour=timestamp(one.hour), created=one.created, finished=one.finished) for one in hours],
        since=timestamp(since),
        until=timestamp(until),
    )


def _type_stats(one: stored.TypeStats) -> pb.TypeStats:
    return pb.TypeStats(
        type=type_to_wire(one.type),
        created=one.created,
        succeeded=one.succeeded,
        failed=one.failed,
        cancelled=one.cancelled,
        awaiting_review=one.awaiting_review,
        success_rate=one.success_rate,
        mean_duration=duration(one.mean_seconds),
        p95_duration=duration(one.p95_seconds),
        approved=one.approved,
        rejected=one.rejected,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cost_micros=one.cost_micros,
    )
