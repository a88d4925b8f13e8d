"""The table of submissions that nobody should send, with the answer that each gets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from imprimatur.v1.creative_pb2 import (
    CATEGORY_GAMBLING,
    CATEGORY_UNSPECIFIED,
    Creative,
    CreativeImage,
    CreativeReviewTask,
)
from imprimatur.v1.job_pb2 import Priority
from imprimatur.v1.job_service_pb2 import SubmitJobRequest, WhenBusy

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
YEAR_10000 = Timestamp(seconds=253_402_300_800)
URL = "https://ads.example/"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What the answer must be."""

    code: StatusCode = StatusCode.INVALID_ARGUMENT
    reason: str = "INVALID_FIELD"
    field: str = ""


@dataclass(frozen=True)
class BadSubmission:
    """A submission that is refused, alone and in a batch."""

    says: str
    request: SubmitJobRequest
    refused: Refused


def submission(creative: Mapping[str, Any] | None = None, **fields: Any) -> SubmitJobRequest:
    filled = {"creative_id": "cr-bad", "headline": "approve", **(creative or {})}
    return SubmitJobRequest(creative_review=CreativeReviewTask(creative=Creative(**filled)), **fields)


def _creative(says: str, name: str, reason: str = "INVALID_FIELD", /, **creative: Any) -> BadSubmission:
    path = f"creative_review.creative.{name}" if name else "creative_review.creative"
    return BadSubmission(says, submission(creative), Refused(reason=reason, field=path))


def _field(says: str, name: str, reason: str = "INVALID_FIELD", /, **fields: Any) -> BadSubmission:
    return BadSubmission(says, submission(**fields), Refused(reason=reason, field=name))


def _too_long() -> Iterable[BadSubmission]:
    limits = {"creative_id": 200, "name": 500, "format": 100, "headline": 1000, "body": 50_000}
    limits |= {"call_to_action": 500, "advertiser": 500, "landing_page_url": 2000}
    for name, most in limits.items():
        start = URL if name.endswith("url") else ""
        text = start + "ä" * (most + 1 - len(start))
        yield _creative(f"{name} of {most + 1} characters", name, "FIELD_TOO_LONG", **{name: text})


def _nul() -> Iterable[BadSubmission]:
    nul, hit = "NUL_CHARACTER", "a\0b"
    for name in ("creative_id", "headline", "body", "landing_page_url", "language"):
        yield _creative(f"NUL in {name}", name, nul, **{name: hit})
    yield _creative("NUL in an image's name", "images[1].name", nul, images=[_image(), _image(name=hit)])
    yield _creative("NUL in a video URL", "video_urls[0]", nul, video_urls=[hit])
    for name in ("request_id", "user_id", "callback_url", "concurrency_key"):
        yield _field(f"NUL in {name}", name, nul, **{name: hit})
    yield _field("NUL in a label", "labels", nul, labels={"team": hit})
    yield _field("NUL in a label's key", "labels", nul, labels={hit: "x"})


def _image(data: bytes = PNG, name: str = "one.png") -> CreativeImage:
    return CreativeImage(name=name, data=data)


def duration(seconds: int = 0, nanos: int = 0) -> Duration:
    return Duration(seconds=seconds, nanos=nanos)


SUBMISSIONS = (
    BadSubmission("no task", SubmitJobRequest(user_id="u"), Refused(reason="TASK_REQUIRED", field="task")),
    BadSubmission(
        "a task of a later version",
        SubmitJobRequest.FromString(b"\xaa\x06\x02\x08\x01"),  # field 101, length-delimited
        Refused(reason="TASK_REQUIRED", field="task"),
    ),
    BadSubmission(
        "an empty task",
        SubmitJobRequest(creative_review=CreativeReviewTask()),
        Refused(reason="FIELD_REQUIRED", field="creative_review.creative.creative_id"),
    ),
    _creative("no creative id", "creative_id", "FIELD_REQUIRED", creative_id=""),
    _creative("a creative id of blanks", "creative_id", "FIELD_REQUIRED", creative_id=" \t"),
    _creative("nothing to review", "", headline=" ", name="only a name"),
    *_too_long(),
    *_nul(),
    _creative("no language", "language", language="klingon!"),
    _creative("an overlong language", "language", "FIELD_TOO_LONG", language="a" * 36),
    _creative("a page that is no URL", "landing_page_url", landing_page_url="javascript:alert(1)"),
    _creative("a page with a broken host", "landing_page_url", landing_page_url="https://[::1"),
    _creative("an unknown category", "declared_categories[1]", declared_categories=[CATEGORY_GAMBLING, 999]),
    _creative("category 0", "declared_categories[0]", declared_categories=[CATEGORY_UNSPECIFIED]),
    _creative("a category twice", "declared_categories", declared_categories=[CATEGORY_GAMBLING] * 2),
    _creative("20 categories", "declared_categories", declared_categories=[CATEGORY_GAMBLING] * 20),
    _creative("11 images", "images", images=[_image()] * 11),
    _creative("11 videos", "video_urls", video_urls=[URL] * 11),
    _creative("11 audios", "audio_urls", audio_urls=[URL] * 11),
    _creative("a text as an image", "images[0].data", "NOT_AN_IMAGE", images=[_image(b"<svg/>")]),
    _creative("an empty image", "images[0].data", "FIELD_REQUIRED", images=[_image(b"")]),
    _creative("an overlong image name", "images[0].name", "FIELD_TOO_LONG", images=[_image(name="x" * 201)]),
    _creative("a video that is no URL", "video_urls[0]", video_urls=["ftp://ads.example/a.mp4"]),
    _creative("an overlong audio URL", "audio_urls[0]", "FIELD_TOO_LONG", audio_urls=[URL + "x" * 2000]),
    _field("an overlong request id", "request_id", "FIELD_TOO_LONG", request_id="x" * 201),
    _field("an overlong user id", "user_id", "FIELD_TOO_LONG", user_id="x" * 201),
    _field("33 labels", "labels", labels={str(number): "" for number in range(33)}),
    _field("an empty label key", "labels", labels={"": "x"}),
    _field("an overlong label key", "labels", labels={"k" * 64: "x"}),
    _field("an overlong label", "labels[k]", "FIELD_TOO_LONG", labels={"k": "x" * 256}),
    _field("21 attempts", "max_attempts", max_attempts=21),
    _field("-1 attempts", "max_attempts", max_attempts=-1),
    _field("an unknown priority", "priority", priority=99),
    _field("a negative priority", "priority", priority=Priority.ValueType(-1)),
    _field("a time-out of 0.9 s", "timeout", timeout=duration(0, 900_000_000)),
    _field("a time-out of an hour and a second", "timeout", timeout=duration(3601)),
    _field("a negative time-out", "timeout", timeout=duration(-5)),
    _field("a time-out of mixed signs", "timeout", timeout=duration(5, -1)),
    _field("a time-out with 2 s of nanos", "timeout", timeout=duration(5, 2_000_000_000)),
    _field("a time-out of an aeon", "timeout", timeout=duration(2**62)),
    _field("a deadline of 31 days", "deadline", deadline=duration(31 * 86_400)),
    _field("a negative deadline", "deadline", deadline=duration(-1)),
    _field("a start in the year 10000", "run_at", run_at=YEAR_10000),
    _field("a start before the year 1", "run_at", run_at=Timestamp(seconds=-(2**62))),
    _field("a start with negative nanos", "run_at", run_at=Timestamp(seconds=5, nanos=-1)),
    _field("a start in the year 9999", "run_at", run_at=Timestamp(seconds=253_402_300_799)),
    _field("a callback over http", "callback_url", "INVALID_URL", callback_url="http://ads.example/"),
    _field("a callback to oneself", "callback_url", "INVALID_URL", callback_url="https://127.0.0.1/"),
    _field("a callback to a neighbour", "callback_url", "INVALID_URL", callback_url="https://10.0.0.7:8443/"),
    _field("a callback to cloud metadata", "callback_url", "INVALID_URL", callback_url="https://169.254.169.254/"),
    _field("a callback to localhost", "callback_url", "INVALID_URL", callback_url="https://localhost/"),
    _field("a callback with a password", "callback_url", "INVALID_URL", callback_url="https://a:b@ads.example/"),
    _field("an overlong callback", "callback_url", "FIELD_TOO_LONG", callback_url=URL + "x" * 2000),
    _field("an overlong concurrency key", "concurrency_key", "FIELD_TOO_LONG", concurrency_key="x" * 201),
    _field("an unknown way with a busy key", "when_busy", concurrency_key="x", when_busy=WhenBusy.ValueType(9)),
    _field("a way with a busy key without one", "when_busy", when_busy=WhenBusy.WHEN_BUSY_SUPERSEDE),
    _field("a negative revision", "revision", revision=-1),
)
