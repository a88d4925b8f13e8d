"""The task `creative_review` and its result, between protobuf bytes and the domain."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import (
    Category,
    CategoryScore,
    Creative,
    CriterionScore,
    Declared,
    EngineIdentity,
    Evidence,
    Finding,
    Image,
    Part,
    Recommendation,
    UnknownCategory,
)
from imprimatur.human import Agreement
from imprimatur.policy import Confidence, Decision, Verdict
from imprimatur.reuse import Source
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.enums import from_wire, to_wire

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def creative_of(task_input: bytes) -> Creative:
    """The creative inside a stored task input.

    Raises:
        UnreviewableInput: it was not written by this version, or it is broken.
    """
    try:
        return creative_from_wire(pb.CreativeReviewTask.FromString(task_input).creative)
    except DecodeError:
        raise UnreviewableInput("the stored creative cannot be read; submit it again") from None


def creative_from_wire(seen: pb.Creative) -> Creative:
    """A checked creative as the engines see it."""
    return Creative(
        creative_id=seen.creative_id,
        name=seen.name,
        format=seen.format,
        headline=seen.headline,
        body=seen.body,
        call_to_action=seen.call_to_action,
        advertiser=seen.advertiser,
        landing_page_url=seen.landing_page_url,
        language=seen.language,
        declared_categories=tuple(map(_declared, seen.declared_categories)),
        images=tuple(
            Image(name=image.name, data=image.data, asset_id=image.asset_id, url=image.url) for image in seen.images
        ),
        video_urls=tuple(seen.video_urls),
        audio_urls=tuple(seen.audio_urls),
    )


def asset_ids_of(creative: pb.Creative) -> dict[str, str]:
    """Of the images that it names, each with the field of a submit that names it first."""
    named: dict[str, str] = {}
    for place, image in enumerate(creative.images):
        if image.asset_id:
            named.setdefault(image.asset_id, f"creative_review.creative.images[{place}].asset_id")
    return named


def asset_ids_in(task_input: bytes) -> dict[str, str]:
    """The same of a stored task input; none of one that cannot be read, which is the reviewer's to say."""
    try:
        return asset_ids_of(pb.CreativeReviewTask.FromString(task_input).creative)
    except DecodeError:
        return {}


def summary_of(task_input: bytes, *, with_images: bool) -> pb.Creative:
    """The creative as stored, for people to look at."""
    creative = pb.CreativeReviewTask.FromString(task_input).creative
    if not with_images:
        for image in creative.images:
            image.ClearField("data")
    return creative


def ai_result(
    verdict: Verdict,
    evidence: Evidence | None,
    *,
    policy_version: int,
    reviewed_at: datetime,
    reused: Source | None = None,
) -> bytes:
    """The stored result of what the engine and the policy made of a creative; `reused` is where the evidence is from
    when another job brought it."""
    result = pb.CreativeReviewResult()
    put_verdict(result, verdict, policy_version=policy_version, reviewed_at=reviewed_at)
    if evidence is not None:
        result.ai_review.evidence.CopyFrom(evidence_to_wire(evidence))
    if reused is not None:
        result.ai_review.reused.SetInParent()
        if reused.shown:
            source = pb.ReusedEvidence(job_id=str(reused.job_id), made_at=timestamp(reused.made_at))
            result.ai_review.reused.CopyFrom(source)
    return result.SerializeToString()


def put_verdict(
    result: pb.CreativeReviewResult, verdict: Verdict, *, policy_version: int, reviewed_at: datetime
) -> None:
    """Write what the policy made of it; the evidence, and where it is from, stays."""
    review = result.ai_review
    review.decision = result.decision = to_wire(pb.Decision, "DECISION", verdict.decision)
    review.reason = verdict.reason
    review.confidence = _confidence(verdict.confidence)
    review.confidence_score = verdict.confidence_score
    review.policy_triggered = to_wire(pb.PolicyTrigger, "POLICY_TRIGGER", verdict.trigger)
    review.policy_version = policy_version
    review.reviewed_at.CopyFrom(timestamp(reviewed_at))


def human_result(
    result: bytes | None,
    *,
    decision: Decision,
    reason: str,
    reviewer: str,
    decided_at: datetime,
    agreement: Agreement,
) -> bytes:
    """The stored result with a person's decision added; the AI's side stays as it was."""
    stored = pb.CreativeReviewResult.FromString(result or b"")
    stored.decision = to_wire(pb.Decision, "DECISION", decision)
    stored.human_review.CopyFrom(
        pb.HumanReview(
            decision=stored.decision,
            reason=reason,
            reviewer=reviewer,
            decided_at=timestamp(decided_at),
            overrides_ai=agreement is Agreement.OVERRODE,
            agreement=to_wire(pb.Agreement, "AGREEMENT", agreement),
        )
    )
    return stored.SerializeToString()


def ai_reason(result: bytes | None) -> str:
    """The reason that the AI's side gives."""
    return pb.CreativeReviewResult.FromString(result or b"").ai_review.reason


def recommendation_of(result: bytes | None) -> Recommendation | None:
    """What the engine advised, if it got that far."""
    evidence = pb.CreativeReviewResult.FromString(result or b"").ai_review.evidence
    return from_wire(pb.Recommendation, "RECOMMENDATION", evidence.recommendation, Recommendation)


def evidence_to_wire(evidence: Evidence) -> pb.Evidence:
    """Evidence as stored and shown."""
    return pb.Evidence(
        engine=pb.EngineIdentity(
            name=evidence.engine.name, version=evidence.engine.version, model=evidence.engine.model
        ),
        approval_score=evidence.approval_score,
        recommendation=to_wire(pb.Recommendation, "RECOMMENDATION", evidence.recommendation),
        reason=evidence.reason,
        categories=[
            pb.CategoryScore(category=_category(item.category), score=item.score) for item in evidence.categories
        ],
        findings=[
            pb.Finding(
                category=_category(item.category),
                score=item.score,
                field=item.field,
                quote=item.quote,
                explanation=item.explanation,
            )
            for item in evidence.findings
        ],
        examined_categories=[_category(item) for item in sorted(evidence.examined_categories)],
        unexamined=[to_wire(pb.Part, "PART", part) for part in sorted(evidence.unexamined)],
        truncated=evidence.truncated,
        criteria=[
            pb.CriterionScore(
                name=item.name, fingerprint=item.fingerprint, score=item.score, explanation=item.explanation
            )
            for item in evidence.criteria
        ],
    )


def kept_evidence(evidence: Evidence) -> bytes:
    """Evidence as it is kept for equal creatives, without what it cost."""
    return evidence_to_wire(evidence).SerializeToString()


def evidence_of(kept: bytes) -> Evidence | None:
    """Evidence as it was kept, which costs nothing any more; None as `evidence_from_wire`."""
    return evidence_from_wire(pb.Evidence.FromString(kept))


def evidence_from_wire(seen: pb.Evidence) -> Evidence | None:
    """None for evidence of which this version does not know every word: what it does not understand it must not take
    for examined, or for harmless."""
    recommendation = from_wire(pb.Recommendation, "RECOMMENDATION", seen.recommendation, Recommendation)
    scored = [_category_of(item.category) for item in seen.categories]
    parts = [from_wire(pb.Part, "PART", part, Part) for part in seen.unexamined]
    if recommendation is None or None in scored or None in parts:
        return None
    examined = (_category_of(item) for item in seen.examined_categories)
    return Evidence(
        engine=EngineIdentity(name=seen.engine.name, version=seen.engine.version, model=seen.engine.model),
        approval_score=seen.approval_score,
        recommendation=recommendation,
        reason=seen.reason,
        categories=tuple(
            CategoryScore(category=category, score=item.score)
            for category, item in zip(scored, seen.categories, strict=True)
            if category is not None
        ),
        findings=tuple(
            Finding(
                category=_category_of(item.category),
                score=item.score,
                field=item.field,
                quote=item.quote,
                explanation=item.explanation,
            )
            for item in seen.findings
        ),
        examined_categories=frozenset(category for category in examined if category is not None),
        unexamined=frozenset(part for part in parts if part is not None),
        truncated=seen.truncated,
        criteria=tuple(
            CriterionScore(name=item.name, fingerprint=item.fingerprint, score=item.score, explanation=item.explanation)
            for item in seen.criteria
        ),
    )


def timestamp(instant: datetime) -> Timestamp:
    """An aware datetime as a protobuf Timestamp."""
    since = instant - _EPOCH
    return Timestamp(seconds=since.days * 86400 + since.seconds, nanos=since.microseconds * 1000)


def _category(category: Category | None) -> Any:
    return to_wire(pb.Category, "CATEGORY", category)


def _category_of(value: int) -> Category | None:
    return from_wire(pb.Category, "CATEGORY", value, Category)


def _declared(value: int) -> Declared:
    """What a gateway of a later version accepted is left out by none."""
    return _category_of(value) or UnknownCategory(f"unknown category {value}")


def _confidence(confidence: Confidence | None) -> Any:
    return to_wire(pb.Confidence, "CONFIDENCE", confidence)
