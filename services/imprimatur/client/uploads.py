"""Images to and from the gateway, in parts that fit a message."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from imprimatur.assets import asset_id_of
from imprimatur.client.calls import Calls
from imprimatur.v1.asset_service_pb2 import Asset, DownloadAssetRequest, UploadAssetRequest
from imprimatur.v1.creative_pb2 import Creative

if TYPE_CHECKING:  # stubs of calls exist for the type checker only
    from imprimatur.v1.asset_service_pb2_grpc import AssetServiceAsyncStub

PART_BYTES = 256 * 1024
#: A creative above it is not sent as it is: the contract's 4 MiB, less what the request around it may take.
LARGEST_CREATIVE_BYTES = 4 * 1024 * 1024 - 128 * 1024


async def upload(calls: Calls, assets: "AssetServiceAsyncStub", content: bytes) -> Asset:
    """Upload one image, whole or not at all; again while the gateway is away, for that does no harm."""
    answer = await calls.upload(assets.UploadAsset, lambda: _parts(content))
    return answer.asset


async def download(calls: Calls, assets: "AssetServiceAsyncStub", asset_id: str) -> bytes:
    """One image's bytes."""
    content = bytearray()
    with calls.stream(assets.DownloadAsset, DownloadAssetRequest(asset_id=asset_id)) as parts:
        async for part in parts:
            content += part.data
    return bytes(content)


def too_large(creative: Creative, *, most_bytes: int = LARGEST_CREATIVE_BYTES) -> Iterator[int]:
    """The places of the images to upload, so that the rest of the creative can be sent: as few as will do."""
    size = creative.ByteSize()
    for place in sorted(range(len(creative.images)), key=lambda place: -len(creative.images[place].data)):
        if size <= most_bytes or not creative.images[place].data:
            return
        size -= len(creative.images[place].data)
        yield place


async def _parts(content: bytes) -> AsyncIterator[UploadAssetRequest]:
    sha256 = asset_id_of(content)
    for start in range(0, len(content), PART_BYTES):
        yield UploadAssetRequest(data=content[start : start + PART_BYTES], sha256=sha256 if start == 0 else "")
