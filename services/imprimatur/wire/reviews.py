"""Reviews that are done, read back from their stored results: to be looked at, or decided, by another policy."""

from datetime import datetime

from google.protobuf.message import DecodeError

from imprimatur.errors import UnreviewableInput
from imprimatur.evidence import (
    Category,
    CategoryScore,
    CriterionScore,
    EngineIdentity,
    Evidence,
    Finding,
    Part,
    Recommendation,
)
from imprimatur.hindsight import Reviewed
from imprimatur.policy import Decision, Trigger, Verdict
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.creatives import creative_of, put_verdict
from imprimatur.wire.enums import from_wire


def reviewed_of(task_input: bytes, result: bytes) -> Reviewed | None:
    """The AI's side of a review. None when there is none, or when it cannot be read."""
    try:
        review = pb.CreativeReviewResult.FromString(result).ai_review
        declared = creative_of(task_input).declared_categories
    except (DecodeError, UnreviewableInput):
        return None
    decision = from_wire(pb.Decision, "DECISION", review.decision, Decision)
    trigger = from_wire(pb.PolicyTrigger, "POLICY_TRIGGER", review.policy_triggered, Trigger)
    if decision is None or trigger is None:
        return None
    evidence = _evidence(review.evidence) if review.HasField("evidence") else None
    if review.HasField("evidence") and evidence is None:
        return None
    return Reviewed(declared=declared, evidence=evidence, decision=decision, trigger=trigger)


def decision_by_person(result: bytes) -> Decision | None:
    """What a person decided about it."""
    decision = pb.CreativeReviewResult.FromString(result).human_review.decision
    return from_wire(pb.Decision, "DECISION", decision, Decision)


def decided_result(result: bytes, verdict: Verdict, *, policy_version: int, reviewed_at: datetime) -> bytes:
    """The stored result with another verdict; what the engine found stays byte for byte."""
    stored = pb.CreativeReviewResult.FromString(result)
    put_verdict(stored, verdict, policy_version=policy_version, reviewed_at=reviewed_at)
    return stored.SerializeToString()


def _evidence(seen: pb.Evidence) -> Evidence | None:
    """None for evidence of which this version does not know every word: what it does not understand it must not take
    for examined, or for harmless."""
    recommendation = from_wire(pb.Recommendation, "RECOMMENDATION", seen.recommendation, Recommendation)
    scored = [from_wire(pb.Category, "CATEGORY", item.category, Category) for item in seen.categories]
    parts = [from_wire(pb.Part, "PART", part, Part) for part in seen.unexamined]
    if recommendation is None or None in scored or None in parts:
        return None
    examined = (from_wire(pb.Category, "CATEGORY", item, Category) for item in seen.examined_categories)
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
        findings=tuple(_finding(item) for item in seen.findings),
        examined_categories=frozenset(item for item in examined if item is not None),
        unexamined=frozenset(part for part in parts if part is not None),
        truncated=seen.truncated,
        criteria=tuple(
            CriterionScore(name=item.name, fingerprint=item.fingerprint, score=item.score, explanation=item.explanation)
            for item in seen.criteria
        ),
    )


def _finding(seen: pb.Finding) -> Finding:
    return Finding(
        category=from_wire(pb.Category, "CATEGORY", seen.category, Category),
        score=seen.score,
        field=seen.field,
        quote=seen.quote,
        explanation=seen.explanation,
    )
