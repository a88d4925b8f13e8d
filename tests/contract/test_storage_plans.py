"""What runs several times a second never reads the history: by the plans of SQLite, which are short to read, and by the
rows that PostgreSQL says it has read."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import CTE, Column, ColumnElement, Uuid, event, func, insert, select, true

from imprimatur.evidence import EngineIdentity
from imprimatur.human import DueHours
from imprimatur.identity import new_id
from imprimatur.job import AttemptOutcome, Claim, Happening, JobType, State, WhenBusy
from imprimatur.retention import Kind, Retention
from imprimatur.storage import (
    acceptance,
    announcements,
    claims,
    conclusions,
    deliveries,
    dispatch,
    flights,
    jobs,
    landings,
    outbox,
    people,
    redecisions,
    repeats,
    retention,
    review_queue,
    review_statistics,
    statistics,
)
from imprimatur.storage import tenants as stored_tenants
from imprimatur.storage.announcements import NewMessage
from imprimatur.storage.attempts import Spent
from imprimatur.storage.claims import Wanted as WantedClaim
from imprimatur.storage.clock import Instant
from imprimatur.storage.conclusions import Conclusion, Ending
from imprimatur.storage.database import Database, Transaction
from imprimatur.storage.deliveries import AttemptRecord, DeliveryState, Lease
from imprimatur.storage.flights import Asked
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.storage.landings import Landing, Made
from imprimatur.storage.repeats import Scope
from imprimatur.storage.retention import Place
from imprimatur.storage.review_queue import Choice, Wanted
from imprimatur.storage.schema import (
    attempts,
    job_events,
    metadata,
    tenants,
    webhook_attempts,
    webhook_deliveries,
    webhook_messages,
)
from imprimatur.storage.schema import jobs as jobs_table
from tests import makers

#: Whose history it is, and where it hears of it.
TENANT = new_id()
URL = "https://a.example/hook"
SCOPE = Scope(owner=Owner(tenant_id=TENANT), wanted=Filter(), as_of=datetime.now(UTC))
#: Names that statements give to the table of jobs.
ALIASES = "older|revised|newer|again"
#: Indexes over live rows alone.
LIVE = {
    index.name
    for table in metadata.sorted_tables
    for index in table.indexes
    if re.search("'(queued|running|awaiting_review|pending)'|_pending", str(index.dialect_options["sqlite"]["where"]))
}
FAILED = Filter(states=frozenset({State.FAILED}))

HOT: dict[str, Callable[[Transaction], Awaitable[object]]] = {
    "backlog": lambda tx: dispatch.backlog(tx, silent_seconds=5.0),
    "release_due": lambda tx: dispatch.release_due(tx, room=10),
    "reissue": lambda tx: dispatch.reissue(tx, limit=10),
    "overdue": lambda tx: dispatch.tenants_with(tx, dispatch.OVERDUE, JobType.CREATIVE_REVIEW, limit=100),
    "lost too often": lambda tx: dispatch.tenants_with(tx, dispatch.LOST_TOO_OFTEN, JobType.CREATIVE_REVIEW, limit=100),
    "give_up": lambda tx: dispatch.give_up(
        tx,
        dispatch.OVERDUE,
        tenant_id=TENANT,
        job_type=JobType.CREATIVE_REVIEW,
        happening=Happening.REFERRED,
        shown={},
        limit=10,
    ),
    "flights.ask": lambda tx: ask(tx),  # noqa: PLW0108  # defined below
    "landings.land": lambda tx: landings.land(tx, brought()),
    "landings.let_go": lambda tx: landings.let_go(tx, [SimpleNamespace(id=new_id(), claim_no=1)]),  # type: ignore[list-item]  # as much of a row as it looks at
    "claim and conclude": lambda tx: work_off(tx),  # noqa: PLW0108  # defined below
    "lost_leases": lambda tx: claims.lost_leases(tx, as_of=datetime.now(UTC), limit=10),
    "renew": lambda tx: claims.renew(tx, makers.worker(), [(new_id(), 1), (new_id(), 2)], lease_seconds=3.0),
    "pending_keys": lambda tx: announcements.pending_keys(tx, older_than_seconds=0.0, limit=10),
    "due_lanes": lambda tx: deliveries.due_lanes(tx, after="", limit=10),
    "lease_due": lambda tx: deliveries.lease_due(tx, {deliveries.lane_of(TENANT, URL): 10}, lease_seconds=30.0),
    "deliveries.counts": deliveries.counts,
    "outbox.lease": lambda tx: outbox.lease(tx, older_than_seconds=2.0, lease_seconds=5.0, limit=10),
    "unfinished": statistics.unfinished,
    "error_counts": lambda tx: statistics.error_counts(
        tx, SCOPE.owner, datetime.now(UTC) - timedelta(days=1), datetime.now(UTC)
    ),
    "unfinished_versions": lambda tx: jobs.unfinished_versions(tx, SCOPE.owner, Filter(), limit=10),
    "clean_some": lambda tx: some_steps(tx),  # noqa: PLW0108  # defined below
    "submit": lambda tx: submit(tx),  # noqa: PLW0108  # defined below
    "count_open": lambda tx: jobs.count_open(tx, [TENANT, new_id()]),
    "end_holds": people.end_holds,
    "queue": lambda tx: review_queue.page(tx, SCOPE.owner, due=DueHours(), as_of=datetime.now(UTC), limit=10),
    "next_free": lambda tx: review_queue.next_free(
        tx, SCOPE.owner, Choice(wanted=Wanted(), reviewer="ada"), DueHours()
    ),
    "waiting_everywhere": lambda tx: review_statistics.waiting_everywhere(tx, DueHours()),
    "open_appeal": lambda tx: people.open_appeal(tx, new_id()),
    # Not hot, but called in a row until nothing is left.
    "retry": lambda tx: repeats.retry(tx, SCOPE, limit=10),
    "retry of what failed": lambda tx: repeats.retry(tx, replace(SCOPE, wanted=FAILED), limit=10),
    "count_retryable": lambda tx: repeats.count_retryable(tx, SCOPE),
    "review_again": lambda tx: repeats.review_again(tx, SCOPE, limit=10, asked_by=""),
    "lock_waiting": lambda tx: redecisions.lock_waiting(tx, TENANT, after=UUID(int=0), limit=10),
    "count_waiting": lambda tx: repeats.count_waiting(tx, SCOPE),
}


async def ask(tx: Transaction) -> None:
    """One question that finds nobody, and one that finds a flight that does not fly."""
    tenant = (await tx.connection.execute(select(tenants.c.id))).scalar_one()
    for key in (b"a", b"b", b"a"):
        await flights.ask(tx, [asked(tenant, key)])


def asked(tenant: UUID, key: bytes) -> Asked:
    return Asked(
        key=key,
        tenant_id=tenant,
        job_type=JobType.CREATIVE_REVIEW,
        engine=EngineIdentity(name="llm", version="1"),
        policy_version=1,
        job_id=new_id(),
        claim_no=1,
        keep_seconds=60.0,
        since=datetime.now(UTC),
    )


def brought() -> list[Landing]:
    made = Made(content=b"found", keep_seconds=60.0, input_tokens=1, output_tokens=1, cost_micros=1)
    return [Landing(key=b"k", job_id=new_id(), claim_no=1, made=one, comes_back=False) for one in (made, None)]


@pytest.mark.parametrize("work", HOT.values(), ids=HOT.keys())
async def test_a_hot_statement_reads_live_rows_only(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, work: Callable[[Transaction], Awaitable[object]]
) -> None:
    database = Database(sqlite_url)
    try:
        tenant = await make_the_tenant(database, monkeypatch)
        for _ in range(30):
            await makers.conclude(database, await makers.running(database, tenant), Happening.COMPLETED)
        async with database.begin() as tx:
            await tx.connection.exec_driver_sql("ANALYZE")
        plans = await plans_of(database, work)
    finally:
        await database.close()
    assert plans
    for step in plans:
        if scanned := re.match(rf"SCAN ({ALIASES}|jobs|attempts|job_events|request_aliases|webhook_\w+)\b", step):
            used = re.search(r"USING (?:COVERING )?INDEX (\w+)", step)
            assert (used and used[1]) in LIVE, f"reads all {scanned[1]}: {plans}"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_on_postgresql_too_they_read_live_rows_only(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All on one database: to fill it takes longer than to ask."""
    tenant = await make_the_tenant(database, monkeypatch)
    await deliver(database, await told(database, tenant))
    await multiply_the_history(database)
    await told(database, tenant)  # and not delivered yet
    await makers.conclude(database, await makers.running(database, tenant, callback_url=URL), Happening.COMPLETED)
    await makers.running(database, tenant)
    await makers.awaiting(database, tenant)
    await makers.submit(database, makers.new_job(tenant), makers.new_job(tenant), release_at_once=1)
    async with database.begin() as tx:
        await tx.connection.exec_driver_sql("ANALYZE")
    read = {name: await rows_read(database, work) for name, work in HOT.items()}
    assert all(read.values()), "no plan was seen"
    assert not {name: nodes for name, of in read.items() if (nodes := [node for node in of if node[0] > _FEW])}


async def make_the_tenant(database: Database, monkeypatch: pytest.MonkeyPatch) -> UUID:
    with monkeypatch.context() as named:
        named.setattr(stored_tenants, "new_id", lambda: TENANT)
        return await makers.make_tenant(database)


async def told(database: Database, tenant: UUID) -> list[Lease]:
    """A job that was done, the message about it, and the delivery that is due."""
    claim = await makers.running(database, tenant, callback_url=URL)
    job = await makers.conclude(database, claim, Happening.COMPLETED)
    assert job is not None
    message = NewMessage(
        job_id=job.id, version=job.version, tenant_id=tenant, type="job.succeeded", body=b"{}", callback_url=URL
    )
    async with database.begin() as tx:
        await announcements.store_messages(tx, [message], lease_seconds=None)
        return await deliveries.lease_due(tx, {deliveries.lane_of(tenant, URL): 1}, lease_seconds=0.0)


async def deliver(database: Database, held: list[Lease]) -> None:
    records = [
        AttemptRecord(lease=one, status_code=204, error="", duration_ms=1, state=DeliveryState.DELIVERED)
        for one in held
    ]
    async with database.begin() as tx:
        await deliveries.record_attempts(tx, records)


#: Finished jobs, with their history; and what of them, and of the few live ones, a hot statement may look at.
_MANY, _FEW = 2000, 20


async def multiply_the_history(database: Database) -> None:
    """As if everything had happened many times, each time a second earlier."""
    async with database.begin() as tx:
        numbers = select(func.generate_series(1, _MANY).label("number")).cte()
        its_id = func.lpad(func.to_hex(numbers.c.number), 32, "0").cast(Uuid)
        others = select(numbers.c.number, its_id.label("id")).cte()
        for table in (jobs_table, job_events, attempts, webhook_messages, webhook_deliveries, webhook_attempts):
            copy = [_copied(column, others) for column in table.c]
            of_each = select(*copy).join_from(others, table, true())
            await tx.connection.execute(insert(table).from_select([column.name for column in table.c], of_each))


def _copied(column: Column[Any], others: CTE) -> ColumnElement[Any]:
    """One id does for a job, its message and the delivery of that."""
    named = {"job_id", "message_id", "delivery_id" if column.table is webhook_attempts else "id"}
    if column.name in named:
        return others.c.id
    if isinstance(column.type, Instant):
        return column - func.make_interval(0, 0, 0, 0, 0, 0, others.c.number)
    return column


async def rows_read(database: Database, work: Callable[[Transaction], Awaitable[object]]) -> list[tuple[float, str]]:
    """Of each step that reads a table, as the server tells it: how many rows it looked at, and what it is."""
    plans: list[Any] = []

    def note(_connection: object, message: Any) -> None:
        if "plan:" in message.message:
            plans.append(json.loads(message.message.partition("plan:")[2]))

    async with database.begin() as tx:
        connection = (await tx.connection.get_raw_connection()).driver_connection
        assert connection is not None
        await tx.connection.exec_driver_sql("LOAD 'auto_explain'")
        for name, value in _EXPLAINING.items():
            await tx.connection.exec_driver_sql(f"SET LOCAL {name} = {value}")
        connection.add_log_listener(note)
        await work(tx)
        await tx.connection.rollback()
        await asyncio.sleep(0)  # listeners are called soon
        connection.remove_log_listener(note)
    return [step for plan in plans for step in _steps(plan["Plan"])]


_EXPLAINING = {
    "auto_explain.log_min_duration": 0,
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "client_min_messages": "log",
}


def _steps(node: dict[str, Any]) -> list[tuple[float, str]]:
    steps = [step for below in node.get("Plans", ()) for step in _steps(below)]
    if "Relation Name" in node and "Actual Rows" in node:
        passed_over = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        rows = (node["Actual Rows"] + passed_over) * node["Actual Loops"]
        steps.append((rows, f"{node['Node Type']} {node['Relation Name']} {node.get('Index Name', '')}"))
    return steps


async def submit(tx: Transaction) -> None:
    """A job that enters, one whose place another takes, one that is asked for again, and one that comes too late."""
    tenant = (await tx.connection.execute(select(tenants.c.id))).scalar_one()
    batch = [
        makers.new_job(
            tenant,
            key="key",
            when_busy=WhenBusy.SUPERSEDE,
            content=content.encode(),
            request_id=request_id,
            revision=revision,
        )
        for content, request_id, revision in (("a", None, 2), ("b", "r-1", 3), ("b", "r-2", 3), ("c", "r-3", 1))
    ]
    first, second, same, late = await acceptance.submit(tx, batch, release_at_once=10)
    assert (first.created, second.superseded, same.created) == (True, JobType.CREATIVE_REVIEW, False)
    assert late.refused is not None


async def work_off(tx: Transaction) -> None:
    """A job from its claim to its end."""
    tenant = (await tx.connection.execute(select(tenants.c.id))).scalar_one()
    [submitted] = await acceptance.submit(tx, [makers.new_job(tenant, callback_url=URL)], release_at_once=1)
    wanted = [WantedClaim(job_id=job_id, release_no=1, claim_id=new_id()) for job_id in (submitted.job.id, new_id())]
    held, nothing = await claims.claim(tx, makers.worker(), wanted, lease_seconds=30.0)
    assert isinstance(held, Claim)
    assert nothing is None
    done = Conclusion(happening=Happening.COMPLETED, outcome=AttemptOutcome.SUCCEEDED)
    ending = Ending(claim=held, conclusion=done, spent=Spent(engine="test", input_tokens=1, cost_micros=1))
    assert [one and one.state for one in await conclusions.conclude(tx, [ending])] == [State.SUCCEEDED]
    assert await conclusions.conclude(tx, [ending]) == [None]


async def some_steps(tx: Transaction) -> None:
    """The first two of each kind; jobs last, with which all goes that is theirs."""
    later = datetime.now(UTC) + timedelta(days=2)
    for dry_run, kind in product((True, False), reversed(Kind)):
        days = Retention(days=dict.fromkeys(Kind, 1) | ({} if kind is Kind.JOBS else {Kind.JOBS: 3}))
        place: Place | None = Place(kind=kind)
        for _ in range(2):
            if place is None or place.kind is not kind:
                break
            step = await retention.clean_some(tx, days, place, now=later, dry_run=dry_run, limit=2)
            place = step.following


async def plans_of(database: Database, work: Callable[[Transaction], Awaitable[object]]) -> list[str]:
    """The steps of the plans of every statement that `work` executes."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_more: object) -> None:
        if statement.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            seen.append((statement, parameters))

    async with database.begin() as tx:
        event.listen(database.engine.sync_engine, "before_cursor_execute", note)
        await work(tx)
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
        steps: list[str] = []
        for statement, parameters in seen:
            plan = await tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps += [row[-1] for row in plan]
    return steps
