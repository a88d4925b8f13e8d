"""Claims and fencing: a review may run twice, its result is applied once."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Claim, Happening, JobError, State
from imprimatur.storage import claims, schema
from imprimatur.storage.attempts import Spent
from imprimatur.storage.database import Database
from tests import makers
from tests.contract.leasing import attempts_of, lose, renew, sweep_until_lost

COST = Spent(engine="test", input_tokens=100, output_tokens=20, cost_micros=7)
FAULT = JobError(code="transient", message="The provider is down.", stage="engine", retryable=True)


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
    assert (
        await makers.conclude(database, stale, happening, shown=makers.shown("approved", "auto_approve"), spent=COST)
        is None
    )
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
        database,
        claim,
        Happening.COMPLETED,
        shown=makers.shown("approved", "auto_approve", result=b"first"),
        spent=COST,
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
    shown = makers.shown("approved", "auto_approve", result=b"r")
    done = await makers.conclude(database, again, Happening.COMPLETED, shown=shown)
    assert done is not None
    assert (done.state, done.error, done.result, done.decision) == (State.SUCCEEDED, None, b"r", "approved")
    assert (done.attempts, done.progress_percent) == (2, 100)
    assert done.finished_at is not None
    assert await makers.find(database, tenant, claim.job_id) == done


async def test_no_error_is_null_for_sql_too(database: Database) -> None:
    """Else "all that stand with an error" would find every job there is."""
    tenant = await makers.make_tenant(database)
    await makers.conclude(database, await makers.running(database, tenant), Happening.COMPLETED)
    await makers.conclude(database, await makers.running(database, tenant), Happening.GAVE_UP, error=FAULT)
    async with database.read() as reader:
        for table in (schema.jobs, schema.attempts):
            erring = select(func.count()).select_from(table).where(table.c.error.is_not(None))
            assert (await reader.connection.execute(erring)).scalar_one() == 1


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
