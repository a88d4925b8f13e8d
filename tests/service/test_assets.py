"""Images apart from their creatives: uploaded, named, fetched, decoded; what is refused, and what a bad one can do."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.wrappers_pb2 import UInt64Value
from prometheus_client import REGISTRY
from sqlalchemy import delete, select

from gateway import load
from gateway.quotas import Allowance
from imprimatur.assets import MAX_CREATIVE_BYTES, asset_id_of, media_type_of
from imprimatur.evidence import Creative as Seen
from imprimatur.evidence import Evidence, Look
from imprimatur.guard import Guard
from imprimatur.storage import assets, schema
from imprimatur.tenancy import Role
from imprimatur.v1.admin_service_pb2 import SetTenantLimitsRequest, TenantLimits
from imprimatur.v1.asset_service_pb2 import (
    Asset,
    DeleteAssetRequest,
    DownloadAssetRequest,
    GetAssetRequest,
    UploadAssetRequest,
)
from imprimatur.v1.creative_pb2 import Creative, CreativeImage, CreativeReviewTask
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_FAILED as FAILED
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import Job
from imprimatur.v1.job_service_pb2 import (
    BatchSubmitJobsRequest,
    CancelJobRequest,
    JobFilter,
    RetryJobRequest,
    RetryJobsRequest,
    SubmitJobRequest,
)
from imprimatur.v1.review_service_pb2 import ClaimReviewRequest
from reviewer.images import decoding
from reviewer.images.darkroom import Darkroom
from reviewer.images.images import FETCHED_AT_ONCE
from reviewer.settings import IMAGE_SIDE_PX
from tests import makers
from tests.patience import PATIENCE_SECONDS, happens
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.listening import listening
from tests.service.statuses import Refusal, refusal
from tests.service.systems import Caller, System, on_sqlite
from tests.unit.test_builtin_images import bomb, encoded, picture

PNG = encoded([picture()], "PNG")
NOWHERE = "ab" * 32


class LookingEngine(ScriptedEngine):
    """Remembers the creatives as it was given them."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Seen] = []

    async def examine(self, creative: Seen) -> Evidence:
        self.given.append(creative)
        return await super().examine(creative)


@pytest.fixture
def engine() -> LookingEngine:
    return LookingEngine()


def parts(content: bytes, size: int = 1000) -> Iterator[UploadAssetRequest]:
    yield from (UploadAssetRequest(data=content[start : start + size]) for start in range(0, len(content), size))


async def upload(who: Caller, content: bytes = PNG) -> Asset:
    return (await who.assets.UploadAsset(parts(content, max(1000, len(content) // 10)))).asset


async def download(who: Caller, asset_id: str) -> bytes:
    call = who.assets.DownloadAsset(DownloadAssetRequest(asset_id=asset_id))
    return b"".join([part.data async for part in call])


def showing(*images: CreativeImage, headline: str = engines.APPROVE, **fields: Any) -> SubmitJobRequest:
    creative = Creative(creative_id="cr-1", headline=headline, images=images)
    return SubmitJobRequest(creative_review=CreativeReviewTask(creative=creative), **fields)


async def submit(who: Caller, *images: CreativeImage, **fields: Any) -> Job:
    return (await who.jobs.SubmitJob(showing(*images, **fields))).job


# --- upload and download -----------------------------------------------------------------------------------


async def test_what_is_uploaded_is_named_by_its_content_and_kept_once(system: System, me: Caller) -> None:
    first = await upload(me)
    assert (first.asset_id, first.media_type, first.size_bytes) == (asset_id_of(PNG), "image/png", len(PNG))
    assert (first.kept_until.ToDatetime() - first.created_at.ToDatetime()).days == 7
    assert await upload(me) == first
    assert (await me.assets.GetAsset(GetAssetRequest(asset_id=first.asset_id))).asset == first
    async with system.database.read() as reader:
        assert await assets.bytes_kept(reader, system.tenant_id) == len(PNG)


async def test_an_image_comes_back_as_it_was(me: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.assets._PART_BYTES", 100)
    whole = PNG + b"\0" * (-len(PNG) % 100)  # of whole parts, too
    for content in (PNG, whole):
        assert await download(me, (await upload(me, content)).asset_id) == content


async def test_the_same_upload_at_the_same_time_is_kept_once(system: System, me: Caller) -> None:
    content = encoded([picture(64, 64)], "PNG")
    found = await asyncio.gather(*(upload(me, content) for _ in range(4)))
    assert len({asset.asset_id for asset in found}) == 1
    async with system.database.read() as reader:
        assert await assets.bytes_kept(reader, system.tenant_id) == len(content)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "FIELD_REQUIRED"),
        ([UploadAssetRequest()], "FIELD_REQUIRED"),
        ([UploadAssetRequest(data=b"\x89PNG")], "NOT_AN_IMAGE"),
        ([UploadAssetRequest(data=b"<svg xmlns='http://www.w3.org/2000/svg'/>")], "NOT_AN_IMAGE"),
        ([UploadAssetRequest(data=b"%PDF-"), UploadAssetRequest(data=b"1.7 and more")], "NOT_AN_IMAGE"),
        ([UploadAssetRequest(data=b"RIFF____WAVEfmt ")], "NOT_AN_IMAGE"),
    ],
    ids=["nothing", "empty", "too short", "svg", "pdf in two parts", "wave"],
)
@on_sqlite
async def test_what_is_no_image_is_refused(me: Caller, messages: Sequence[UploadAssetRequest], reason: str) -> None:
    refused = await refusal(me.assets.UploadAsset(iter(messages)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert list(refused.violations) == ["data"]


@on_sqlite
async def test_what_is_too_large_is_refused_with_the_limit(me: Caller) -> None:
    refused = await refusal(me.assets.UploadAsset(parts(PNG + b"\0" * 25_000_000, 1_000_000)))
    assert (refused.reason, refused.metadata["limit"]) == ("ASSET_TOO_LARGE", "20971520")


async def test_what_arrived_otherwise_than_its_sender_says_is_not_kept(system: System, me: Caller) -> None:
    whole, cut_off = asset_id_of(PNG), PNG[: len(PNG) // 2]
    refused = await refusal(me.assets.UploadAsset(iter([UploadAssetRequest(data=cut_off, sha256=whole)])))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ASSET_DAMAGED")
    assert refused.metadata["received_bytes"] == str(len(cut_off))
    wrong = await refusal(me.assets.UploadAsset(iter([UploadAssetRequest(data=PNG, sha256=whole.upper())])))
    assert [*wrong.violations] == ["sha256"]
    async with system.database.read() as reader:
        assert await assets.bytes_kept(reader, system.tenant_id) == 0
    said = UploadAssetRequest(sha256=whole)
    refused = await refusal(me.assets.UploadAsset(iter([said, UploadAssetRequest(data=cut_off)])))
    assert refused.reason == "ASSET_DAMAGED"
    for messages in ([said, *parts(PNG)], [*parts(PNG), said]):
        assert (await me.assets.UploadAsset(iter(messages))).asset.asset_id == whole


@on_sqlite
async def test_an_upload_that_is_broken_off_keeps_nothing_and_holds_no_place(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = asyncio.Semaphore(0)

    def seen(head: bytes) -> str | None:
        arrived.release()
        return media_type_of(head)

    monkeypatch.setattr("gateway.assets.media_type_of", seen)

    async def half() -> AsyncIterator[UploadAssetRequest]:
        yield UploadAssetRequest(data=PNG[:100])
        await asyncio.Event().wait()

    for _ in range(4):  # as many as may be under way
        call = me.assets.UploadAsset(half())
        async with asyncio.timeout(PATIENCE_SECONDS):
            await arrived.acquire()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def taken() -> bool:
        with suppress(grpc.aio.AioRpcError):  # the gateway hears of the last of them a little later
            await upload(me)
            return True
        return False

    await makers.until(taken)
    async with system.database.read() as reader:
        assert await assets.bytes_kept(reader, system.tenant_id) == len(PNG)


@on_sqlite
async def test_an_upload_without_end_is_ended(me: Caller) -> None:
    sent = 0

    async def endless() -> AsyncIterator[UploadAssetRequest]:
        nonlocal sent
        while True:
            sent += 1
            yield UploadAssetRequest(data=PNG + b"\0" * 1_000_000)

    with pytest.raises(grpc.aio.AioRpcError):
        await me.assets.UploadAsset(endless())
    assert sent < 200


@on_sqlite
async def test_bytes_that_are_no_message_are_refused_with_words(system: System, me: Caller) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{system.port}") as channel:
        raw: Any = channel.stream_unary("/imprimatur.v1.AssetService/UploadAsset")
        call = raw([b"\xff\xff\xff"], metadata=(("authorization", f"Bearer {me.key}"),))
        assert (await refusal(call)).reason == "INVALID_FIELD"


async def test_an_image_is_its_tenant_s_alone(system: System, me: Caller) -> None:
    asset = await upload(me)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    for call in (
        stranger.assets.GetAsset(GetAssetRequest(asset_id=asset.asset_id)),
        stranger.assets.DownloadAsset(DownloadAssetRequest(asset_id=asset.asset_id)),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "ASSET_NOT_FOUND")
    refused = await refusal(stranger.jobs.SubmitJob(showing(CreativeImage(asset_id=asset.asset_id))))
    assert refused.reason == "ASSET_NOT_FOUND"


async def test_an_image_is_deleted_when_no_unfinished_job_shows_it(system: System, me: Caller) -> None:
    request = DeleteAssetRequest(asset_id=(await upload(me)).asset_id)
    stranger = await system.caller(tenant_id=await makers.make_tenant(system.database))
    assert (await refusal(stranger.assets.DeleteAsset(request))).reason == "ASSET_NOT_FOUND"
    bound = await system.caller(user_id="ada")
    assert (await refusal(bound.assets.DeleteAsset(request))).reason == "ROLE_NOT_ALLOWED"
    job = await submit(me, CreativeImage(asset_id=request.asset_id))
    refused = await refusal(me.assets.DeleteAsset(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ASSET_IN_USE")
    await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    await me.assets.DeleteAsset(request)
    assert (await refusal(me.assets.DeleteAsset(request))).reason == "ASSET_NOT_FOUND"
    async with system.database.read() as reader:
        assert await assets.bytes_kept(reader, system.tenant_id) == 0


# --- quotas ------------------------------------------------------------------------------------------------


async def test_a_tenant_keeps_no_more_than_it_may(system: System) -> None:
    async with system.gateway(allowance=Allowance(asset_bytes=len(PNG) + 10)) as port:
        me = await system.holder(await system.key(Role.SUBMITTER), port=port)
        await upload(me)
        refused = await refusal(me.assets.UploadAsset(parts(encoded([picture(64, 64)], "PNG"))))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ASSET_BYTES_EXCEEDED")
        assert refused.metadata == {"limit": "asset_bytes", "value": str(len(PNG) + 10)}
        assert refused.retry_after_seconds is None
        await upload(me)  # what is kept already costs nothing


@on_sqlite
async def test_an_operator_sets_what_one_tenant_may_keep(system: System) -> None:
    name = "the small one"
    small = await makers.make_tenant(system.database, name)
    operator = await system.caller(Role.OPERATOR)
    own = TenantLimits(asset_bytes=UInt64Value(value=10))
    answer = await operator.administration.SetTenantLimits(SetTenantLimitsRequest(tenant=name, limits=own))
    assert (answer.own, answer.effective.asset_bytes.value) == (own, 10)
    me = await system.caller(tenant_id=small)
    assert (await refusal(me.assets.UploadAsset(parts(PNG)))).metadata["value"] == "10"


@on_sqlite
async def test_one_tenant_has_so_many_uploads_under_way(system: System, me: Caller) -> None:
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[UploadAssetRequest]:
        yield UploadAssetRequest(data=PNG[:100])
        await gate.wait()
        yield UploadAssetRequest(data=PNG[100:])

    async def tried() -> Asset | Refusal:
        call = me.assets.UploadAsset(slow())
        with suppress(grpc.aio.AioRpcError):
            return (await call).asset
        return await refusal(call)

    tries = [asyncio.create_task(tried()) for _ in range(5)]
    [first], others = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
    refused = first.result()
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry_after_seconds) == ("TOO_MANY_UPLOADS", 2.0)
    other = await system.caller(tenant_id=await makers.make_tenant(system.database))
    await upload(other)
    gate.set()
    kept = await asyncio.gather(*others)
    assert [isinstance(one, Asset) and one.asset_id for one in kept] == [asset_id_of(PNG)] * 4
    await upload(me)


@on_sqlite
async def test_uploads_have_so_much_of_a_gateway_s_memory(
    system: System, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "MOST_UPLOAD_BYTES", len(PNG))
    assert (await refusal(me.assets.UploadAsset(parts(PNG)))).reason == "GATEWAY_BUSY"
    monkeypatch.setattr(load, "MOST_UPLOAD_BYTES", 2 * len(PNG))
    for _ in range(3):  # what an upload took is free again
        await upload(me)


# --- what a submit may name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "field", "reason"),
    [
        (CreativeImage(), "images[0].data", "FIELD_REQUIRED"),
        (CreativeImage(data=b"GIF"), "images[0].data", "NOT_AN_IMAGE"),
        (CreativeImage(asset_id="../etc/passwd"), "images[0].asset_id", "INVALID_FIELD"),
        (CreativeImage(asset_id=NOWHERE.upper()), "images[0].asset_id", "INVALID_FIELD"),
        (CreativeImage(asset_id=NOWHERE), "images[0].asset_id", "ASSET_NOT_FOUND"),
        (CreativeImage(url=""), "images[0].url", "INVALID_URL"),
        (CreativeImage(url="http://example.com/a.png"), "images[0].url", "INVALID_URL"),
        (CreativeImage(url="https://169.254.169.254/latest"), "images[0].url", "INVALID_URL"),
        (CreativeImage(url="https://user:word@example.com/"), "images[0].url", "INVALID_URL"),
        (CreativeImage(url="https://2130706433/a.png"), "images[0].url", "INVALID_URL"),
    ],
)
@on_sqlite
async def test_images_that_cannot_be_had_are_refused_by_field(
    me: Caller, image: CreativeImage, field: str, reason: str
) -> None:
    refused = await refusal(me.jobs.SubmitJob(showing(image)))
    assert (list(refused.violations), refused.reason) == ([f"creative_review.creative.{field}"], reason)
    answer = await me.jobs.BatchSubmitJobs(BatchSubmitJobsRequest(items=[showing(headline="x"), showing(image)]))
    good, bad = answer.results
    assert good.HasField("accepted")
    assert f"items[1].creative_review.creative.{field}" in bad.error.message


@on_sqlite
async def test_images_together_have_a_limit(me: Caller, system: System) -> None:
    size = MAX_CREATIVE_BYTES // 2 - 1
    ids = [(await upload(me, PNG + bytes([place]) * (size - len(PNG)))).asset_id for place in range(3)]
    await submit(me, *(CreativeImage(asset_id=one) for one in ids[:2]))
    refused = await refusal(me.jobs.SubmitJob(showing(*(CreativeImage(asset_id=one) for one in ids))))
    assert refused.reason == "IMAGES_TOO_LARGE"


async def test_an_accepted_request_id_is_answered_although_its_image_is_gone(system: System, me: Caller) -> None:
    asset = await upload(me)
    job = await submit(me, CreativeImage(asset_id=asset.asset_id), request_id="r-1")
    await _forget_images(system)
    again = await me.jobs.SubmitJob(showing(CreativeImage(asset_id=asset.asset_id), request_id="r-1"))
    assert (again.job.id, again.already_accepted) == (job.id, True)
    other = showing(CreativeImage(data=PNG), CreativeImage(asset_id=asset.asset_id), request_id="r-2")
    refused = await refusal(me.jobs.SubmitJob(other))
    assert (list(refused.violations), refused.reason) == (
        ["creative_review.creative.images[1].asset_id"],
        "ASSET_NOT_FOUND",
    )


async def _forget_images(system: System) -> None:
    async with system.database.begin() as tx:
        await tx.connection.execute(delete(schema.assets))


# --- reviews -----------------------------------------------------------------------------------------------


async def test_an_engine_sees_the_bytes_and_the_look_of_each_image(
    system: System, me: Caller, engine: LookingEngine
) -> None:
    animation = encoded([picture().rotate(angle) for angle in range(0, 120, 10)], "GIF")
    asset = await upload(me, animation)
    job = await submit(me, CreativeImage(data=PNG), CreativeImage(name="b", asset_id=asset.asset_id))
    async with system.reviewer(engine):
        await me.until(job, SUCCEEDED)
    [seen] = engine.given
    inline, uploaded = seen.images
    assert (inline.data, uploaded.data) == (PNG, animation)
    assert inline.look == Look(format="PNG", width=300, height=250, frames=1, sampled=1, plain=False)
    assert uploaded.look is not None
    assert (uploaded.look.frames, uploaded.look.sampled, len(uploaded.look.stills)) == (12, 8, 8)
    assert not uploaded.look.shown_whole(most_side_px=IMAGE_SIDE_PX)


async def test_a_job_tried_again_shows_the_same_images(system: System, me: Caller, engine: LookingEngine) -> None:
    asset = await upload(me)
    image = CreativeImage(asset_id=asset.asset_id)
    first, second = await submit(me, image), await submit(me, image)
    for job in (first, second):
        await me.jobs.CancelJob(CancelJobRequest(job_id=job.id))
    again = [(await me.jobs.RetryJob(RetryJobRequest(job_id=first.id))).job.id]
    answer = await me.jobs.RetryJobs(RetryJobsRequest(filter=JobFilter(subject_id="cr-1")))
    again += [one.job_id for one in answer.retried]
    async with system.database.read() as reader:
        linked = {str(one) for one in (await reader.connection.execute(select(schema.job_assets.c.job_id))).scalars()}
    assert linked == {first.id, second.id, *again}
    async with system.reviewer(engine):
        for job_id in again:
            await me.until(await me.get(job_id), SUCCEEDED)


async def test_an_image_that_is_gone_ends_the_job_with_words_that_help(
    system: System, me: Caller, engine: LookingEngine
) -> None:
    job = await submit(me, CreativeImage(asset_id=(await upload(me)).asset_id))
    await _forget_images(system)
    async with system.reviewer(engine):
        done = await me.until(job, FAILED)
    assert done.error.code == "unreviewable_input"
    assert done.error.message.startswith("images[0]: is not kept any more; upload it")
    assert not engine.given


@on_sqlite
async def test_a_person_sees_the_uploaded_image(system: System, me: Caller, engine: LookingEngine) -> None:
    asset = await upload(me)
    job = await submit(me, CreativeImage(asset_id=asset.asset_id), headline=engines.HUMAN)
    reviewer = await system.caller(Role.REVIEWER)
    async with system.reviewer(engine):
        await me.until(job, AWAITING)
    claimed = await reviewer.reviews.ClaimReview(ClaimReviewRequest(job_id=job.id))
    [image] = claimed.review.creative.images
    assert await download(reviewer, image.asset_id) == PNG


# --- images at a URL ---------------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def site(handle: Handler) -> AsyncIterator[str]:
    """A web site that answers so; gives its address."""
    async with listening(handle) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def local(system: System) -> System:
    """Its gateway is strict; one more, and its reviewers, connect to this machine."""
    system.guard = Guard(allow_private=True, allow_http=True)
    return system


@asynccontextmanager
async def at_a_local_gateway(local: System) -> AsyncIterator[Caller]:
    async with local.gateway() as port:
        yield await local.holder(await local.key(Role.ADMIN), port=port)


def answering(body: bytes = PNG, status: int = 200, **headers: str) -> Handler:
    given = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, status=status, headers=given)

    return answer


@pytest.mark.usefixtures("short_backoff")
@on_sqlite
async def test_an_image_is_fetched_without_cookies_and_at_each_attempt(local: System, engine: LookingEngine) -> None:
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(body=PNG, headers={"Set-Cookie": "who=you; Path=/"})

    async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        job = await submit(me, CreativeImage(url=f"{where}/a.png"), headline="fail 1")
        done = await me.until(job, SUCCEEDED, AWAITING)
    assert engine.given[0].images[0].data == PNG
    assert len(asked) >= done.attempts == len(engine.given)
    assert all("Cookie" not in one.headers and one.headers["Accept-Encoding"] == "identity" for one in asked)


REFUSED = {
    "not there": (answering(status=404), "HTTP 404"),
    "redirected": (answering(status=302, Location="http://127.0.0.1:1/"), "redirects are not followed"),
    "compressed": (answering(Content_Encoding="gzip"), "compressed"),
    "no image": (answering(body=b"<html>"), "PNG, JPEG, GIF or WebP is needed"),
    "a bomb": (answering(body=bomb(50_000, 50_000)), "at most 40,000,000 pixels"),
}


@pytest.mark.parametrize("case", REFUSED)
@on_sqlite
async def test_an_answer_that_is_no_image_ends_the_job(local: System, engine: LookingEngine, case: str) -> None:
    answer, words = REFUSED[case]
    async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        done = await me.until(await submit(me, CreativeImage(url=f"{where}/a.png")), FAILED)
    assert done.error.message.startswith("images[0]: ")
    assert words in done.error.message
    assert done.error.stage == "images"
    assert not engine.given


@pytest.mark.parametrize("honest", [True, False], ids=["told in advance", "told nothing"])
@on_sqlite
async def test_of_an_answer_without_end_no_more_is_read_than_is_allowed(
    local: System, engine: LookingEngine, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    monkeypatch.setattr("reviewer.images.images.MAX_BYTES", 100_000)
    cut = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000001"} if honest else {})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"\0" * 65_536)
        finally:  # cancelled, or its connection is gone
            cut.set()

    async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        done = await me.until(await submit(me, CreativeImage(url=f"{where}/a.png")), FAILED)
        assert "is larger than the 100,000 bytes" in done.error.message
        await cut.wait()


@pytest.mark.usefixtures("short_backoff")
@pytest.mark.parametrize("status", [429, 500, 503])
@on_sqlite
async def test_what_may_pass_is_tried_again_and_then_given_to_a_person(
    local: System, engine: LookingEngine, status: int
) -> None:
    async with site(answering(status=status)) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        done = await me.until(await submit(me, CreativeImage(url=f"{where}/a.png"), max_attempts=2), AWAITING)
    assert [one.error.code for one in done.attempt_history] == ["image_unavailable"] * 2
    assert not engine.given


@on_sqlite
async def test_an_address_that_was_allowed_at_submit_is_checked_at_the_connection(
    local: System, engine: LookingEngine
) -> None:
    """The reviewer's own guard decides: here it is stricter than the gateway's was."""
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(body=PNG)

    async with site(answer) as where, at_a_local_gateway(local) as me:
        named = [f"{where}/a.png", where.replace("127.0.0.1", "localhost") + "/a.png"]
        jobs = [await submit(me, CreativeImage(url=url), concurrency_key=url) for url in named]
        local.guard = Guard(allow_private=False, allow_http=True)
        async with local.reviewer(engine):
            ended = [await me.until(job, FAILED) for job in jobs]
    assert [one.error.message for one in ended] == [
        "images[0]: the URL must not lead to a forbidden address (loopback)",
        "images[0]: the URL must not lead to a loopback address",
    ]
    assert asked == 0


@on_sqlite
async def test_images_at_urls_are_fetched_side_by_side_but_not_all_at_once(
    local: System, engine: LookingEngine
) -> None:
    under_way = most = 0
    full = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == FETCHED_AT_ONCE:
            full.set()
        await happens(full)
        under_way -= 1
        return web.Response(body=PNG + request.path.encode())

    async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        kept = await upload(me)
        urls = [CreativeImage(url=f"{where}/{number}") for number in range(FETCHED_AT_ONCE + 2)]
        await me.until(
            await submit(me, CreativeImage(data=PNG), *urls, CreativeImage(asset_id=kept.asset_id)), SUCCEEDED, AWAITING
        )
    assert most == FETCHED_AT_ONCE
    seen = [image.data.removeprefix(PNG).decode() for image in engine.given[0].images]
    assert seen == ["", *(f"/{number}" for number in range(FETCHED_AT_ONCE + 2)), ""]


@on_sqlite
async def test_images_fetched_side_by_side_have_one_limit_together(
    local: System, engine: LookingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reviewer.images.images.MAX_CREATIVE_BYTES", 4 * len(PNG) - 1)

    async def unsized(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PNG)
        return response

    for answer in (answering(), unsized):
        async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
            urls = [CreativeImage(url=f"{where}/{number}") for number in range(3)]
            done = await me.until(await submit(me, CreativeImage(data=PNG), *urls), FAILED)
        assert "is too much: a creative's images have" in done.error.message
    assert not engine.given


@on_sqlite
async def test_an_image_that_is_not_there_ends_the_fetches_of_the_others(local: System, engine: LookingEngine) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/gone":
            await happens(asked)
            return web.Response(status=404)
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        urls = [CreativeImage(url=f"{where}/{name}") for name in ("slow", "gone")]
        done = await me.until(await submit(me, *urls), FAILED)
        assert done.error.message.startswith("images[1]: cannot be fetched: HTTP 404")
        await happens(left)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.usefixtures("short_backoff")
@on_sqlite
async def test_fetches_bytes_and_decoding_are_counted(local: System, engine: LookingEngine) -> None:
    series = [
        *(("imprimatur_image_bytes_total", "source", one) for one in ("inline", "uploaded", "fetched")),
        *(
            ("imprimatur_image_fetch_duration_seconds_count", "outcome", one)
            for one in ("fetched", "refused", "unavailable")
        ),
        *(("imprimatur_images_decoded_total", "outcome", one) for one in ("decoded", "refused")),
    ]

    def now() -> list[float]:
        return [counted(name, **{label: value}) for name, label, value in series]

    async def answer(request: web.Request) -> web.Response:
        status = {"/a": 200, "/b": 404, "/c": 503}[request.path]
        return web.Response(status=status, body=PNG if status == 200 else b"")

    before = now()
    async with site(answer) as where, at_a_local_gateway(local) as me, local.reviewer(engine):
        kept = await upload(me)
        good = [CreativeImage(data=PNG), CreativeImage(asset_id=kept.asset_id), CreativeImage(url=f"{where}/a")]
        await me.until(await submit(me, *good, concurrency_key="good"), SUCCEEDED, AWAITING)
        await me.until(await submit(me, CreativeImage(url=f"{where}/b"), concurrency_key="gone"), FAILED)
        away = await submit(me, CreativeImage(url=f"{where}/c"), concurrency_key="away", max_attempts=1)
        await me.until(away, AWAITING)
        await me.until(await submit(me, CreativeImage(data=PNG[:40]), concurrency_key="cut"), FAILED)
    size = float(len(PNG))
    assert [after - once for after, once in zip(now(), before, strict=True)] == [size + 40, size, size, 1, 1, 1, 3, 1]


# --- bad images --------------------------------------------------------------------------------------------


def deadly(data: bytes, field: str) -> Look:
    """Stands for a decoder with a hole: an image says how it ends."""
    if b"KILL" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"HOARD" in data:
        decoding._look_at = lambda _data, _field: bytearray(2 * decoding.MOST_BYTES)  # type: ignore[assignment, return-value]  # in a child
    if b"BIND" in data:
        signal.pause()
    return decoding.look_at(data, field)


@pytest.fixture
def _a_hole_in_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reviewer.images.darkroom.decoding.look_at", deadly)


@pytest.mark.usefixtures("short_backoff", "_a_hole_in_the_decoder")
@on_sqlite
async def test_an_image_that_kills_hurts_neither_worker_nor_others(system: System, engine: LookingEngine) -> None:
    me = await system.caller()
    killing = await submit(me, CreativeImage(data=PNG + b"KILL"), max_attempts=2, concurrency_key="killing")
    others = [await submit(me, CreativeImage(data=PNG), concurrency_key=str(number)) for number in range(3)]
    async with system.reviewer(engine):
        done = await me.until(killing, AWAITING)
        for job in others:
            fine = await me.until(job, SUCCEEDED)
            assert fine.attempts == 1
    assert [one.error.code for one in done.attempt_history] == ["image_decoder_died"] * 2
    assert done.error.message == "images[0]: the engine's process died (SIGSEGV)"
    assert len(engine.given) == 3


@pytest.mark.usefixtures("short_backoff", "_a_hole_in_the_decoder")
@on_sqlite
async def test_an_image_that_binds_its_process_is_given_up(
    system: System, engine: LookingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Darkroom(processes=1, timeout_seconds=0.2)
    monkeypatch.setattr("reviewer.service.Darkroom", lambda processes: short)
    me = await system.caller()
    async with system.reviewer(engine):
        done = await me.until(await submit(me, CreativeImage(data=PNG + b"BIND"), max_attempts=1), AWAITING)
        assert (done.error.code, done.error.message) == ("timed_out", "images[0]: took longer than 0.2 s to decode")


@pytest.mark.usefixtures("short_backoff", "_a_hole_in_the_decoder")
@on_sqlite
async def test_an_image_that_hoards_memory_is_refused_it(system: System, engine: LookingEngine) -> None:
    me = await system.caller()
    async with system.reviewer(engine):
        done = await me.until(await submit(me, CreativeImage(data=PNG + b"HOARD")), FAILED)
        assert done.error.message == "images[0]: takes more memory to decode than is allowed"
