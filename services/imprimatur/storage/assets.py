"""Images of tenants: kept once for each content, with the jobs that name them.

They stand in the database, of either kind, and not in a store of their own: so one backup holds a job with all that
it shows, the embedded mode needs nothing else, and an image is there as soon as its upload was answered. What that
costs is bounded: by the size of one image, by what each tenant may keep, and by how long. The bytes have a table to
themselves, so that whoever touches what is known of an image does not write the image anew.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import LargeBinary, delete, func, insert, select, text, update

from imprimatur.assets import Asset
from imprimatur.errors import InvalidRequest
from imprimatur.identity import new_id
from imprimatur.job import NewJob
from imprimatur.storage import clock
from imprimatur.storage.database import Reader, Transaction
from imprimatur.storage.locks import in_locked
from imprimatur.storage.schema import asset_contents, assets, job_assets, jobs

#: Used again within so long is not noted: days are counted, and many submits may name the same image at once.
_NOTED_AFTER = timedelta(hours=1)
_KNOWN = (assets.c.digest, assets.c.media_type, assets.c.size_bytes, assets.c.created_at, assets.c.used_at)


async def one_upload_at_a_time(tx: Transaction, tenant_id: uuid.UUID) -> None:
    """Until the transaction ends, no other counts what this tenant keeps and adds to it."""
    if tx.on_postgresql:
        lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
        await tx.connection.execute(lock, {"name": f"assets of {tenant_id}"})


async def bytes_kept(reader: Reader, tenant_id: uuid.UUID) -> int:
    """How much this tenant keeps."""
    total = select(func.coalesce(func.sum(assets.c.size_bytes), 0)).where(assets.c.tenant_id == tenant_id)
    return int((await reader.connection.execute(total)).scalar_one())


async def add(tx: Transaction, tenant_id: uuid.UUID, *, asset_id: str, media_type: str, content: bytes) -> Asset:
    """Keep an image that is not kept yet."""
    now, row_id = await clock.present(tx), new_id()
    size = len(content)
    await tx.connection.execute(
        insert(assets).values(
            id=row_id,
            tenant_id=tenant_id,
            digest=bytes.fromhex(asset_id),
            media_type=media_type,
            size_bytes=size,
            created_at=now,
            used_at=now,
        )
    )
    await tx.connection.execute(insert(asset_contents).values(asset_id=row_id, content=content))
    return Asset(id=asset_id, media_type=media_type, size_bytes=size, created_at=now, used_at=now)


async def use(tx: Transaction, tenant_id: uuid.UUID, ids: Collection[str]) -> dict[str, Asset]:
    """Those of the images that are kept, by id. They stay so for as long as an image that was just uploaded."""
    found = await find(tx, tenant_id, ids)
    now = await clock.present(tx)
    stale = {one.id for one in found.values() if one.used_at < now - _NOTED_AFTER}
    if not stale:
        return found
    which = (assets.c.tenant_id == tenant_id, assets.c.digest.in_(map(bytes.fromhex, stale)))
    locked = in_locked(assets.c.id, select(assets.c.id).where(*which).order_by(assets.c.id).with_for_update())
    noted = update(assets).where(locked).values(used_at=now).returning(*_KNOWN)
    renewed = {one.id: one for one in map(_asset_of, await tx.connection.execute(noted))}
    # One that clean-up took meanwhile is not among them.
    return {asset_id: one for asset_id, one in found.items() if asset_id not in stale} | renewed


async def find(reader: Reader, tenant_id: uuid.UUID, ids: Collection[str]) -> dict[str, Asset]:
    """Those of the images that are kept, by id."""
    digests = [bytes.fromhex(asset_id) for asset_id in ids]
    known = select(*_KNOWN).where(assets.c.tenant_id == tenant_id, assets.c.digest.in_(digests))
    return {one.id: one for one in map(_asset_of, await reader.connection.execute(known))}


async def content(
    reader: Reader, tenant_id: uuid.UUID, asset_id: str, *, start: int = 0, most_bytes: int | None = None
) -> bytes | None:
    """An image's bytes, or so many of them from `start` on; None: it is not kept."""
    part: Any = asset_contents.c.content
    if most_bytes is not None:
        part = func.substr(part, start + 1, most_bytes, type_=LargeBinary)
    found = (
        select(part.label("part"))
        .join_from(assets, asset_contents, asset_contents.c.asset_id == assets.c.id)
        .where(assets.c.tenant_id == tenant_id, assets.c.digest == bytes.fromhex(asset_id))
    )
    seen = (await reader.connection.execute(found)).scalar_one_or_none()
    return None if seen is None else bytes(seen)


async def lock(tx: Transaction, tenant_id: uuid.UUID, asset_id: str) -> bool:
    """Have no job name the image until the transaction ends; whether it is there."""
    which = (assets.c.tenant_id == tenant_id, assets.c.digest == bytes.fromhex(asset_id))
    found = await tx.connection.execute(select(assets.c.id).where(*which).with_for_update())
    return found.scalar_one_or_none() is not None


async def in_use(reader: Reader, tenant_id: uuid.UUID, asset_id: str) -> bool:
    """Whether a job that names the image is unfinished."""
    names_it = (job_assets.c.tenant_id == tenant_id, job_assets.c.digest == bytes.fromhex(asset_id))
    found = select(jobs.c.id).join(job_assets, job_assets.c.job_id == jobs.c.id).where(*names_it)
    unfinished = found.where(jobs.c.finished_at.is_(None)).limit(1)
    return (await reader.connection.execute(unfinished)).scalar_one_or_none() is not None


async def remove(tx: Transaction, tenant_id: uuid.UUID, asset_id: str) -> None:
    """Keep an image no longer."""
    which = (assets.c.tenant_id == tenant_id, assets.c.digest == bytes.fromhex(asset_id))
    await tx.connection.execute(delete(assets).where(*which))


async def link(tx: Transaction, new_jobs: Sequence[NewJob]) -> None:
    """Note which images jobs name that were just accepted: they are kept for as long as those need them.

    Raises:
        InvalidRequest: one of them was removed since it was looked up. Nothing of it may be committed.
    """
    rows = [
        {"job_id": new.id, "digest": bytes.fromhex(asset_id), "tenant_id": new.tenant_id}
        for new in new_jobs
        for asset_id in sorted(new.asset_ids)
    ]
    if not rows:
        return
    digests, owners = {row["digest"] for row in rows}, {new.tenant_id for new in new_jobs}
    named = select(assets.c.tenant_id, assets.c.digest).where(
        assets.c.tenant_id.in_(owners), assets.c.digest.in_(digests)
    )
    locked = named.order_by(assets.c.id).with_for_update(read=True, key_share=True)
    kept = {(row.tenant_id, row.digest) for row in await tx.connection.execute(locked)}
    for new in new_jobs:
        for asset_id, place in new.asset_ids.items():
            if (new.tenant_id, bytes.fromhex(asset_id)) not in kept:
                raise missing(asset_id, place)
    await tx.connection.execute(insert(job_assets), rows)


def missing(asset_id: str, field: str) -> InvalidRequest:
    """What a submit is told that names in that field an image which is not kept."""
    return InvalidRequest(
        field,
        f"there is no asset {asset_id}; upload it first",
        reason="ASSET_NOT_FOUND",
        asset_id=asset_id,
    )


def _asset_of(row: Any) -> Asset:
    return Asset(
        id=row.digest.hex(),
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        used_at=row.used_at,
    )
