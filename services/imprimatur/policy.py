"""The decision table: from a policy and what an engine found to a decision. Pure; no I/O, no clock.

Review fails safe: whatever is missing, broken, contradictory or unexamined ends with a person, and no error
ever approves. The rows are tried in order and the first that matches wins; boundaries are inclusive. The same
table, for people, is docs/decision-table.md.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum

from imprimatur import criteria
from imprimatur.criteria import Criteria, Criterion, Effect
from imprimatur.errors import InvalidRequest
from imprimatur.evidence import (
    FORBIDDEN,
    SENSITIVE,
    Category,
    CategoryScore,
    CriterionScore,
    Declared,
    Evidence,
    Recommendation,
    UnknownCategory,
)


class Mode(StrEnum):
    """How far a tenant lets the AI decide."""

    AUTO_APPROVE = "auto-approve"  #: everything is approved, no engine runs
    REQUIRE_HUMAN = "require-human"  #: a person decides everything; the AI advises
    AI_POWERED = "ai-powered"  #: the table below decides


class Decision(StrEnum):
    """What becomes of a creative."""

    APPROVED = "approved"
    REJECTED = "rejected"
    PENDING = "pending"  #: a person decides


class Trigger(StrEnum):
    """The row of the table that applied."""

    AUTO_APPROVE_MODE = "auto_approve_mode"
    HUMAN_REQUIRED = "human_required"
    ENGINE_ERROR = "engine_error"
    BUDGET_EXHAUSTED = "budget_exhausted"
    SENSITIVE_CATEGORY = "sensitive_category"
    SENSITIVE_CRITERION = "sensitive_criterion"
    BLOCKED_CATEGORY = "blocked_category"
    BLOCKED_CRITERION = "blocked_criterion"
    POSSIBLE_BLOCKED = "possible_blocked"
    UNCERTAIN = "uncertain"
    AUTO_REJECT = "auto_reject"
    NOT_FULLY_EXAMINED = "not_fully_examined"
    AUTO_APPROVE = "auto_approve"
    LOW_CONFIDENCE = "low_confidence"


class Confidence(StrEnum):
    """How sure the engine is of its side of the score."""

    HIGH = "high"  #: from 0.9
    MEDIUM = "medium"  #: from 0.7
    LOW = "low"


LONGEST_MODEL_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What one tenant lets the AI decide. Immutable; a change is a new version. These are the defaults.

    Thresholds and detection limits are probabilities in [0, 1], with
    auto_reject_threshold < auto_approve_threshold and detect_min < block_min. `model` is the language model that
    examines, as the reviewers name it, from the next attempt on; None: the one that they are set to. `criteria` are
    rules in free text, which only language models examine: under them, no other engine's evidence approves. With
    `reuse_evidence`, equal creatives are examined once, where the reviewers are set to it.
    """

    mode: Mode = Mode.AI_POWERED
    auto_approve_threshold: float = 0.90
    auto_reject_threshold: float = 0.10
    detect_min: float = 0.30
    block_min: float = 0.90
    always_human: frozenset[Category] = SENSITIVE
    blocked: frozenset[Category] = FORBIDDEN
    model: str | None = None
    criteria: Criteria = ()
    reuse_evidence: bool = True

    def __post_init__(self) -> None:
        for name in ("auto_approve_threshold", "auto_reject_threshold", "detect_min", "block_min"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, float | int) and 0 <= value <= 1):
                raise InvalidRequest(name, "must be a number from 0 to 1")
        if self.auto_reject_threshold >= self.auto_approve_threshold:
            raise InvalidRequest("auto_reject_threshold", "must be below auto_approve_threshold")
        if self.detect_min >= self.block_min:
            raise InvalidRequest("detect_min", "must be below block_min")
        if self.model is not None and not (isinstance(self.model, str) and 0 < len(self.model) <= LONGEST_MODEL_NAME):
            raise InvalidRequest("model", f"must be a name of at most {LONGEST_MODEL_NAME} characters")
        if not isinstance(self.reuse_evidence, bool):
            raise InvalidRequest("reuse_evidence", "must be true or false")
        if both := self.always_human & self.blocked:
            raise InvalidRequest("blocked", f"also in always_human: {', '.join(sorted(both))}")
        criteria.checked(self.criteria)

    def document(self) -> dict[str, object]:
        """The policy as plain JSON values, the form in which a version is stored; without what it does not have."""
        return {
            field.name: _plain(value)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None and value != ()
        }

    @classmethod
    def from_document(cls, document: dict[str, object]) -> "Policy":
        """Read a stored or submitted policy.

        Raises:
            InvalidRequest: an unknown key, mode or category, or thresholds out of order.
        """
        if unknown := set(document) - {field.name for field in fields(cls)}:
            known = ", ".join(field.name for field in fields(cls))
            raise InvalidRequest(min(unknown), f"is not a policy setting; there are {known}")
        values: dict[str, object] = dict(document)
        try:
            if "mode" in values:
                values["mode"] = Mode(str(values["mode"]))
        except ValueError:
            raise InvalidRequest("mode", f"must be one of {', '.join(Mode)}") from None
        for name in {"always_human", "blocked"} & set(values):
            values[name] = _categories(name, values[name])
        if "criteria" in values:
            values["criteria"] = criteria.from_documents(values["criteria"])
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks what is not checked above


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    return [one.document() for one in value] if isinstance(value, tuple) else value


def _categories(field: str, names: object) -> frozenset[Category]:
    if not isinstance(names, list | tuple | set | frozenset):
        raise InvalidRequest(field, "must be a list of category ids")
    if unknown := {str(name) for name in names} - set(Category):
        raise InvalidRequest(field, f"not a category: {min(unknown)}; allowed: {', '.join(Category)}")
    return frozenset(Category(str(name)) for name in names)


@dataclass(frozen=True, kw_only=True)
class LivePolicy:
    """A tenant's policy in force, and the instant at which it was read."""

    version: int
    policy: Policy
    at: datetime


@dataclass(frozen=True, kw_only=True)
class EngineFailure:
    """The engine gave no usable answer, after all retries."""

    message: str  #: what a person may read
    budget_exhausted: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the table made of the evidence. `confidence_score` is max(score, 1 - score), 0 without evidence."""

    decision: Decision
    trigger: Trigger
    reason: str
    confidence: Confidence | None
    confidence_score: float


def decide(policy: Policy, declared: Iterable[Declared], found: Evidence | EngineFailure | None) -> Verdict:
    """Apply the decision table.

    Args:
        policy: the tenant's live policy.
        declared: categories that the seller declares; one that this version does not know is a person's, too.
        found: the engine's evidence, or why there is none. None when no engine ran because the mode does not
            ask for it; in any other mode it counts as a failure.
    """
    if isinstance(found, Evidence) and (flaw := flaw_of(found)):
        found = EngineFailure(message=f"the engine's answer is invalid: {flaw}")
    case = _Case(policy=policy, declared=frozenset(declared), found=found)
    for row in _ROWS:
        if (match := row(case)) is not None:
            decision, trigger, reason = match
            score = max(found.approval_score, 1 - found.approval_score) if isinstance(found, Evidence) else 0.0
            return Verdict(
                decision=decision,
                trigger=trigger,
                reason=reason,
                confidence=confidence_of(score) if isinstance(found, Evidence) else None,
                confidence_score=score,
            )
    raise AssertionError("the last row matches everything")


def decide_failure(policy: Policy, declared: Iterable[Declared], failure: EngineFailure) -> Verdict:
    """What becomes of a creative whose review failed for good. Where the policy asks for no engine by now, the first
    row would approve; but one was asked, and what no review saw is not approved by its failure."""
    if policy.mode is Mode.AUTO_APPROVE:
        policy = replace(policy, mode=Mode.AI_POWERED)
    return decide(policy, declared, failure)


def appealed(verdict: Verdict) -> Verdict:
    """What the table's verdict comes to for an appeal: a person decides. The row that applied is told as it is."""
    if verdict.decision is Decision.PENDING:
        return verdict
    reason = f"An appeal: a person decides. By itself the policy would have {verdict.decision} it: {verdict.reason}"
    return replace(verdict, decision=Decision.PENDING, reason=reason)


def confidence_of(score: float) -> Confidence:
    """high from 0.9, medium from 0.7, else low."""
    if score >= 0.9:
        return Confidence.HIGH
    return Confidence.MEDIUM if score >= 0.7 else Confidence.LOW


def flaw_of(evidence: Evidence) -> str:
    """What makes the evidence unusable, or an empty string."""
    numbers = [("approval_score", evidence.approval_score)]
    numbers += [(item.category, item.score) for item in evidence.categories]
    numbers += [(item.name, item.score) for item in evidence.criteria]
    for name, number in numbers:
        if not (math.isfinite(number) and 0 <= number <= 1):
            return f"{name} is {number}, not a probability"
    return ""


def unexamined_criteria(policy: Policy, evidence: Evidence) -> tuple[Criterion, ...]:
    """Those of the policy's criteria about which, as they are worded now, the evidence says nothing."""
    examined = {found.fingerprint for found in evidence.criteria}
    return tuple(one for one in policy.criteria if one.fingerprint not in examined)


@dataclass(frozen=True, kw_only=True)
class _Case:
    policy: Policy
    declared: frozenset[Declared]
    found: Evidence | EngineFailure | None

    @property
    def evidence(self) -> Evidence:
        assert isinstance(self.found, Evidence)  # rows 1-3 have caught everything else
        return self.found

    def detected(self, among: frozenset[Category], at_least: float) -> CategoryScore | None:
        """The highest-scoring category of `among` with at least that score."""
        hits = [hit for hit in self.evidence.categories if hit.category in among and hit.score >= at_least]
        return max(hits, key=lambda hit: hit.score, default=None)

    def broken(self, effect: Effect, at_least: float) -> CriterionScore | None:
        """The criterion of that effect which is broken most surely, with at least that score."""
        asked = {one.fingerprint for one in self.policy.criteria if one.effect is effect}
        hits = [hit for hit in self.evidence.criteria if hit.fingerprint in asked and hit.score >= at_least]
        return max(hits, key=lambda hit: hit.score, default=None)


_Match = tuple[Decision, Trigger, str] | None


def _auto_approve_mode(case: _Case) -> _Match:
    if case.policy.mode is Mode.AUTO_APPROVE:
        return (
            Decision.APPROVED,
            Trigger.AUTO_APPROVE_MODE,
            "The tenant approves every creative without review.",
        )
    return None


def _human_required(case: _Case) -> _Match:
    if case.policy.mode is Mode.REQUIRE_HUMAN:
        return Decision.PENDING, Trigger.HUMAN_REQUIRED, "The tenant has a person decide every creative."
    return None


def _engine_failed(case: _Case) -> _Match:
    if isinstance(case.found, Evidence):
        return None
    failure = case.found or EngineFailure(message="no engine ran")
    trigger = Trigger.BUDGET_EXHAUSTED if failure.budget_exhausted else Trigger.ENGINE_ERROR
    return Decision.PENDING, trigger, f"A person decides, because the AI could not: {failure.message}"


def _sensitive(case: _Case) -> _Match:
    minded = case.policy.always_human | case.policy.blocked
    if named := {one for one in case.declared if one in minded or isinstance(one, UnknownCategory)}:
        reason = f"Declared as {', '.join(sorted(named))}: a person decides."
        return Decision.PENDING, Trigger.SENSITIVE_CATEGORY, reason
    if hit := case.detected(case.policy.always_human, case.policy.detect_min):
        reason = f"Touches {hit.category} ({hit.score:.2f}): a person decides."
        return Decision.PENDING, Trigger.SENSITIVE_CATEGORY, reason
    if broken := case.broken(Effect.TO_PERSON, case.policy.detect_min):
        reason = f"May break the criterion {_told(broken)} A person decides."
        return Decision.PENDING, Trigger.SENSITIVE_CRITERION, reason
    return None


def _blocked(case: _Case) -> _Match:
    if hit := case.detected(case.policy.blocked, case.policy.block_min):
        return Decision.REJECTED, Trigger.BLOCKED_CATEGORY, f"Contains {hit.category} ({hit.score:.2f})."
    if broken := case.broken(Effect.BLOCKS, case.policy.block_min):
        return Decision.REJECTED, Trigger.BLOCKED_CRITERION, f"Breaks the criterion {_told(broken)}"
    return None


def _possibly_blocked(case: _Case) -> _Match:
    if hit := case.detected(case.policy.blocked, case.policy.detect_min):
        reason = f"May contain {hit.category} ({hit.score:.2f}): a person decides."
        return Decision.PENDING, Trigger.POSSIBLE_BLOCKED, reason
    if broken := case.broken(Effect.BLOCKS, case.policy.detect_min):
        reason = f"May break the criterion {_told(broken)} A person decides."
        return Decision.PENDING, Trigger.POSSIBLE_BLOCKED, reason
    return None


def _told(broken: CriterionScore) -> str:
    return f"{broken.name} ({broken.score:.2f})" + (f": {broken.explanation}" if broken.explanation else ".")


def _uncertain(case: _Case) -> _Match:
    score, advice = case.evidence.approval_score, case.evidence.recommendation
    if advice is Recommendation.HUMAN:
        return Decision.PENDING, Trigger.UNCERTAIN, f"The engine asks for a person: {case.evidence.reason}"
    # Whatever the thresholds are, nothing is decided against the engine's own advice.
    too_low = score < 0.5 or score <= case.policy.auto_reject_threshold
    too_high = score > 0.5 or score >= case.policy.auto_approve_threshold
    if (advice is Recommendation.APPROVE and too_low) or (advice is Recommendation.REJECT and too_high):
        reason = f"The engine recommends to {advice} but scores {score:.2f}: a person decides."
        return Decision.PENDING, Trigger.UNCERTAIN, reason
    return None


def _auto_reject(case: _Case) -> _Match:
    if case.evidence.approval_score <= case.policy.auto_reject_threshold:
        return Decision.REJECTED, Trigger.AUTO_REJECT, case.evidence.reason
    return None


def _not_fully_examined(case: _Case) -> _Match:
    parts: list[str] = sorted(case.evidence.unexamined)
    parts += sorted((case.policy.always_human | case.policy.blocked) - case.evidence.examined_categories)
    parts += [f"the criterion {one.name}" for one in unexamined_criteria(case.policy, case.evidence)]
    if case.evidence.truncated:
        parts.append("the end of an overlong text")
    if parts:
        reason = f"Not examined: {', '.join(parts)}. A person decides."
        return Decision.PENDING, Trigger.NOT_FULLY_EXAMINED, reason
    return None


def _auto_approve(case: _Case) -> _Match:
    if case.evidence.approval_score >= case.policy.auto_approve_threshold:
        return Decision.APPROVED, Trigger.AUTO_APPROVE, case.evidence.reason
    return None


def _low_confidence(case: _Case) -> _Match:
    reason = f"The score {case.evidence.approval_score:.2f} lies between the thresholds: a person decides."
    return Decision.PENDING, Trigger.LOW_CONFIDENCE, reason


_ROWS: tuple[Callable[[_Case], _Match], ...] = (
    _auto_approve_mode,
    _human_required,
    _engine_failed,
    _sensitive,
    _blocked,
    _possibly_blocked,
    _uncertain,
    _auto_reject,
    _not_fully_examined,
    _auto_approve,
    _low_confidence,
)
