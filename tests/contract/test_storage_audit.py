"""The record of the human queue: what it keeps; and that the database lets nobody change any record."""

from typing import Any

import pytest
from sqlalchemy import delete, exc, select, text, update

from imprimatur.human import AuditAction
from imprimatur.job import Job
from imprimatur.retention import Kind, Retention
from imprimatur.storage import audit, schema
from imprimatur.storage.audit import Actor, AuditEntry, Wanted
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from tests import makers, pasts
from tests.contract.test_storage_people import decide


async def recorded(database: Database, job: Job, action: AuditAction, person: str = "ada") -> None:
    async with database.begin() as tx:
        by = Actor(person=person, key_name="desk")
        await audit.record(tx, action, job, by, reason="So.", details={"decision": "approved"})


async def entries(database: Database, owner: Owner, **wanted: object) -> list[AuditEntry]:
    async with database.read() as reader:
        return list(await audit.page(reader, owner, Wanted(**wanted), before=None, limit=100))  # type: ignore[arg-type]  # fields of it


async def test_entries_are_found_newest_first_by_job_person_action_and_time(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    owner = Owner(tenant_id=tenant)
    first, second = [await makers.awaiting(database, tenant) for _ in range(2)]
    await recorded(database, first, AuditAction.CLAIMED)
    await recorded(database, first, AuditAction.DECIDED)
    await recorded(database, second, AuditAction.CLAIMED, person="bob")
    whole = await entries(database, owner)
    assert [(one.job_id, one.action) for one in whole] == [
        (second.id, AuditAction.CLAIMED),
        (first.id, AuditAction.DECIDED),
        (first.id, AuditAction.CLAIMED),
    ]
    assert (whole[1].person, whole[1].key_name, whole[1].reason, whole[1].details) == (
        "ada",
        "desk",
        "So.",
        {"decision": "approved"},
    )
    assert await entries(database, owner, job_id=second.id) == whole[:1]
    assert await entries(database, owner, person="bob") == whole[:1]
    assert await entries(database, owner, actions=frozenset({AuditAction.DECIDED})) == whole[1:2]
    assert await entries(database, owner, since=whole[1].at, until=whole[0].at) == [
        one for one in whole if whole[1].at <= one.at < whole[0].at
    ]
    assert await entries(database, Owner(tenant_id=await makers.make_tenant(database))) == []


async def test_nothing_on_record_is_ever_changed_or_removed(database: Database) -> None:
    job = await makers.awaiting(database, await makers.make_tenant(database))
    await recorded(database, job, AuditAction.DECIDED)
    await decide(database, job, reviewer="ada")
    for table in schema.RECORDS:
        same = update(table).values({column.name: column for column in table.primary_key.columns})
        changes: list[Any] = [same, delete(table)]
        if database.on_postgresql:  # SQLite has no TRUNCATE
            changes.append(text(f"TRUNCATE {table.name} CASCADE"))
        for change in changes:
            with pytest.raises(exc.DBAPIError, match="never changed nor removed"):
                async with database.begin() as tx:
                    await tx.connection.execute(change)
        async with database.read() as reader:
            assert (await reader.connection.execute(select(table))).first() is not None


async def test_entries_outlive_their_jobs(database: Database) -> None:
    tenant = await makers.make_tenant(database)
    [job_id] = await pasts.made(database, tenant, pasts.Past(days=30.0))
    await recorded(database, await makers.find(database, tenant, job_id), AuditAction.DECIDED)
    await pasts.clean(database, Retention(days=dict.fromkeys(Kind, 7)))
    assert not (await pasts.left(database)).jobs()
    assert [one.job_id for one in await entries(database, Owner(tenant_id=tenant))] == [job_id]
