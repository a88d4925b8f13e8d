"""Versions of policies and the record of which was live; and what waits for people, taken to be decided again."""

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from imprimatur.errors import FailedPrecondition, NotFound
from imprimatur.human import AuditAction
from imprimatur.identity import new_id
from imprimatur.job import Happening, Job, State
from imprimatur.policy import Mode, Policy
from imprimatur.storage import audit, clock, migrations, policies, redecisions, tenants
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.storage.redecisions import Batch, Redecided
from imprimatur.storage.schema import job_events
from imprimatur.storage.schema import jobs as table
from tests import makers
from tests.contract.polling import lock_waiters
from tests.contract.test_storage_people import decide

STRICT = Policy(mode=Mode.REQUIRE_HUMAN)
ADA = Actor(person="ada", key_id=new_id(), key_name="desk")


async def record(database: Database, tenant: uuid.UUID) -> list[tuple[int, int | None, int, str]]:
    async with database.read() as reader:
        found = await policies.activations(reader, tenant, before=None, limit=100)
    return [(one.number, one.from_version, one.to_version, one.by.person) for one in found]


async def activate(database: Database, tenant: uuid.UUID, number: int, **more: int) -> bool:
    async with database.begin() as tx:
        return await policies.activate(tx, tenant, number, by=ADA, expected=more.get("expected"))


# --- versions --------------------------------------------------------------------------------------------


async def test_each_activation_is_a_line_of_the_record(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    async with database.begin() as tx:
        assert await policies.create(tx, tenant, STRICT, by=ADA, note="Stop.") == 2
    assert await record(database, tenant) == [(1, None, 1, "")]
    assert await activate(database, tenant, 2)
    assert not await activate(database, tenant, 2)
    assert await activate(database, tenant, 1, expected=2)
    assert await record(database, tenant) == [(3, 2, 1, "ada"), (2, 1, 2, "ada"), (1, None, 1, "")]
    assert await record(database, other) == [(1, None, 1, "")]
    with pytest.raises(NotFound):
        await activate(database, other, 2)
    with pytest.raises(FailedPrecondition):
        await activate(database, tenant, 2, expected=2)
    async with database.read() as reader:
        found = await policies.find(reader, tenant, 2)
        assert (found.policy, found.note, found.created_by, found.live) == (STRICT, "Stop.", ADA, False)
        assert found.activated is not None
        assert (found.activated.number, found.activated.by) == (2, ADA)
        assert (await tenants.live_policy(reader, tenant)).version == 1


async def test_of_two_who_change_the_same_version_at_once_one_is_refused(database: Database) -> None:
    tenant = await makers.make_tenant(database)

    async def change(by: str) -> int:
        async with database.begin() as tx:
            return await policies.create(tx, tenant, STRICT, by=Actor(person=by), based_on=1, live_at_once=True)

    ends = await asyncio.gather(*(change(by) for by in ("ada", "bob")), return_exceptions=True)
    assert [type(end) for end in ends if not isinstance(end, int)] == [FailedPrecondition]
    assert [line[:3] for line in await record(database, tenant)] == [(2, 1, 2), (1, None, 1)]


async def test_versions_of_before_the_record_were_live_from_when_they_were_made(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    async with database.begin() as tx:
        await tenants.put_policy(tx, tenant, STRICT)
        await tx.connection.exec_driver_sql("DROP TABLE policy_activations")
        await tx.connection.exec_driver_sql("ALTER TABLE policies DROP COLUMN note")
        await tx.connection.exec_driver_sql("ALTER TABLE policies DROP COLUMN created_by")
        await tx.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0011'")
    await migrations.upgrade(database)
    assert await record(database, tenant) == [(2, 1, 2, ""), (1, None, 1, "")]
    async with database.read() as reader:
        live = await policies.find(reader, tenant, None)
    assert (live.number, live.policy, live.created_by.person, live.note) == (2, STRICT, "", "")
    assert live.activated is not None
    assert live.activated.at == live.created_at
    assert await activate(database, tenant, 1)
    assert (await record(database, tenant))[0] == (3, 2, 1, "ada")


async def test_who_changes_one_setting_keeps_what_somebody_else_changed_meanwhile(database: Database) -> None:
    tenant = await makers.make_tenant(database)

    async def operate() -> int:
        async with database.begin() as tx:
            return await tenants.change_policy(tx, tenant, {"reuse_evidence": False})

    async with database.begin() as tx:
        await tenants.put_policy(tx, tenant, STRICT)
        operator = asyncio.create_task(operate())
        await lock_waiters(database, 1)
    assert await operator == 3
    async with database.read() as reader:
        assert (await policies.find(reader, tenant, None)).policy == replace(STRICT, reuse_evidence=False)


# --- what waits ------------------------------------------------------------------------------------------


async def taken(database: Database, tenant: uuid.UUID, *, after: uuid.UUID | None = None, limit: int = 100) -> Batch:
    async with database.begin() as tx:
        return await redecisions.lock_waiting(tx, tenant, after=after, limit=limit)


def approved(job: Job) -> Redecided:
    return Redecided(
        job_id=job.id,
        decision="approved",
        policy_triggered="auto_approve",
        reason="It is good.",
        policy_version=2,
        result=b"decided again",
        categories=["alcohol"],
        decision_before="pending",
        triggered_before="low_confidence",
    )


async def test_what_waits_is_taken_oldest_first_and_part_by_part(database: Database) -> None:
    tenant, other = await makers.make_tenant(database), await makers.make_tenant(database)
    first, second, third = [await makers.awaiting(database, tenant) for _ in range(3)]
    await makers.awaiting(database, other)
    await makers.running(database, tenant)
    await makers.conclude(database, await makers.running(database, tenant), Happening.COMPLETED)
    await makers.hold(database, second, reviewer="ada")
    batch = await taken(database, tenant, limit=2)
    assert [(one.id, one.held) for one in batch.waiting] == [(first.id, False), (second.id, True)]
    assert batch.following == second.id
    rest = await taken(database, tenant, after=second.id, limit=2)
    assert ([one.id for one in rest.waiting], rest.following) == ([third.id], None)


async def test_a_hold_that_is_over_holds_nothing_and_an_appeal_is_not_taken(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    held, appeal = await makers.awaiting(database, tenant), await makers.awaiting(database, tenant)
    await makers.hold(database, held, reviewer="ada")
    async with database.begin() as tx:
        over = {"held_until": clock.after(-1.0)}
        await tx.connection.execute(update(table).where(table.c.id == held.id).values(over))
        await tx.connection.execute(update(table).where(table.c.id == appeal.id).values(appeal_of=new_id()))
    assert [(one.id, one.held) for one in (await taken(database, tenant)).waiting] == [(held.id, False)]


async def test_what_is_decided_again_ends_like_any_decision(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job, untouched = await makers.awaiting(database, tenant), await makers.awaiting(database, tenant)
    async with database.begin() as tx:
        await redecisions.lock_waiting(tx, tenant, after=None, limit=10)
        assert await redecisions.redecide(tx, [approved(job)], by=Actor(person="ada")) == {job.id}
        assert await redecisions.redecide(tx, [], by=Actor(person="ada")) == set()
    done = await makers.find(database, tenant, job.id)
    assert (done.state, done.decision, done.policy_triggered) == (State.SUCCEEDED, "approved", "auto_approve")
    assert (done.result, done.result_count, done.version) == (b"decided again", 1, job.version + 1)
    async with database.read() as reader:
        shown = await reader.connection.execute(select(table.c.categories).where(table.c.id == job.id))
        assert shown.scalar_one() == ["alcohol"]
    assert done.finished_at is not None
    assert done.finished_at - done.updated_at < timedelta(seconds=1)
    async with database.read() as reader:
        [event] = (
            await reader.connection.execute(select(job_events).where(job_events.c.kind == Happening.REDECIDED))
        ).all()
    assert event.details == {
        "decision": "approved",
        "policy_triggered": "auto_approve",
        "reason": "It is good.",
        "policy_version": "2",
        "by": "ada",
    }
    assert (await makers.find(database, tenant, untouched.id)).version == untouched.version


async def test_what_a_person_decides_meanwhile_is_that_persons(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    job = await makers.awaiting(database, tenant)

    async def by_person() -> Job | None:
        return await decide(database, job, reviewer="ada", decision="rejected")

    async with database.begin() as tx:
        await redecisions.lock_waiting(tx, tenant, after=None, limit=10)
        person = asyncio.create_task(by_person())
        await lock_waiters(database, 1)
        await redecisions.redecide(tx, [approved(job)], by=Actor(person="bob"))
    assert await person is None  # who came later finds it decided
    assert (await makers.find(database, tenant, job.id)).decision == "approved"
    async with database.begin() as tx:
        assert await redecisions.redecide(tx, [approved(job)], by=Actor(person="bob")) == set()
        found = await audit.page(tx, Owner(tenant_id=tenant), audit.Wanted(job_id=job.id), before=None, limit=10)
    assert [(one.action, one.person) for one in found] == [(AuditAction.REDECIDED, "bob")]
