"""What one tenant may take: refusals say which limit, how much, and when to come again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import DoubleValue, UInt32Value, UInt64Value
from prometheus_client import REGISTRY

from gateway import load, quotas
from gateway.access import Caller as Holder
from gateway.load import Load
from gateway.quotas import Allowance, Quotas
from imprimatur.budgets import Budget
from imprimatur.client import Client
from imprimatur.errors import Unavailable
from imprimatur.job import Happening
from imprimatur.storage import spending
from imprimatur.storage.attempts import Spent
from imprimatur.storage.database import Database
from imprimatur.tenancy import Limits, Role
from imprimatur.v1.admin_service_pb2 import (
    GetTenantLimitsRequest,
    SetTenantLimitsRequest,
    TenantBudget,
    TenantLimits,
    TenantSpending,
)
from imprimatur.v1.job_pb2 import JOB_STATE_CANCELLED, Job
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    CancelJobRequest,
    JobFilter,
    RetryJobRequest,
    RetryJobsRequest,
    SubmitJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)
from tests import makers
from tests.service import engines
from tests.service.statuses import Refusal, refusal, refusal_of
from tests.service.systems import Caller, System, on_postgresql, on_sqlite, submission
from tests.service.test_cli import Ran, run

FREE = Allowance(submits_per_second=0, open_jobs=0, streams=0)
#: Two jobs, and no more for as long as a test takes.
TWO_AND_NO_MORE = Allowance(submits_per_second=0.001, burst_seconds=2000.0, open_jobs=0)


@asynccontextmanager
async def limited(system: System, allowance: Allowance, role: Role = Role.ADMIN) -> AsyncIterator[Caller]:
    """Somebody at one more gateway, which allows so much."""
    async with system.gateway(allowance=allowance) as port:
        yield await system.holder(await system.key(role), port=port)


def refused(limit: str) -> float:
    return REGISTRY.get_sample_value("imprimatur_limit_refusals_total", {"limit": limit}) or 0.0


async def submit_refused(me: Caller, **fields: Any) -> Refusal:
    return await refusal(me.jobs.SubmitJob(submission(**fields)))


# --- open jobs -------------------------------------------------------------------------------------------


async def test_beyond_its_open_jobs_a_tenant_is_refused_until_one_ends(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_COUNT_AT_LIMIT_SECONDS", 0.02)
    before = refused("open_jobs")
    async with limited(system, Allowance(open_jobs=2)) as me:
        first = await me.submit(engines.APPROVE, request_id="a")
        await me.submit(engines.APPROVE)
        seen = await submit_refused(me)
        assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN_JOBS")
        assert seen.metadata == {"limit": "open_jobs", "value": "2"}
        assert seen.retry_after_seconds
        assert "at most 2 jobs of this tenant are queued or running" in seen.message
        assert refused("open_jobs") == before + 1
        # What was accepted before is answered, and what reuses its id is told so.
        again = await me.jobs.SubmitJob(submission(request_id="a"))
        assert (again.job.id, again.already_accepted) == (first.id, True)
        assert (await submit_refused(me, headline="another", request_id="a")).reason == "REQUEST_ID_REUSED"
        await me.jobs.CancelJob(CancelJobRequest(job_id=first.id))
        await makers.until(lambda: _accepted(me))
        assert (await submit_refused(me)).reason == "TOO_MANY_OPEN_JOBS"


async def test_what_waits_for_people_is_not_open(system: System) -> None:
    for _ in range(3):
        await makers.awaiting(system.database, system.tenant_id)
    async with limited(system, Allowance(open_jobs=1)) as me:
        await me.submit(engines.APPROVE)
        assert (await submit_refused(me)).reason == "TOO_MANY_OPEN_JOBS"


async def test_a_batch_is_accepted_as_far_as_there_is_room(system: System) -> None:
    async with limited(system, Allowance(open_jobs=3)) as me:
        old = await me.submit(engines.APPROVE, request_id="old")
        items = [submission(request_id=name) for name in ("new-1", "old", "new-2", "new-3")]
        bad = submission(creative_id="")
        results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=[bad, *items]))).results
        assert [result.WhichOneof("outcome") for result in results] == ["error", *["accepted"] * 3, "error"]
        assert results[2].accepted.job.id == old.id
        last = refusal_of(results[4].error)
        assert (last.code, last.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN_JOBS")
        assert last.retry_after_seconds
        assert refusal_of(results[0].error).reason == "FIELD_REQUIRED"


@on_postgresql
async def test_what_other_gateways_accept_is_counted_soon(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "COUNT_SECONDS", 0.02)
    async with limited(system, Allowance(open_jobs=20)) as one, limited(system, Allowance(open_jobs=20)) as other:
        await one.submit(engines.APPROVE)
        items = [submission() for _ in range(19)]
        await other.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))

        async def full() -> bool:
            return not await _accepted(one)

        await makers.until(full)
        assert (await submit_refused(other)).reason == "TOO_MANY_OPEN_JOBS"


@on_sqlite
async def test_retries_keep_to_the_limit_too(system: System) -> None:
    async with limited(system, FREE) as me:
        for number in range(3):
            job = await me.submit(engines.APPROVE, f"cr-{number}")
            await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    cancelled = RetryJobsRequest(filter=JobFilter(states=[JOB_STATE_CANCELLED]))
    async with limited(system, Allowance(open_jobs=2)) as me:
        done = await me.jobs.RetryJobs(cancelled)
        assert (len(done.retried), done.left) == (2, 1)
        assert (await refusal(me.jobs.RetryJobs(cancelled))).reason == "TOO_MANY_OPEN_JOBS"
        assert (await refusal(me.jobs.RetryJob(RetryJobRequest(job_id=job.id)))).reason == "TOO_MANY_OPEN_JOBS"
        counted = RetryJobsRequest(filter=cancelled.filter, dry_run=True)
        assert (await me.jobs.RetryJobs(counted)).left == 1


async def _accepted(me: Caller) -> bool:
    try:
        await me.submit(engines.APPROVE)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017  # the other outcome is as good
        return False
    return True


# --- the rate --------------------------------------------------------------------------------------------


async def test_beyond_its_rate_a_tenant_is_told_when_to_come_again(system: System) -> None:
    async with limited(system, TWO_AND_NO_MORE) as me:
        await me.submit(engines.APPROVE, request_id="a")
        for _ in range(5):  # for nothing
            assert (await me.jobs.SubmitJob(submission(request_id="a"))).already_accepted
        await me.submit(engines.APPROVE)
        seen = await submit_refused(me)
        assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SUBMIT_RATE_EXCEEDED")
        assert seen.metadata == {"limit": "submits_per_second", "value": "0.001"}
        assert 0 < (seen.retry_after_seconds or 0) <= 1000
        assert (await me.jobs.SubmitJob(submission(request_id="a"))).already_accepted
        results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=[submission(), submission()]))).results
        waits = [refusal_of(result.error).retry_after_seconds or 0 for result in results]
        assert waits[1] - waits[0] == pytest.approx(1000, abs=1)  # each in its turn


@on_sqlite
@pytest.mark.parametrize("headline", ["another", "approve"], ids=["refused for its key", "unchanged"])
async def test_what_becomes_no_job_counts_towards_the_rate_too(system: System, headline: str) -> None:
    async with limited(system, TWO_AND_NO_MORE) as me:
        await me.submit(engines.APPROVE, "cr-1", concurrency_key="k")
        twice = submission(headline, "cr-1", concurrency_key="k")
        if headline == engines.APPROVE:
            assert (await me.jobs.SubmitJob(twice)).already_accepted
        else:
            assert (await refusal(me.jobs.SubmitJob(twice))).reason == "KEY_BUSY"
        assert (await refusal(me.jobs.SubmitJob(twice))).reason == "SUBMIT_RATE_EXCEEDED"


@on_sqlite
@pytest.mark.parametrize("reason", ["FIELD_REQUIRED", "ASSET_NOT_FOUND"])
@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_what_is_invalid_counts_towards_the_rate_too(system: System, reason: str, request_id: str) -> None:
    async with limited(system, TWO_AND_NO_MORE) as me:
        for number in range(2):
            name = request_id and f"{request_id}-{number}"
            wrong = submission(creative_id="", request_id=name) if reason == "FIELD_REQUIRED" else imageless(name)
            assert (await refusal(me.jobs.SubmitJob(wrong))).reason == reason
        assert (await submit_refused(me)).reason == "SUBMIT_RATE_EXCEEDED"


def imageless(request_id: str = "") -> SubmitJobRequest:
    """A creative whose image was never uploaded."""
    wrong = submission(request_id=request_id)
    wrong.creative_review.creative.images.add(asset_id="0" * 64)
    return wrong


@on_sqlite
async def test_what_the_rate_has_no_room_for_is_not_looked_at_unless_it_may_have_been_accepted_before(
    system: System,
) -> None:
    async with limited(system, TWO_AND_NO_MORE) as me:
        old = await me.submit(engines.APPROVE, request_id="old")
        invalid = submission(creative_id="")
        items = [submission(), submission(), invalid, imageless()]  # the first takes what is left
        assert await outcomes(me, items) == ["accepted", *["SUBMIT_RATE_EXCEEDED"] * 3]
        again = submission(request_id="old")
        items = [invalid, submission(creative_id="", request_id="r-1"), imageless("r-2"), again, imageless()]
        fast = "SUBMIT_RATE_EXCEEDED"
        assert await outcomes(me, items) == [fast, "FIELD_REQUIRED", fast, "accepted", fast]
        assert (await submit_refused(me, creative_id="")).reason == fast
        assert (await me.jobs.SubmitJob(again)).job.id == old.id


@on_sqlite
async def test_an_invalid_item_takes_the_room_of_one_item_from_those_behind_it(system: System) -> None:
    three = Allowance(submits_per_second=0.001, burst_seconds=3000.0, open_jobs=0)
    async with limited(system, three) as me:
        items = [submission(creative_id=""), submission(), imageless(), submission()]
        expected = ["FIELD_REQUIRED", "accepted", "ASSET_NOT_FOUND", "SUBMIT_RATE_EXCEEDED"]
        assert await outcomes(me, items) == expected
        assert await outcomes(me, items) == ["SUBMIT_RATE_EXCEEDED"] * 4


async def outcomes(me: Caller, items: list[SubmitJobRequest]) -> list[str]:
    """Of a batch: accepted, or why not."""
    results = (await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=items))).results
    return ["accepted" if one.HasField("accepted") else refusal_of(one.error).reason for one in results]


@on_sqlite
async def test_each_tenant_has_a_rate_of_its_own(system: System) -> None:
    async with system.gateway(allowance=TWO_AND_NO_MORE) as port:
        me = await system.holder(await system.key(Role.SUBMITTER), port=port)
        for _ in range(2):
            await me.submit(engines.APPROVE)
        assert (await submit_refused(me)).reason == "SUBMIT_RATE_EXCEEDED"
        theirs = await makers.make_tenant(system.database)
        other = await system.holder(await system.key(Role.SUBMITTER, tenant_id=theirs), port=port)
        await other.submit(engines.APPROVE)


@on_sqlite
async def test_what_could_not_be_stored_costs_nothing(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    who = Holder(tenant_id=tenant, tenant_name="t", role=Role.ADMIN, user_id="", key_name="k")
    accounts = Quotas(database, TWO_AND_NO_MORE)
    both = [makers.new_job(tenant), makers.new_job(tenant)]
    for _ in range(3):
        with await accounts.admit(who, both) as admission:
            assert list(admission.jobs) == both  # and none is made
    with await accounts.admit(who, both) as admission:
        admission.stored(2)
    assert not (await accounts.admit(who, both)).jobs


# --- an operator's word ----------------------------------------------------------------------------------


async def test_an_operator_gives_a_tenant_limits_of_its_own(system: System) -> None:
    name = (await (await system.caller()).submit(engines.APPROVE)).tenant
    async with system.gateway(allowance=Allowance(open_jobs=1, submits_per_second=5)) as port:
        me = await system.holder(await system.key(Role.SUBMITTER), port=port)
        operator = await system.holder(await system.key(Role.OPERATOR), port=port)
        assert (await submit_refused(me)).metadata["value"] == "1"
        own = TenantLimits(open_jobs=UInt32Value(value=0), submits_per_second=DoubleValue(value=2.5))
        answer = await operator.administration.SetTenantLimits(SetTenantLimitsRequest(tenant=name, limits=own))
        assert answer.own == own
        assert answer.effective.open_jobs.value == 0
        assert answer.effective.streams.value == Allowance().streams
        assert (await operator.administration.GetTenantLimits(GetTenantLimitsRequest(tenant=name))).own == own
        await makers.until(lambda: _accepted(me))  # within two seconds
        answer = await operator.administration.SetTenantLimits(SetTenantLimitsRequest(tenant=name))
        assert answer.own == TenantLimits()
        assert answer.effective.submits_per_second.value == 5


@on_sqlite
async def test_limits_that_cannot_be_are_refused(system: System) -> None:
    operator = await system.caller(Role.OPERATOR)
    for limits, field in (
        (TenantLimits(submits_per_second=DoubleValue(value=-1)), "limits.submits_per_second"),
        (TenantLimits(submits_per_second=DoubleValue(value=float("nan"))), "limits.submits_per_second"),
        (TenantLimits(open_jobs=UInt32Value(value=4_000_000_000)), "limits.open_jobs"),
        (TenantLimits(streams=UInt32Value(value=4_000_000_000)), "limits.streams"),
    ):
        request = SetTenantLimitsRequest(tenant="t", limits=limits)
        assert list((await refusal(operator.administration.SetTenantLimits(request))).violations) == [field]
    nobody = GetTenantLimitsRequest(tenant="nobody")
    assert (await refusal(operator.administration.GetTenantLimits(nobody))).reason == "TENANT_NOT_FOUND"
    unnamed = SetTenantLimitsRequest()
    assert (await refusal(operator.administration.SetTenantLimits(unnamed))).reason == "FIELD_REQUIRED"


# --- what may be spent -----------------------------------------------------------------------------------


async def test_an_operator_gives_a_tenant_a_budget_and_sees_what_it_has_spent(system: System) -> None:
    name = (await (await system.caller()).submit(engines.APPROVE)).tenant
    operator = (await system.caller(Role.OPERATOR)).administration
    limits = TenantLimits(open_jobs=UInt32Value(value=7))
    await operator.SetTenantLimits(SetTenantLimitsRequest(tenant=name, limits=limits))
    budget = TenantBudget(daily_tokens=UInt64Value(value=0), daily_cost_micros=UInt64Value(value=10**15))
    answer = await operator.SetTenantLimits(SetTenantLimitsRequest(tenant=name, budget=budget))
    assert (answer.own, answer.budget, answer.spent_today) == (limits, budget, TenantSpending())
    async with system.database.read() as reader:
        own, _ = await spending.of_tenant(reader, system.tenant_id)
    assert own == Budget(daily_tokens=0, daily_cost_micros=10**15)
    claim = await makers.running(system.database, system.tenant_id)
    spent = Spent(engine="test", input_tokens=20, output_tokens=3, cost_micros=5)
    await makers.conclude(system.database, claim, Happening.GAVE_UP, spent=spent)
    seen = await operator.GetTenantLimits(GetTenantLimitsRequest(tenant=name))
    assert (seen.own, seen.budget) == (limits, budget)
    assert seen.spent_today == TenantSpending(tokens=23, cost_micros=5)
    answer = await operator.SetTenantLimits(SetTenantLimitsRequest(tenant=name, limits=TenantLimits()))
    assert (answer.own, answer.budget) == (TenantLimits(), budget)
    answer = await operator.SetTenantLimits(SetTenantLimitsRequest(tenant=name, budget=TenantBudget()))
    assert answer.budget == TenantBudget()


@on_sqlite
async def test_a_budget_that_cannot_be_is_refused_and_changes_nothing(system: System) -> None:
    name = (await (await system.caller()).submit(engines.APPROVE)).tenant
    operator = (await system.caller(Role.OPERATOR)).administration
    for field in ("daily_tokens", "daily_cost_micros"):
        budget = TenantBudget(**{field: UInt64Value(value=10**15 + 1)})
        limits = TenantLimits(open_jobs=UInt32Value(value=7))
        request = SetTenantLimitsRequest(tenant=name, limits=limits, budget=budget)
        assert list((await refusal(operator.SetTenantLimits(request))).violations) == [f"budget.{field}"]
    nobody = SetTenantLimitsRequest(tenant="nobody", budget=TenantBudget())
    assert (await refusal(operator.SetTenantLimits(nobody))).reason == "TENANT_NOT_FOUND"
    seen = await operator.GetTenantLimits(GetTenantLimitsRequest(tenant=name))
    assert (seen.own, seen.budget) == (TenantLimits(), TenantBudget())


@on_sqlite
async def test_the_command_changes_what_it_is_told_and_leaves_the_rest(system: System) -> None:
    name = (await (await system.caller()).submit(engines.APPROVE)).tenant
    keys = {role: await system.key(role) for role in (Role.OPERATOR, Role.ADMIN)}

    async def limits(*words: str, role: Role = Role.OPERATOR) -> Ran:
        variables = {"IMPRIMATUR_TARGET": f"127.0.0.1:{system.port}", "IMPRIMATUR_API_KEY": keys[role]}
        return await run("limits", name, *words, cwd=None, **variables)

    first = await limits("--open-jobs", "7", "--streams", "none", "--daily-tokens", "5000", "--json")
    assert first.json["own"] == {"openJobs": 7, "streams": 0}
    assert first.json["budget"] == {"dailyTokens": "5000"}
    then = await limits("--open-jobs", "default", "--daily-cost-dollars", "0.0000001", "--json")
    assert then.json["own"] == {"streams": 0}
    assert then.json["budget"] == {"dailyTokens": "5000", "dailyCostMicros": "1"}
    shown = await limits()
    assert [line.split() for line in shown.out.splitlines()[1:]] == [
        ["submits_per_second", "default", "1000"],
        ["open_jobs", "default", "100000"],
        ["running_jobs", "default", "none"],
        ["streams", "none", "none"],
        ["asset_bytes", "default", "1073741824"],
        ["daily_tokens", "5000", "0"],
        ["daily_cost_dollars", "1e-06", "0.000000"],
    ]
    refused = await limits("--daily-tokens", "5", role=Role.ADMIN)
    assert (refused.code, refused.out) == (1, "")
    assert "role" in refused.err
    wrong = await limits("--daily-tokens", "-1")
    assert (wrong.code, "'none' or 'default'" in wrong.err) == (2, True)
    async with Client(f"127.0.0.1:{system.port}", api_key=keys[Role.OPERATOR]) as client:
        assert (await client.tenant_limits(name)).budget.daily_tokens.value == 5000
        answer = await client.set_tenant_limits(name, budget=TenantBudget())
        assert (answer.own.HasField("streams"), answer.budget) == (True, TenantBudget())


def test_a_limit_of_ones_own_goes_before_the_settings_and_0_is_none() -> None:
    allowed = Allowance(submits_per_second=1, open_jobs=2, streams=3)
    assert allowed.of(Limits()) == allowed
    own = allowed.of(Limits(submits_per_second=0, open_jobs=0, streams=9))
    assert (own.submits_per_second, own.open_jobs, own.streams) == (0, 0, 9)
    assert (own.burst_seconds, own.all_streams) == (allowed.burst_seconds, allowed.all_streams)


# --- streams and requests --------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    ("allowance", "limit"),
    [(Allowance(streams=2), "streams"), (Allowance(streams=0, all_streams=2), "all_streams")],
    ids=["of a tenant", "of a gateway"],
)
async def test_beyond_its_streams_nobody_opens_one_until_one_is_left(
    system: System, allowance: Allowance, limit: str
) -> None:
    async with limited(system, allowance) as me:
        job = await me.submit(engines.APPROVE)
        streams: list[Any] = [me.jobs.WatchJob(WatchJobRequest(job_id=job.id)), me.jobs.WatchJobs(WatchJobsRequest())]
        for stream in streams:
            await stream.read()
        seen = await refusal(me.jobs.WatchJob(WatchJobRequest(job_id=job.id)))
        assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        assert seen.metadata == {"limit": limit, "value": "2"}
        assert seen.retry_after_seconds
        streams.pop().cancel()

        async def opens() -> bool:
            stream: Any = me.jobs.WatchJob(WatchJobRequest(job_id=job.id))
            try:
                seen: Job = (await stream.read()).job
            except grpc.aio.AioRpcError:
                return False
            stream.cancel()
            return seen.id == job.id

        await makers.until(opens)


@on_sqlite
async def test_a_tenants_streams_leave_room_for_others(system: System) -> None:
    async with system.gateway(allowance=Allowance(streams=1)) as port:
        theirs = await makers.make_tenant(system.database)
        callers = [
            await system.holder(await system.key(Role.ADMIN, tenant_id=tenant), port=port)
            for tenant in (system.tenant_id, theirs)
        ]
        for caller in callers:
            stream: Any = caller.jobs.WatchJobs(WatchJobsRequest())
            assert (await stream.read()).snapshot_complete
            assert (await refusal(caller.jobs.WatchJobs(WatchJobsRequest()))).reason == "TOO_MANY_STREAMS"


def test_requests_in_hand_have_so_many_bytes_together_and_one_may_always_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "MOST_REQUEST_BYTES", 100)
    accounts = Load(FREE)
    with accounts.request(4_000_000), pytest.raises(Unavailable, match="hands full") as caught, accounts.request(1):
        pass
    assert caught.value.reason == "GATEWAY_BUSY"
    with accounts.request(50), accounts.request(50), pytest.raises(Unavailable), accounts.request(1):
        pass
    with accounts.request(100):
        pass
