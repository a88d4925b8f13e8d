"""Images by the Python client and by commands, against a real gateway; what goes wrong on the way, by a script."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from rich.console import Console

from cli import tables
from imprimatur.assets import asset_id_of
from imprimatur.client import Client, ClientError
from imprimatur.client.uploads import LARGEST_CREATIVE_BYTES, PART_BYTES, too_large
from imprimatur.storage.database import Database
from imprimatur.tenancy import Role
from imprimatur.v1.asset_service_pb2 import Asset, UploadAssetResponse
from imprimatur.v1.creative_pb2 import Creative, CreativeImage
from imprimatur.v1.review_service_pb2 import PendingReview
from tests.service.scripted import UNAVAILABLE, Fault, Script, serving
from tests.service.systems import System, on_sqlite, running_system
from tests.service.test_cli import Ran, run
from tests.unit.test_builtin_images import encoded, picture

PNG = encoded([picture()], "PNG")


def padded(size: int, seed: int = 0) -> bytes:
    """An image with something behind it."""
    return PNG + random.Random(seed).randbytes(size - len(PNG))


@pytest.fixture
async def client(system: System) -> AsyncIterator[Client]:
    async with Client(f"127.0.0.1:{system.port}", api_key=await system.key(Role.ADMIN)) as made:
        yield made


# --- the client --------------------------------------------------------------------------------------------


async def test_an_image_goes_up_and_comes_down(client: Client) -> None:
    content = padded(3 * PART_BYTES + 1)
    asset = await client.upload_asset(content)
    assert asset.asset_id == asset_id_of(content)
    assert await client.asset(asset.asset_id) == asset
    assert await client.download_asset(asset.asset_id) == content


@on_sqlite
async def test_a_refusal_is_the_gateway_s_own_although_more_was_to_come(client: Client) -> None:
    with pytest.raises(ClientError) as refused:
        await client.upload_asset(b"%PDF" + b"x" * 50 * PART_BYTES)
    assert (refused.value.reason, refused.value.field) == ("NOT_AN_IMAGE", "data")
    with pytest.raises(ClientError) as refused:
        await client.download_asset("ab" * 32)
    assert refused.value.reason == "ASSET_NOT_FOUND"


@on_sqlite
async def test_the_client_says_what_is_to_arrive(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprimatur.client.uploads.asset_id_of", lambda _: "ab" * 32)
    with pytest.raises(ClientError) as damaged:
        await client.upload_asset(padded(2 * PART_BYTES))
    assert (damaged.value.reason, damaged.value.field) == ("ASSET_DAMAGED", "sha256")


async def test_an_upload_is_made_again_from_its_beginning() -> None:
    busy = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "later", "TOO_MANY_UPLOADS", retry_after_ms=1)
    script = Script().on("UploadAsset", UNAVAILABLE, busy, UploadAssetResponse(asset=Asset(asset_id="a")))
    async with serving(script) as port, Client(f"127.0.0.1:{port}", api_key="imp_key") as client:
        assert (await client.upload_asset(padded(2 * PART_BYTES))).asset_id == "a"
    sent = [[len(part.data) for part in parts] for parts in script.requests["UploadAsset"]]
    assert sent == [[PART_BYTES] * 2] * 3


def test_as_few_images_are_uploaded_as_will_do() -> None:
    def chosen(*sizes: int) -> list[int]:
        images = [CreativeImage(data=b"x" * size) if size else CreativeImage(asset_id="a") for size in sizes]
        return list(too_large(Creative(creative_id="c", images=images), most_bytes=1000))

    assert chosen() == chosen(0, 0) == chosen(900) == chosen(450, 450) == []
    assert chosen(2000) == chosen(1000) == [0]
    assert chosen(300, 500, 400) == [1]
    assert chosen(900, 100, 950) == [2, 0]


@on_sqlite
async def test_a_creative_that_is_too_large_is_sent_with_its_images_uploaded(client: Client) -> None:
    large, small = padded(LARGEST_CREATIVE_BYTES), PNG
    images = [CreativeImage(name="small", data=small), CreativeImage(name="large", data=large)]
    creative = Creative(creative_id="c", headline="h", images=images)
    sendable = await client.sendable(creative)
    assert creative.images[1].data == large
    assert sendable.images[0] == creative.images[0]
    assert sendable.images[1] == CreativeImage(name="large", asset_id=asset_id_of(large))
    await client.submit(creative=sendable)


# --- commands ----------------------------------------------------------------------------------------------


class Commands:
    """Run against one system by one key."""

    def __init__(self, system: System, key: str) -> None:
        self._target, self._key = f"127.0.0.1:{system.port}", key

    async def __call__(self, *arguments: str) -> Ran:
        return await run(*arguments, IMPRIMATUR_TARGET=self._target, IMPRIMATUR_API_KEY=self._key)


@pytest.fixture
async def imprimatur(sqlite_url: str) -> AsyncIterator[Commands]:
    database = Database(sqlite_url)
    try:
        async with running_system(database) as system:
            yield Commands(system, await system.key(Role.ADMIN))
    finally:
        await database.close()


async def test_images_are_uploaded_shown_and_downloaded(imprimatur: Commands, tmp_path: Path) -> None:
    image, other, copy = (tmp_path / name for name in ("a.png", "b.txt", "copy.png"))
    image.write_bytes(PNG)
    other.write_text("not an image, but long enough")
    ran = await imprimatur("assets", "upload", str(image), str(other), "--json")
    assert ran.code == 1
    assert "b.txt: data: is not a PNG, JPEG, GIF or WebP image" in ran.err
    [kept] = ran.json["results"]
    asset_id = kept["asset"]["assetId"]
    assert (asset_id, kept["file"]) == (asset_id_of(PNG), str(image))
    shown, downloaded = await asyncio.gather(
        imprimatur("assets", "show", asset_id), imprimatur("assets", "download", asset_id, str(copy))
    )
    assert asset_id in shown.out
    assert "image/png" in shown.out
    assert downloaded.code == 0
    assert copy.read_bytes() == PNG
    assert (await imprimatur("assets", "delete", asset_id)).code == 0
    assert "there is no asset" in (await imprimatur("assets", "show", asset_id)).err
    await imprimatur("assets", "upload", str(image))
    again = await imprimatur("assets", "download", asset_id, str(copy))
    assert (again.code, "File exists" in again.err) == (1, True)


async def test_submit_uploads_what_is_too_large_and_names_the_rest(imprimatur: Commands, tmp_path: Path) -> None:
    large = padded(5_000_000)
    (tmp_path / "large.png").write_bytes(large)
    (tmp_path / "small.png").write_bytes(PNG)
    images = [{"path": "large.png"}, {"path": "small.png"}, {"assetId": asset_id_of(large)}]
    images.append({"url": "https://example.com/a.png"})
    creative = {"creativeId": "c-1", "headline": "h", "images": images}
    (tmp_path / "c.json").write_text(json.dumps(creative))
    ran = await imprimatur("submit", str(tmp_path / "c.json"), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["results"][0]["job"]["parameters"]["images"] == "4"


async def test_an_image_that_is_refused_is_named_before_anything_is_submitted(
    imprimatur: Commands, tmp_path: Path
) -> None:
    (tmp_path / "large.png").write_bytes(b"%PDF" + b"x" * 5_000_000)
    (tmp_path / "c.json").write_text(json.dumps({"creativeId": "c-1", "images": [{"path": "large.png"}]}))
    ran = await imprimatur("submit", str(tmp_path / "c.json"))
    assert ran.code == 1
    assert "c.json: an image cannot be uploaded: data: is not a PNG, JPEG, GIF or WebP image" in ran.err


def test_a_review_says_where_its_images_are(capsys: pytest.CaptureFixture[str]) -> None:
    images = [CreativeImage(name="a", url="https://example.com/a"), CreativeImage(asset_id="abc"), CreativeImage()]
    Console(width=200).print(tables.review_in_full(PendingReview(creative=Creative(images=images))))
    assert "a (https://example.com/a), unnamed (asset abc), unnamed" in capsys.readouterr().out
