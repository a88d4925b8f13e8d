"""Reviews that are done, read back from their stored results: to be looked at, or decided, by another policy."""

from datetime import datetime

from google.protobuf.message import DecodeError

from imprimatur.errors import UnreviewableInput
from imprimatur.hindsight import Reviewed
from imprimatur.policy import Decision, Trigger, Verdict
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.creatives import creative_of, evidence_from_wire, put_verdict
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
    evidence = evidence_from_wire(review.evidence) if review.HasField("evidence") else None
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
