"""Images as they are kept: for whom, how long, and with which jobs. Stored instants are moved; no test waits."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from imprimatur.assets import asset_id_of
from imprimatur.errors import InvalidRequest
from imprimatur.identity import first_id_at, new_id
from imprimatur.job import Happening, Job
from imprimatur.retention import Kind, Retention
from imprimatur.storage import acceptance, assets, clock, jobs, schema
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from tests import makers
from tests.contract.polling import lock_waiters
from tests.pasts import clean

CONTENT = b"\x89PNG\r\n\x1a\n and more"
WEEK = Retention()


@pytest.fixture
async def tenant(database: Database) -> uuid.UUID:
    return await makers.make_tenant(database)


async def keep(
    database: Database,
    tenant: uuid.UUID,
    content: bytes = CONTENT,
    *,
    days: float = 0.0,
    used_days: float | None = None,
) -> str:
    """An image that was uploaded so many days ago, and last used so many."""
    asset_id = asset_id_of(content)
    with pytest.MonkeyPatch.context() as patch:
        async with database.begin() as tx:
            now = await clock.present(tx)
            past = first_id_at(now - timedelta(days=days)).int + new_id().int % (1 << 74)
            patch.setattr(assets, "new_id", lambda: uuid.UUID(int=past))
            await assets.add(tx, tenant, asset_id=asset_id, media_type="image/png", content=content)
            used_at = now - timedelta(days=days if used_days is None else used_days)
            which = schema.assets.c.id == uuid.UUID(int=past)
            await tx.connection.execute(update(schema.assets).where(which).values(used_at=used_at))
    return asset_id


async def submit(database: Database, tenant: uuid.UUID, *asset_ids: str) -> Job:
    """Twenty days ago, by its id."""
    async with database.read() as reader:
        long_ago = first_id_at(await clock.present(reader) - timedelta(days=20))
    new = makers.new_job(tenant, job_id=uuid.UUID(int=long_ago.int + new_id().int % (1 << 74)))
    [job] = await makers.submit(database, replace(new, asset_ids=dict.fromkeys(asset_ids, "its field")))
    return job


async def end(database: Database, job: Job, *, days: float) -> None:
    """Cancelled, so many days ago."""
    await makers.cancel(database, job)
    async with database.begin() as tx:
        ended = update(schema.jobs).where(schema.jobs.c.id == job.id)
        await tx.connection.execute(ended.values(finished_at=clock.after(-days * 86_400)))
        await tx.connection.execute(update(schema.job_events).values(webhook_pending=False))


async def kept(database: Database) -> Counter[str]:
    async with database.read() as reader:
        tables = (schema.assets, schema.asset_contents, schema.job_assets)
        counts = {
            one.name: (await reader.connection.execute(select(func.count()).select_from(one))).scalar_one()
            for one in tables
        }
    return +Counter(counts)


# --- keeping -----------------------------------------------------------------------------------------------


async def test_an_image_is_read_whole_and_in_parts(database: Database, tenant: uuid.UUID) -> None:
    asset_id = await keep(database, tenant)
    async with database.read() as reader:
        assert await assets.content(reader, tenant, asset_id) == CONTENT
        parts = [await assets.content(reader, tenant, asset_id, start=start, most_bytes=8) for start in range(0, 32, 8)]
    assert parts == [CONTENT[:8], CONTENT[8:16], CONTENT[16:], b""]


async def test_another_tenant_s_image_is_not_there(database: Database, tenant: uuid.UUID) -> None:
    asset_id, other = await keep(database, tenant), await makers.make_tenant(database)
    async with database.begin() as tx:
        assert await assets.find(tx, other, [asset_id]) == {}
        assert await assets.use(tx, other, [asset_id]) == {}
        assert await assets.content(tx, other, asset_id) is None
        assert (await assets.bytes_kept(tx, other), await assets.bytes_kept(tx, tenant)) == (0, len(CONTENT))
    await keep(database, other)  # the same content, kept for each


async def test_a_use_is_noted_once_an_hour(database: Database, tenant: uuid.UUID) -> None:
    fresh = await keep(database, tenant, b"fresh", days=3.0, used_days=0.01)
    stale = await keep(database, tenant, b"stale", days=3.0)
    async with database.read() as reader:
        before = await assets.find(reader, tenant, [fresh, stale])
    async with database.begin() as tx:
        used = await assets.use(tx, tenant, [fresh, stale, asset_id_of(b"never seen")])
        now = await clock.present(tx)
    assert set(used) == {fresh, stale}
    assert used[fresh] == before[fresh]
    assert timedelta(0) <= now - used[stale].used_at < timedelta(hours=1)


async def test_many_may_use_the_same_images_at_once(database: Database, tenant: uuid.UUID) -> None:
    ids = [await keep(database, tenant, bytes([place]), days=3.0) for place in range(5)]

    async def use(wanted: Sequence[str]) -> int:
        async with database.begin() as tx:
            return len(await assets.use(tx, tenant, wanted))

    found = await asyncio.gather(*(use(ids if place % 2 else ids[::-1]) for place in range(8)))
    assert found == [5] * 8


async def test_only_jobs_that_were_made_name_images(database: Database, tenant: uuid.UUID) -> None:
    asset_id = await keep(database, tenant)
    new = replace(makers.new_job(tenant, request_id="r"), asset_ids={asset_id: ""})
    await makers.submit(database, new, replace(makers.new_job(tenant, request_id="r"), asset_ids={asset_id: ""}))
    await makers.submit(database, new)  # again, after a lost answer
    assert (await kept(database))["job_assets"] == 1


# --- how long ----------------------------------------------------------------------------------------------


async def test_no_job_is_accepted_whose_image_was_removed_since_it_was_looked_up(
    database: Database, tenant: uuid.UUID
) -> None:
    asset_id = await keep(database, tenant)
    await keep(database, await makers.make_tenant(database))
    async with database.begin() as tx:
        assert await assets.lock(tx, tenant, asset_id)
        await assets.remove(tx, tenant, asset_id)
    with pytest.raises(InvalidRequest, match=asset_id) as refused:
        await submit(database, tenant, asset_id)
    assert refused.value.field == "its field"
    async with database.begin() as tx:
        assert not await assets.lock(tx, tenant, asset_id)
        assert await jobs.list_newest(tx, Owner(tenant_id=tenant), Filter(), before=None, limit=1) == []


async def test_who_removes_an_image_sees_the_job_that_is_just_being_accepted(
    database: Database, tenant: uuid.UUID
) -> None:
    asset_id = await keep(database, tenant)

    async def is_used() -> bool:
        async with database.begin() as tx:
            return await assets.lock(tx, tenant, asset_id) and await assets.in_use(tx, tenant, asset_id)

    async with database.begin() as tx:
        new = replace(makers.new_job(tenant), asset_ids={asset_id: ""})
        await acceptance.submit(tx, [new], release_at_once=0)
        removing = asyncio.create_task(is_used())
        await lock_waiters(database, 1)
    assert await removing


async def test_an_image_goes_when_it_was_last_used_long_enough_ago(database: Database, tenant: uuid.UUID) -> None:
    await keep(database, tenant, b"old", days=7.5)
    await keep(database, tenant, b"used again", days=30.0, used_days=6.5)
    await keep(database, tenant, b"new", days=6.5)
    assert await clean(database, WEEK, dry_run=True) == Counter(assets=1)
    assert await clean(database, WEEK, limit=1) == Counter(assets=1)
    assert await kept(database) == Counter(assets=2, asset_contents=2)
    assert not await clean(database, WEEK)


async def test_an_image_stays_as_long_as_a_job_that_names_it_needs_it(database: Database, tenant: uuid.UUID) -> None:
    asset_id = await keep(database, tenant, days=400.0)
    job = await submit(database, tenant, asset_id)
    assert not await clean(database, WEEK), "the job is unfinished"
    await end(database, job, days=6.5)
    assert not await clean(database, WEEK), "the job has just ended"
    await end(database, job, days=7.5)
    assert await clean(database, WEEK) == Counter(jobs=1, job_events=2, job_assets=1, assets=1)
    assert not await kept(database)


async def test_an_image_that_a_person_still_has_to_see_stays(database: Database, tenant: uuid.UUID) -> None:
    asset_id = await keep(database, tenant, days=400.0)
    job = await submit(database, tenant, asset_id)
    held = await makers.claim(database, job)
    assert held is not None
    await makers.conclude(database, held, Happening.REFERRED, shown=makers.shown("pending", "low_confidence"))
    assert not await clean(database, WEEK)


async def test_images_may_go_before_the_jobs_that_named_them(database: Database, tenant: uuid.UUID) -> None:
    asset_id = await keep(database, tenant, days=3.0)
    await end(database, await submit(database, tenant, asset_id), days=2.5)
    assert await clean(database, Retention(days={Kind.ASSETS: 2})) == Counter(assets=1)
    assert await kept(database) == Counter(job_assets=1)


async def test_images_are_kept_for_ever_where_that_is_said(database: Database, tenant: uuid.UUID) -> None:
    await keep(database, tenant, days=5000.0)
    assert not await clean(database, Retention(days={Kind.JOBS: 1, Kind.ASSETS: 0}))


async def test_one_tenant_s_clean_up_leaves_the_images_of_others(database: Database, tenant: uuid.UUID) -> None:
    other = await makers.make_tenant(database)
    for one in (tenant, other):
        await keep(database, one, days=8.0)
    assert await clean(database, WEEK, tenant_id=tenant, limit=1) == Counter(assets=1)
    async with database.read() as reader:
        assert (await assets.bytes_kept(reader, tenant), await assets.bytes_kept(reader, other)) == (0, len(CONTENT))


async def test_a_job_keeps_the_images_of_its_own_tenant_alone(database: Database, tenant: uuid.UUID) -> None:
    other = await makers.make_tenant(database)
    for one in (tenant, other):
        await keep(database, one, days=8.0)
    await submit(database, other, asset_id_of(CONTENT))
    assert await clean(database, WEEK) == Counter(assets=1)
    async with database.read() as reader:
        assert (await assets.bytes_kept(reader, tenant), await assets.bytes_kept(reader, other)) == (0, len(CONTENT))


async def test_clean_up_takes_no_image_that_is_just_being_used(database: Database, tenant: uuid.UUID) -> None:
    asset_id = await keep(database, tenant, days=8.0)
    if not database.on_postgresql:
        return  # one writer: nothing happens meanwhile
    async with database.begin() as tx:
        await assets.use(tx, tenant, [asset_id])
        assert not await clean(database, WEEK), "it is locked, and passed over"
    assert not await clean(database, WEEK), "it was used"
