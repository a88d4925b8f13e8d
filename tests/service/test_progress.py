"""How far a job is said to be: while an engine takes its time, and never longer than that."""

import asyncio
from dataclasses import replace

import pytest

from imprimatur.evidence import Creative, Evidence
from imprimatur.job import DEFAULTS, JobType
from imprimatur.retry import Backoff
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED as CANCELLED
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_QUEUED as QUEUED
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING as RUNNING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import Job, JobState
from imprimatur.v1.job_service_pb2 import CancelJobRequest, WatchJobRequest
from reviewer.tasks import creative_review
from tests.patience import PATIENCE_SECONDS
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System


class Slow(ScriptedEngine):
    """Does what the headline says, once it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = asyncio.Event()

    async def examine(self, creative: Creative) -> Evidence:
        await self.allowed.wait()
        return await super().examine(creative)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """An engine that is found slow at once, and whose failures are tried again much later."""
    monkeypatch.setattr(creative_review, "_SLOW_AFTER_SECONDS", 0.01)
    usual = DEFAULTS[JobType.CREATIVE_REVIEW]
    long = replace(usual, backoff=Backoff(first_seconds=1000.0, cap_seconds=1000.0))
    monkeypatch.setitem(DEFAULTS, JobType.CREATIVE_REVIEW, long)
    return Slow()


def shown(job: Job) -> tuple[int, str, str]:
    return job.progress.percent, job.progress.stage, job.progress.message


async def at_work(me: Caller, headline: str) -> Job:
    """A job whose engine is shown to take its time."""
    job = await me.submit(headline)
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for seen in me.jobs.WatchJob(WatchJobRequest(job_id=job.id)):
            if seen.job.progress.stage:
                assert seen.job.state == RUNNING
                assert shown(seen.job) == (30, "examining", "The engine is still examining the creative.")
                break
    return job


@pytest.mark.parametrize(
    ("headline", "state", "percent"),
    [
        (engines.APPROVE, SUCCEEDED, 100),
        (engines.REJECT, SUCCEEDED, 100),
        (engines.HUMAN, AWAITING, 0),
        (engines.REFUSE, AWAITING, 0),
        (engines.UNREADABLE, FAILED, 0),
        ("fail 1", QUEUED, 0),
    ],
)
async def test_progress_is_gone_once_the_attempt_has_ended(
    system: System, me: Caller, slow: Slow, headline: str, state: JobState.ValueType, percent: int
) -> None:
    async with system.reviewer(slow):
        job = await at_work(me, headline)
        slow.allowed.set()
        ended = await me.until(job, state)
    assert shown(ended) == (percent, "", "")
    assert shown(await me.get(job)) == (percent, "", "")


async def test_progress_is_gone_once_the_job_was_handed_back_or_cancelled(
    system: System, me: Caller, slow: Slow
) -> None:
    async with system.reviewer(slow):
        cancelled, handed_back = await at_work(me, engines.APPROVE), await at_work(me, engines.APPROVE)
        await me.jobs.CancelJob(CancelJobRequest(job_id=cancelled.id))
    for job, state in ((cancelled, CANCELLED), (handed_back, QUEUED)):
        ended = await me.get(job)
        assert (ended.state, shown(ended)) == (state, (0, "", ""))
    slow.allowed.set()
    async with system.reviewer(slow):
        assert shown(await me.until(handed_back, SUCCEEDED)) == (100, "", "")
