"""Clean-up as it happens: by itself, by the rpc and by the command."""

import asyncio
from functools import partial

import grpc
import pytest
from sqlalchemy import update

from gateway import administration, cleaning, service
from gateway.cleaning import Cleaner, clean_for
from imprimatur import metrics
from imprimatur.client import Client
from imprimatur.errors import Unavailable
from imprimatur.job import State
from imprimatur.retention import Kind, Retention
from imprimatur.storage import passes, retention
from imprimatur.storage.database import Database
from imprimatur.storage.deliveries import DeliveryState
from imprimatur.storage.schema import webhook_deliveries
from imprimatur.tenancy import Role
from imprimatur.v1.admin_service_pb2 import CleanUpRequest, CleanUpResponse
from imprimatur.v1.job_service_pb2 import GetJobRequest, ListJobsRequest, RetryJobRequest
from tests import makers
from tests.pasts import Past, Told, left, made
from tests.service.statuses import refusal
from tests.service.systems import Caller, System, on_sqlite
from tests.service.test_cli import run

WEEK = Retention()


@pytest.fixture(autouse=True)
def _not_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateways of these tests clean up when asked alone."""
    monkeypatch.setattr(service, "Cleaner", partial(Cleaner, first_seconds=1e6))


def rows(answer: CleanUpResponse) -> dict[str, int]:
    return {one.kind: one.rows for one in answer.cleaned_up}


def counted(name: str) -> float:
    value: float = metrics.rows_removed.labels(name)._value.get()
    return value


# --- when asked --------------------------------------------------------------------------------------------


async def test_an_administrator_sees_what_would_go_and_lets_it_go(system: System, me: Caller) -> None:
    other = await makers.make_tenant(system.database)
    gone, kept = await made(system.database, system.tenant_id, Past(), Past(days=3.0))
    [theirs] = await made(system.database, other, Past())
    foretold = await me.admin.CleanUp(CleanUpRequest(dry_run=True))
    assert (rows(foretold)["jobs"], rows(foretold)["job_events"], foretold.job_days) == (1, 3, 7)
    assert (await left(system.database)).jobs() == {gone, kept, theirs}
    before = counted("jobs")
    assert rows(await me.admin.CleanUp(CleanUpRequest())) == rows(foretold)
    assert (await left(system.database)).jobs() == {kept, theirs}
    assert counted("jobs") == before + 1
    assert not rows(await me.admin.CleanUp(CleanUpRequest()))
    early = await me.admin.CleanUp(CleanUpRequest(job_days=2))
    assert (rows(early)["jobs"], early.job_days) == (1, 2)
    assert (await left(system.database)).jobs() == {theirs}


async def test_what_is_gone_is_not_found_and_the_answer_says_how_long_jobs_are_kept(system: System, me: Caller) -> None:
    [old] = await made(system.database, system.tenant_id, Past(state=State.FAILED, told=Told.TO_NOBODY))
    retry = (await me.jobs.RetryJob(RetryJobRequest(job_id=str(old)))).job
    await me.admin.CleanUp(CleanUpRequest())
    seen = await refusal(me.jobs.GetJob(GetJobRequest(job_id=str(old))))
    assert (seen.code, seen.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    assert seen.message == f"there is no job {old}; finished jobs are kept for 7 days"
    again = await refusal(me.jobs.RetryJob(RetryJobRequest(job_id=str(old))))
    assert again.code is grpc.StatusCode.NOT_FOUND
    assert (await me.get(retry)).retry_of == str(old), "the link leads nowhere, but does no harm"
    assert [job.id for job in (await me.jobs.ListJobs(ListJobsRequest())).jobs] == [retry.id]


@on_sqlite
async def test_a_call_that_stops_after_a_while_is_gone_on_with_until_nothing_is_left(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(system.database, system.tenant_id, *(Past(days=30.0 - place) for place in range(5)))
    monkeypatch.setattr(retention, "STEP", 2)
    monkeypatch.setattr(administration, "clean_for", partial(clean_for, seconds=0.0))
    first = await me.admin.CleanUp(CleanUpRequest(dry_run=True))
    assert first.next_page_token
    other = await refusal(me.admin.CleanUp(CleanUpRequest(page_token=first.next_page_token)))
    assert other.reason == "INVALID_PAGE_TOKEN", "a token of a dry run removes nothing"
    async with Client(f"127.0.0.1:{system.port}", api_key=str(me.key)) as client:
        assert rows(await client.clean_up(dry_run=True))["jobs"] == 5
        assert rows(await client.clean_up())["jobs"] == 5
    assert not (await left(system.database)).jobs()


@on_sqlite
async def test_the_command_shows_a_table_of_what_goes(system: System, me: Caller) -> None:
    await made(system.database, system.tenant_id, Past(), Past(days=3.0))
    variables = {"IMPRIMATUR_TARGET": f"127.0.0.1:{system.port}", "IMPRIMATUR_API_KEY": str(me.key)}
    foretold, done = [await run("cleanup", *words, cwd=None, **variables) for words in (["--dry-run"], ["--json"])]
    assert (foretold.code, "WOULD GO" in foretold.out) == (0, True)
    assert ["job", "events", "3"] in [line.split() for line in foretold.out.splitlines()]
    assert foretold.err == "finished jobs are kept for 7 days\n"
    assert {"kind": "jobs", "rows": "1"} in done.json["cleanedUp"]
    submitter = {**variables, "IMPRIMATUR_API_KEY": await system.key(Role.SUBMITTER)}
    refused, nothing = [await run("cleanup", cwd=None, **mine) for mine in (submitter, variables)]
    assert (refused.code, "may not call CleanUp" in refused.err) == (1, True)
    assert nothing.out == "nothing was to be removed\n"


# --- by itself ---------------------------------------------------------------------------------------------


def cleaner(database: Database, wanted: Retention = WEEK) -> Cleaner:
    return Cleaner(database, wanted, first_seconds=0.0, look_seconds=0.02, pause_seconds=0.0)


async def passed(database: Database) -> bool:
    async with database.read() as reader:
        return await passes.last_success(reader) is not None


async def test_gateways_clean_up_by_themselves_one_pass_for_all_of_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STEP", 2)
    monkeypatch.setattr(cleaning, "_REST", 0.0)
    tenants = [await makers.make_tenant(database) for _ in range(2)]
    kept = [(await made(database, tenant, *[Past()] * 3, Past(days=3.0)))[-1] for tenant in tenants]
    before = {name: counted(name) for name in ("jobs", "request_ids")}
    both = [cleaner(database, Retention(days={Kind.JOBS: 7, Kind.REQUEST_IDS: 2})) for _ in range(2)]
    for one in both:
        one.start()
    try:
        await makers.until(lambda: passed(database))
        await makers.until(lambda: told_the_success(database))
        [again] = await made(database, tenants[0], Past())
        await asyncio.sleep(0)
    finally:
        for one in both:
            await one.stop()
    assert (await left(database)).jobs() == {*kept, again}, "the next pass is an hour away"
    assert {name: counted(name) - number for name, number in before.items()} == {"jobs": 6, "request_ids": 2}


@on_sqlite
async def test_a_request_id_is_known_until_the_outcome_is_delivered_and_forgotten_then(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    settled, open_still = await made(database, tenant, Past(days=3.0), Past(days=3.0, told=Told.PENDING))
    again_and_again = Cleaner(
        database,
        Retention(days={Kind.JOBS: 7, Kind.REQUEST_IDS: 2}),
        every_seconds=0.0,
        first_seconds=0.0,
        look_seconds=0.02,
        pause_seconds=0.0,
    )
    again_and_again.start()
    try:
        await makers.until(lambda: passed(database))
        assert (await left(database)).request_ids == {open_still} != {settled}
        async with database.begin() as tx:
            await tx.connection.execute(update(webhook_deliveries).values(state=DeliveryState.DELIVERED))
        await makers.until(lambda: all_forgotten(database))
    finally:
        await again_and_again.stop()


async def all_forgotten(database: Database) -> bool:
    return not (await left(database)).request_ids


async def told_the_success(database: Database) -> bool:
    async with database.read() as reader:
        at = await passes.last_success(reader)
    return at is not None and metrics.cleanup_succeeded._value.get() == pytest.approx(at.timestamp())


@on_sqlite
async def test_a_pass_goes_on_where_a_step_failed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await makers.make_tenant(database)
    await made(database, tenant, *[Past()] * 3)
    usual, calls = retention.clean_some, iter(range(1000))

    async def now_and_then(*arguments: object, **named: object) -> object:
        if next(calls) == 1:
            raise Unavailable("the database is out of reach")
        return await usual(*arguments, **named)  # type: ignore[arg-type]  # passed on as they are

    monkeypatch.setattr(retention, "STEP", 2)
    monkeypatch.setattr(cleaning, "_REST", 0.0)
    monkeypatch.setattr(retention, "clean_some", now_and_then)
    failures = metrics.loop_failures.labels("clean-up")._value.get()
    one = cleaner(database)
    one.start()
    try:
        await makers.until(lambda: passed(database))
    finally:
        await one.stop()
    assert not (await left(database)).jobs()
    assert metrics.loop_failures.labels("clean-up")._value.get() == failures + 1
