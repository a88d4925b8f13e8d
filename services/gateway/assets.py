"""AssetService, and what a submit makes of the images that its creatives name."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from gateway.access import caller
from gateway.quotas import Quotas
from imprimatur.assets import HEAD_BYTES, MAX_CREATIVE_BYTES, Asset, asset_id_of, is_asset_id, media_type_of
from imprimatur.errors import FailedPrecondition, InvalidRequest, NotFound, RequestError
from imprimatur.job import NewJob
from imprimatur.retention import Retention
from imprimatur.storage import acceptance, assets
from imprimatur.storage.database import Database
from imprimatur.v1 import asset_service_pb2 as pb
from imprimatur.v1.asset_service_pb2_grpc import AssetServiceServicer
from imprimatur.wire.creatives import timestamp

#: Of an image that is downloaded, a message holds so much.
_PART_BYTES = 1024 * 1024
_NOT_AN_IMAGE = "is not a PNG, JPEG, GIF or WebP image"


class Assets(AssetServiceServicer):
    """The service for images.

    Args:
        most_bytes: of one image.
    """

    def __init__(self, database: Database, quotas: Quotas, retention: Retention, *, most_bytes: int) -> None:
        self._database = database
        self._quotas = quotas
        self._retention = retention
        self._most_bytes = most_bytes

    async def UploadAsset(
        self, request_iterator: AsyncIterator[pb.UploadAssetRequest], context: Any
    ) -> pb.UploadAssetResponse:
        """Keep an image."""
        content, expected_id = await self._received(request_iterator)
        who, asset_id, media_type = caller(), asset_id_of(content), media_type_of(content)
        if expected_id not in ("", asset_id):
            what = f"is not that of the {len(content):,} bytes that arrived; upload the image again"
            raise InvalidRequest("sha256", what, reason="ASSET_DAMAGED", received_bytes=str(len(content)))
        assert media_type is not None, "it was looked at as it came"
        async with self._database.begin() as tx:
            await assets.one_upload_at_a_time(tx, who.tenant_id)
            asset = (await assets.use(tx, who.tenant_id, [asset_id])).get(asset_id)
            if asset is None:
                kept = await assets.bytes_kept(tx, who.tenant_id)
                self._quotas.check_asset_bytes(who, kept + len(content))
                asset = await assets.add(tx, who.tenant_id, asset_id=asset_id, media_type=media_type, content=content)
        return pb.UploadAssetResponse(asset=self._shown(asset))

    async def GetAsset(self, request: pb.GetAssetRequest, context: Any) -> pb.GetAssetResponse:
        """What is known of an image."""
        asset_id = _id_in(request)
        async with self._database.read() as reader:
            found = await assets.find(reader, caller().tenant_id, [asset_id])
        if asset_id not in found:
            raise self._not_found(asset_id)
        return pb.GetAssetResponse(asset=self._shown(found[asset_id]))

    async def DownloadAsset(
        self, request: pb.DownloadAssetRequest, context: Any
    ) -> AsyncGenerator[pb.DownloadAssetResponse]:
        """The image, in parts: no more than one is in memory."""
        asset_id, tenant_id, sent = _id_in(request), caller().tenant_id, 0
        while True:
            async with self._database.read() as reader:
                part = await assets.content(reader, tenant_id, asset_id, start=sent, most_bytes=_PART_BYTES)
            if part is None:
                raise self._not_found(asset_id)
            if part:
                yield pb.DownloadAssetResponse(data=part)
            sent += len(part)
            if len(part) < _PART_BYTES:
                return

    async def DeleteAsset(self, request: pb.DeleteAssetRequest, context: Any) -> pb.DeleteAssetResponse:
        """Keep an image no longer."""
        asset_id, tenant_id = _id_in(request), caller().tenant_id
        async with self._database.begin() as tx:
            if not await assets.lock(tx, tenant_id, asset_id):
                raise self._not_found(asset_id)
            if await assets.in_use(tx, tenant_id, asset_id):
                raise FailedPrecondition(
                    "a job that shows it is unfinished; cancel it first", reason="ASSET_IN_USE", asset_id=asset_id
                )
            await assets.remove(tx, tenant_id, asset_id)
        return pb.DeleteAssetResponse()

    async def _received(self, requests: AsyncIterator[pb.UploadAssetRequest]) -> tuple[bytes, str]:
        """All of it, and the id that it is to have, if that was said. What cannot be taken is refused as soon as that
        shows."""
        content, expected_id = bytearray(), ""
        async for request in requests:
            expected_id = _digest_in(request) or expected_id
            content += request.data
            if len(content) > self._most_bytes:
                raise InvalidRequest(
                    "data",
                    f"is larger than {self._most_bytes:,} bytes",
                    reason="ASSET_TOO_LARGE",
                    limit=str(self._most_bytes),
                )
            if len(content) >= HEAD_BYTES and media_type_of(bytes(content[:HEAD_BYTES])) is None:
                raise InvalidRequest("data", _NOT_AN_IMAGE, reason="NOT_AN_IMAGE")
        if not content:
            raise InvalidRequest("data", "is required", reason="FIELD_REQUIRED")
        if len(content) < HEAD_BYTES:
            raise InvalidRequest("data", _NOT_AN_IMAGE, reason="NOT_AN_IMAGE")
        return bytes(content), expected_id

    def _shown(self, asset: Asset) -> pb.Asset:
        days = self._retention.asset_days
        return pb.Asset(
            asset_id=asset.id,
            media_type=asset.media_type,
            size_bytes=asset.size_bytes,
            created_at=timestamp(asset.created_at),
            kept_until=timestamp(asset.used_at + timedelta(days=days)) if days else None,
        )

    def _not_found(self, asset_id: str) -> NotFound:
        days = self._retention.asset_days
        kept = f"; images are kept for {days} days after their last use" if days else ""
        return NotFound(f"there is no asset {asset_id}{kept}", reason="ASSET_NOT_FOUND", asset_id=asset_id)


def checked_id(text: str, field: str) -> str:
    """An asset's id."""
    if not text:
        raise InvalidRequest(field, "is required", reason="FIELD_REQUIRED")
    if not is_asset_id(text):
        raise InvalidRequest(field, "is not an asset's id: 64 hexadecimal digits in lower case")
    return text


def _digest_in(request: pb.UploadAssetRequest) -> str:
    if request.sha256 and not is_asset_id(request.sha256):
        raise InvalidRequest("sha256", "is not 64 hexadecimal digits in lower case")
    return request.sha256


def _id_in(request: pb.GetAssetRequest | pb.DownloadAssetRequest | pb.DeleteAssetRequest) -> str:
    return checked_id(request.asset_id, "asset_id")


# --- images that submits name ------------------------------------------------------------------------------


async def with_their_images(database: Database, new_jobs: Sequence[NewJob]) -> list[NewJob | RequestError]:
    """The jobs, all of one tenant, whose images are kept, and will be for now; for each of the others why not."""
    wanted = {asset_id for new in new_jobs for asset_id in new.asset_ids}
    if not wanted:
        return list(new_jobs)
    tenant_id = new_jobs[0].tenant_id
    async with database.begin() as tx:
        kept = await assets.use(tx, tenant_id, wanted)
        faults = {new.id: _fault_in(new, kept) for new in new_jobs}
        repeats = {(tenant_id, new.request_id) for new in new_jobs if new.request_id and faults[new.id]}
        # A request id that was accepted is answered, although its images may be gone since.
        known = await acceptance.accepted_before(tx, repeats) if repeats else {}
    return [
        fault if (fault := faults[new.id]) is not None and (tenant_id, new.request_id) not in known else new
        for new in new_jobs
    ]


def _fault_in(new: NewJob, kept: Mapping[str, Asset]) -> InvalidRequest | None:
    missing = next((asset_id for asset_id in new.asset_ids if asset_id not in kept), None)
    if missing is not None:
        return assets.missing(missing, new.asset_ids[missing])
    size = sum(kept[asset_id].size_bytes for asset_id in new.asset_ids)
    if size > MAX_CREATIVE_BYTES:
        what = f"have {size:,} bytes together; at most {MAX_CREATIVE_BYTES:,} are allowed"
        return InvalidRequest("creative_review.creative.images", what, reason="IMAGES_TOO_LARGE")
    return None
