"""Makers of what tests need many of. Each argument has a default; a test names only what it is about."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from sqlalchemy import delete

from imprimatur.criteria import Criterion
from imprimatur.errors import Locked
from imprimatur.evidence import Category, CategoryScore, CriterionScore, EngineIdentity, Evidence, Part, Recommendation
from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Claim, Happening, Job, JobError, JobType, NewJob, Priority, WhenBusy
from imprimatur.storage import acceptance, claims, conclusions, dispatch, jobs, people, schema, tenants
from imprimatur.storage.attempts import Spent
from imprimatur.storage.audit import Actor
from imprimatur.storage.claims import Wanted
from imprimatur.storage.conclusions import Conclusion, Ending, Shown
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.storage.review_queue import Waiting
from imprimatur.storage.workers import Worker
from tests.patience import PATIENCE_SECONDS

#: More than any test submits at once.
EVERYTHING = 10_000


def new_job(
    tenant_id: uuid.UUID,
    *,
    job_id: uuid.UUID | None = None,
    content: bytes = b"a creative",
    request_id: str | None = None,
    user_id: str = "",
    priority: Priority = Priority.NORMAL,
    subject_id: str = "",
    labels: Mapping[str, str] | None = None,
    run_at: datetime | None = None,
    deadline_seconds: float = 3600.0,
    max_attempts: int = 3,
    callback_url: str = "",
    retry_of: uuid.UUID | None = None,
    key: str | None = None,
    when_busy: WhenBusy = WhenBusy.REFUSE,
    revision: int | None = None,
) -> NewJob:
    """A creative review about to be accepted, without a key of its own. `content` is its input, and hashed."""
    return NewJob(
        id=job_id or new_id(),
        tenant_id=tenant_id,
        type=JobType.CREATIVE_REVIEW,
        user_id=user_id,
        priority=priority,
        request_id=request_id,
        content_hash=hashlib.sha256(content).digest(),
        subject_id=subject_id,
        labels=labels or {},
        parameters={},
        input=content,
        callback_url=callback_url,
        max_attempts=max_attempts,
        timeout_seconds=120.0,
        run_at=run_at,
        deadline_seconds=deadline_seconds,
        retry_of=retry_of,
        concurrency_key=key,
        when_busy=when_busy,
        revision=revision,
    )


def worker(name: str = "reviewer-1", *, slots: int = 4) -> Worker:
    """A reviewer process with an id of its own."""
    return Worker(id=new_id(), name=name, slots=slots)


def evidence(
    score: float = 0.95,
    *,
    recommendation: Recommendation = Recommendation.APPROVE,
    detected: Mapping[Category, float] | None = None,
    examined: frozenset[Category] = frozenset(Category),
    unexamined: frozenset[Part] = frozenset(),
    truncated: bool = False,
    broken: Mapping[Criterion, float] | None = None,
) -> Evidence:
    """What an engine found; by default a clean creative, wholly examined. `broken` has the criteria it was asked about,
    each with the probability that the creative breaks it."""
    return Evidence(
        engine=EngineIdentity(name="test", version="1"),
        approval_score=score,
        recommendation=recommendation,
        reason="It was looked at.",
        categories=tuple(CategoryScore(category=name, score=value) for name, value in (detected or {}).items()),
        examined_categories=examined,
        unexamined=unexamined,
        truncated=truncated,
        criteria=tuple(
            CriterionScore(name=one.name, fingerprint=one.fingerprint, score=value, explanation="It says so.")
            for one, value in (broken or {}).items()
        ),
    )


async def empty(database: Database) -> None:
    """Remove all that can be: tenants stay, as what is on record of them does."""
    async with database.begin() as tx:
        for table in reversed(schema.metadata.sorted_tables):
            if table not in (*schema.RECORDS, schema.tenants):
                await tx.connection.execute(delete(table))


async def make_tenant(database: Database, name: str = "") -> uuid.UUID:
    """A tenant with the default policy."""
    async with database.begin() as tx:
        return await tenants.create_tenant(tx, name or f"tenant-{uuid.uuid4().hex}")


async def submit(database: Database, *new_jobs: NewJob, release_at_once: int = EVERYTHING) -> list[Job]:
    """Accept jobs; released at once unless `release_at_once` says otherwise."""
    async with database.begin() as tx:
        answers = await acceptance.submit(tx, new_jobs, release_at_once=release_at_once)
    return [answer.job for answer in answers]


async def release(database: Database, *, room: int = EVERYTHING) -> int:
    """One pass of the dispatcher."""
    async with database.begin() as tx:
        return await dispatch.release_due(tx, room=room)


async def claim(
    database: Database,
    job: Job | uuid.UUID,
    *,
    by: Worker | None = None,
    release_no: int = 1,
    claim_id: uuid.UUID | None = None,
    lease_seconds: float = 30.0,
) -> Claim | None:
    """Try to claim a released job, unless somebody keeps it locked."""
    async with database.begin() as tx:
        wanted = Wanted(
            job_id=job if isinstance(job, uuid.UUID) else job.id,
            release_no=release_no,
            claim_id=claim_id or new_id(),
        )
        [claimed] = await claims.claim(tx, by or worker(), [wanted], lease_seconds=lease_seconds)
    return None if isinstance(claimed, Locked) else claimed


def unlocked(claimed: Claim | Locked | None) -> Claim | None:
    """What came of wanting a job, where nobody keeps it locked."""
    assert not isinstance(claimed, Locked)
    return claimed


async def running(
    database: Database,
    tenant_id: uuid.UUID,
    *,
    lease_seconds: float = 30.0,
    max_attempts: int = 3,
    callback_url: str = "",
) -> Claim:
    """A new job, claimed."""
    [job] = await submit(database, new_job(tenant_id, max_attempts=max_attempts, callback_url=callback_url))
    held = await claim(database, job, lease_seconds=lease_seconds)
    assert held is not None
    return held


async def find(database: Database, tenant_id: uuid.UUID, job_id: uuid.UUID) -> Job:
    """The job as it stands."""
    async with database.read() as reader:
        job = await jobs.find(reader, Owner(tenant_id=tenant_id), job_id)
    assert job is not None
    return job


def shown(decision: str, trigger: str, *, result: bytes = b"", result_count: int = 0) -> Shown:
    """What an attempt makes to be seen."""
    return Shown(decision=decision, policy_triggered=trigger, result=result, result_count=result_count)


_OUTCOMES = {
    Happening.COMPLETED: AttemptOutcome.SUCCEEDED,
    Happening.REFERRED: AttemptOutcome.SUCCEEDED,
    Happening.HANDED_BACK: AttemptOutcome.HANDED_BACK,
}


async def conclude(
    database: Database,
    claim: Claim,
    happening: Happening,
    *,
    spends_attempt: bool = True,
    delay_seconds: float = 0.0,
    error: JobError | None = None,
    shown: Shown | None = None,
    spent: Spent | None = None,
) -> Job | None:
    """End the claimed attempt."""
    conclusion = Conclusion(
        happening=happening,
        outcome=_OUTCOMES.get(happening, AttemptOutcome.FAILED),
        spends_attempt=spends_attempt,
        delay_seconds=delay_seconds,
        error=error,
        shown=shown,
    )
    async with database.begin() as tx:
        ending = Ending(claim=claim, conclusion=conclusion, spent=spent or Spent(engine="test"))
        if await conclusions.conclude(tx, [ending]) == [None]:
            return None
    return await find(database, claim.tenant_id, claim.job_id)


async def awaiting(
    database: Database, tenant_id: uuid.UUID, *, priority: Priority = Priority.NORMAL, user_id: str = ""
) -> Job:
    """A job that waits for a person."""
    [job] = await submit(database, new_job(tenant_id, priority=priority, user_id=user_id))
    held = await claim(database, job)
    assert held is not None
    referred = await conclude(database, held, Happening.REFERRED, shown=shown("pending", "low_confidence"))
    assert referred is not None
    return referred


async def cancel(database: Database, job: Job) -> Job | None:
    """Cancel as its tenant."""
    async with database.begin() as tx:
        return await jobs.cancel(tx, Owner(tenant_id=job.tenant_id), job.id, reason="")


async def hold(database: Database, job: Job, *, reviewer: str, seconds: float = 60.0) -> Waiting | None:
    """Take a waiting job as `reviewer`."""
    async with database.begin() as tx:
        return await people.hold(tx, Owner(tenant_id=job.tenant_id), job.id, by=Actor(person=reviewer), seconds=seconds)


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Ask again and again until the answer is yes. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {holds}"
        await asyncio.sleep(0.005)
