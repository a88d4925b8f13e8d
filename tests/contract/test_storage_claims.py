"""Claims, leases and fencing: a review may run twice, its result is applied once."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from tests import makers

from imprimatur.identity import new_id
from imprimatur.job import Attempt, AttemptOutcome, Claim, Happening, Job, JobError, State
from imprimatur.storage import claims, clock, jobs
from imprimatur.storage.claims import Spent
from imprimatur.storage.database import Database

COST = Spent(engine="test", input_tokens=100, output_tokens=20, cost_micros=7)
FAULT = JobError(code="transient", message="The provider is down.", stage="engine", retryable=True)


async def attempts_of(database: Database, job_id: uuid.UUID) -> list[Attempt]:
    async with database.read() as reader:
        return await jobs.attempts_of(reader, job_id)


async def renew(database: Database, *held: Claim, lease_seconds: float = 30.0) -> set[tuple[uuid.UUID, int]]:
    async with database.begin() as tx:
        return await claims.renew(tx, [(claim.job_id, claim.claim_no) for claim in held], lease_seconds=lease_seconds)


async def sweep(database: Database, *, limit: int = 100) -> list[uuid.UUID]:
    async with database.begin() as tx:
        return [row.id for row in await claims.lost_leases(tx, limit=limit)]


async def sweep_until_lost(database: Database, number: int) -> list[uuid.UUID]:
    lost: list[uuid.UUID] = []

    async def swept() -> bool:
        lost.extend(await sweep(database))
        return len(lost) >= number

    await makers.until(swept)
    return lost


async def lose(database: Database, job: Job, *, release_no: int) -> Claim:
    """Claim a job with a lease that runs out at once, and let it be swept."""
    claim = await makers.claim(database, job, release_no=release_no, lease_seconds=0.0)
    assert claim is not None
    assert await sweep_until_lost(database, 1) == [job.id]
    return claim


# --- claiming --------------------------------------------------------------------------------------------


async def test_a_claim_gives_the_worker_all_that_it_needs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant, content=b"an ad", deadline_seconds=60))
    claim = await makers.claim(database, job, by=makers.worker("reviewer-7"))
    assert claim is not None
    assert (claim.job_id, claim.claim_no, claim.tenant_id, claim.input) == (job.id, 1, tenant, b"an ad")
    assert (claim.attempts, claim.max_attempts, claim.timeout_seconds) == (0, 3, 120.0)
    assert 55 < claim.remaining_seconds <= 60
    stored = await makers.find(database, tenant, job.id)
    assert stored.state is State.RUNNING
    assert stored.version == 2
    assert stored.started_at is not None
    assert stored.started_at - stored.created_at < timedelta(seconds=5)
    [attempt] = await attempts_of(database, job.id)
    assert (attempt.claim_no, attempt.worker, attempt.outcome) == (1, "reviewer-7", None)


@pytest.mark.parametrize("release_no", [0, 2, -1])
async def test_a_message_of_another_release_claims_nothing(database: Database, release_no: int) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    assert await makers.claim(database, job, release_no=release_no) is None
    assert await makers.find(database, tenant, job.id) == job


async def test_a_job_that_is_not_released_cannot_be_claimed(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant), release_at_once=0)
    assert await makers.claim(database, job, release_no=0) is None


async def test_a_job_cannot_be_claimed_after_its_deadline(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant, deadline_seconds=0.0))
    assert await makers.claim(database, job) is None


async def test_a_job_that_does_not_exist_cannot_be_claimed(database: Database) -> None:
    assert await makers.claim(database, new_id()) is None


async def test_of_twenty_concurrent_claims_one_wins(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    claimed = await asyncio.gather(*(makers.claim(database, job) for _ in range(20)))
    assert [claim.claim_no for claim in claimed if claim is not None] == [1]
    assert len(await attempts_of(database, job.id)) == 1


async def test_a_claim_whose_answer_was_lost_is_found_again(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    claim_id = new_id()
    first = await makers.claim(database, job, claim_id=claim_id)
    again = await makers.claim(database, job, claim_id=claim_id)
    assert again == first
    assert len(await attempts_of(database, job.id)) == 1
    assert (await makers.find(database, tenant, job.id)).version == 2


async def test_a_claim_that_has_been_lost_meanwhile_is_not_found_again(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    claim_id = new_id()
    await makers.claim(database, job, claim_id=claim_id, lease_seconds=0.0)
    await sweep_until_lost(database, 1)
    assert await makers.claim(database, job, claim_id=claim_id) is None


# --- fencing ---------------------------------------------------------------------------------------------


async def taken_over(database: Database, tenant: uuid.UUID) -> tuple[Claim, Claim]:
    """A stale claim and the one that replaced it."""
    [job] = await makers.submit(database, makers.new_job(tenant))
    stale = await lose(database, job, release_no=1)
    await makers.release(database)
    live = await makers.claim(database, job, release_no=2)
    assert live is not None
    assert live.claim_no == stale.claim_no + 1
    return stale, live


@pytest.mark.parametrize(
    "happening",
    [
        Happening.COMPLETED,
        Happening.REFERRED,
        Happening.GAVE_UP,
        Happening.RETRY_SCHEDULED,
        Happening.HANDED_BACK,
    ],
)
async def test_a_stale_claim_changes_nothing_but_books_its_cost(database: Database, happening: Happening) -> None:
    tenant = await makers.make_tenant(database)
    stale, live = await taken_over(database, tenant)
    before = await makers.find(database, tenant, stale.job_id)
    assert await makers.conclude(database, stale, happening, shown={"decision": "approved"}, spent=COST) is None
    assert await makers.find(database, tenant, stale.job_id) == before
    old, new = await attempts_of(database, stale.job_id)
    assert (old.engine, old.input_tokens, old.output_tokens, old.cost_micros) == ("test", 100, 20, 7)
    assert old.outcome is AttemptOutcome.LOST  # what was recorded first stands
    assert (new.outcome, new.cost_micros) == (None, 0)
    assert await makers.conclude(database, live, Happening.COMPLETED) is not None


async def test_a_stale_claim_reports_no_progress_and_renews_nothing(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    stale, live = await taken_over(database, tenant)
    async with database.begin() as tx:
        assert not await claims.report_progress(tx, stale, percent=50, stage="late", message="")
    assert await renew(database, stale, live) == {(live.job_id, live.claim_no)}


async def test_a_result_is_applied_once_and_its_cost_booked_once(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    done = await makers.conclude(
        database, claim, Happening.COMPLETED, shown={"result": b"first", "result_count": 1}, spent=COST
    )
    assert done is not None
    assert await makers.conclude(database, claim, Happening.GAVE_UP, error=FAULT, spent=COST) is None
    assert await makers.find(database, tenant, claim.job_id) == done
    [attempt] = await attempts_of(database, claim.job_id)
    assert (attempt.outcome, attempt.error, attempt.cost_micros) == (AttemptOutcome.SUCCEEDED, None, 7)


async def test_a_result_that_comes_after_a_cancel_is_discarded_but_its_cost_is_booked(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    cancelled = await makers.cancel(database, await makers.find(database, tenant, claim.job_id))
    assert await makers.conclude(database, claim, Happening.COMPLETED, spent=COST) is None
    assert await makers.find(database, tenant, claim.job_id) == cancelled
    [attempt] = await attempts_of(database, claim.job_id)
    assert attempt.cost_micros == 7


async def test_concurrent_conclusions_of_one_claim_apply_one(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    ends = [Happening.COMPLETED, Happening.GAVE_UP, Happening.REFERRED, Happening.HANDED_BACK] * 3
    moved = await asyncio.gather(*(makers.conclude(database, claim, end) for end in ends))
    assert len([job for job in moved if job is not None]) == 1
    assert (await makers.find(database, tenant, claim.job_id)).version == 3


# --- ends of an attempt ----------------------------------------------------------------------------------


async def test_a_retry_waits_for_its_time_and_counts_the_attempt(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    job = await makers.conclude(database, claim, Happening.RETRY_SCHEDULED, delay_seconds=300.0, error=FAULT)
    assert job is not None
    assert (job.state, job.attempts, job.error) == (State.QUEUED, 1, FAULT)
    assert job.run_at - job.updated_at == pytest.approx(timedelta(seconds=300), abs=timedelta(seconds=1))
    assert await makers.release(database) == 0
    assert await makers.claim(database, job) is None
    [attempt] = await attempts_of(database, job.id)
    assert (attempt.outcome, attempt.error) == (AttemptOutcome.FAILED, FAULT)
    assert attempt.finished_at is not None


async def test_a_job_handed_back_runs_again_at_once_and_has_spent_no_attempt(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    job = await makers.conclude(database, claim, Happening.HANDED_BACK, spends_attempt=False)
    assert job is not None
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    assert await makers.claim(database, job, release_no=1) is None  # the old message is used up
    assert await makers.release(database) == 1
    again = await makers.claim(database, job, release_no=2)
    assert again is not None
    assert (again.claim_no, again.attempts) == (2, 0)


async def test_the_first_start_is_kept_and_progress_begins_anew(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    first = await makers.find(database, tenant, claim.job_id)
    async with database.begin() as tx:
        assert await claims.report_progress(tx, claim, percent=60, stage="images", message="2 of 3")
    await makers.conclude(database, claim, Happening.HANDED_BACK)
    await makers.release(database)
    assert await makers.claim(database, claim.job_id, release_no=2) is not None
    second = await makers.find(database, tenant, claim.job_id)
    assert second.started_at == first.started_at
    assert (second.progress_percent, second.progress_stage, second.progress_message) == (0, "", "")


async def test_a_success_clears_the_error_of_the_attempt_before(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    await makers.conclude(database, claim, Happening.RETRY_SCHEDULED, error=FAULT)
    await makers.release(database)
    again = await makers.claim(database, claim.job_id, release_no=2)
    assert again is not None
    assert (await makers.find(database, tenant, claim.job_id)).error == FAULT
    done = await makers.conclude(database, again, Happening.COMPLETED, shown={"result": b"r", "decision": "approved"})
    assert done is not None
    assert (done.state, done.error, done.result, done.decision) == (State.SUCCEEDED, None, b"r", "approved")
    assert (done.attempts, done.progress_percent) == (2, 100)
    assert done.finished_at is not None
    assert await makers.find(database, tenant, claim.job_id) == done


async def test_progress_never_goes_backwards_and_each_step_is_a_version(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant)
    taken = []
    for percent in (20, 50, 40, 50, 80):
        async with database.begin() as tx:
            taken.append(await claims.report_progress(tx, claim, percent=percent, stage=str(percent), message=""))
    assert taken == [True, True, False, True, True]
    job = await makers.find(database, tenant, claim.job_id)
    assert (job.progress_percent, job.progress_stage, job.version) == (80, "80", 6)


# --- leases ----------------------------------------------------------------------------------------------


async def test_renewing_returns_only_what_is_still_held(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    kept, cancelled, done, lost = [await makers.running(database, tenant) for _ in range(4)]
    await makers.cancel(database, await makers.find(database, tenant, cancelled.job_id))
    await makers.conclude(database, done, Happening.COMPLETED)
    async with database.begin() as tx:
        assert await claims.renew(tx, [(lost.job_id, lost.claim_no + 1), (new_id(), 1)], lease_seconds=3.0) == set()
    assert await renew(database, kept, cancelled, done) == {(kept.job_id, kept.claim_no)}
    assert await renew(database) == set()


async def test_a_renewed_lease_does_not_run_out(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    claim = await makers.running(database, tenant, lease_seconds=0.0)
    assert await renew(database, claim) == {(claim.job_id, claim.claim_no)}
    assert await sweep(database) == []


async def test_a_job_whose_lease_ran_out_is_queued_again_and_spends_no_attempt(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    await lose(database, job, release_no=1)
    queued = await makers.find(database, tenant, job.id)
    assert (queued.state, queued.attempts, queued.version) == (State.QUEUED, 0, 3)
    [attempt] = await attempts_of(database, job.id)
    assert attempt.outcome is AttemptOutcome.LOST
    assert attempt.error is not None
    assert attempt.error.code == "worker_lost"
    assert attempt.finished_at is not None
    assert await sweep(database) == []
    assert await makers.release(database) == 1


async def test_only_as_many_lost_jobs_as_asked_for_are_swept_at_once(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    for _ in range(5):
        await makers.running(database, tenant, lease_seconds=0.0)

    async def all_expired() -> bool:
        async with database.read() as reader:
            now = await clock.present(reader)
        return now > started + timedelta(milliseconds=5)

    async with database.read() as reader:
        started = await clock.present(reader)
    await makers.until(all_expired)
    assert [len(await sweep(database, limit=2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_two_sweepers_never_sweep_the_same_job(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held = [await makers.running(database, tenant, lease_seconds=0.0) for _ in range(12)]
    lost = await sweep_until_lost(database, 0)

    async def swept() -> bool:
        for batch in await asyncio.gather(*(sweep(database, limit=5) for _ in range(3))):
            lost.extend(batch)
        return len(lost) >= len(held)

    await makers.until(swept)
    assert sorted(lost) == sorted(claim.job_id for claim in held)


async def test_losses_are_counted_apart_and_claim_numbers_only_rise(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job] = await makers.submit(database, makers.new_job(tenant))
    for number in (1, 2, 3):
        claim = await lose(database, job, release_no=number)
        assert (claim.claim_no, claim.attempts) == (number, 0)
        await makers.release(database)
    assert [attempt.claim_no for attempt in await attempts_of(database, job.id)] == [1, 2, 3]


# --- workers ---------------------------------------------------------------------------------------------


async def capacity(database: Database, *, silent_seconds: float = 30.0) -> tuple[int, int]:
    async with database.read() as reader:
        return await claims.live_capacity(reader, silent_seconds=silent_seconds)


async def test_live_workers_are_those_heard_of_lately(database: Database) -> None:
    assert await capacity(database) == (0, 0)
    first, second = makers.worker("a", slots=4), makers.worker("b", slots=2)
    async with database.begin() as tx:
        await claims.seen(tx, first, running=0)
        await claims.seen(tx, second, running=2)
        await claims.seen(tx, first, running=1)
    assert await capacity(database) == (2, 6)

    async def silent() -> bool:
        return await capacity(database, silent_seconds=0.001) == (0, 0)

    await makers.until(silent)
    async with database.begin() as tx:
        await claims.gone(tx, second)
    assert await capacity(database) == (1, 4)
