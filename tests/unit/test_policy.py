"""The decision table: every row with its boundaries, confidence and reasons."""

import math
from dataclasses import dataclass, field

import pytest
from tests import makers

from imprimatur.criteria import Criterion, Effect
from imprimatur.evidence import Category, Evidence, Part, Recommendation
from imprimatur.policy import Confidence, Decision, EngineFailure, Mode, Policy, Trigger, confidence_of, decide

APPROVE, REJECT, HUMAN = Recommendation.APPROVE, Recommendation.REJECT, Recommendation.HUMAN
APPROVED, REJECTED, PENDING = Decision.APPROVED, Decision.REJECTED, Decision.PENDING
BELOW, ABOVE = 1e-9, 1e-9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case: under `policy`, `found` in a creative of the `declared` categories is decided so by that row."""

    is_: tuple[Decision, Trigger]
    found: Evidence | EngineFailure | None = field(default_factory=makers.evidence)
    policy: Policy = field(default_factory=Policy)
    declared: tuple[Category, ...] = ()


def clean(score: float, **more: object) -> Evidence:
    """Evidence whose recommendation fits its score."""
    return makers.evidence(score, recommendation=APPROVE if score >= 0.5 else REJECT, **more)  # type: ignore[arg-type]  # passed on


def touches(category: Category, score: float, *, approval: float = 0.95) -> Evidence:
    return clean(approval, detected={category: score})


ALCOHOL, HATE, ADULT = Category.ALCOHOL, Category.HATE, Category.ADULT
BROKEN = EngineFailure(message="the engine timed out")
BROKE = EngineFailure(message="the day's budget is used up", budget_exhausted=True)
PRICES = Criterion(name="prices", text="Prices name their currency.", effect=Effect.BLOCKS)
RIVALS = Criterion(name="rivals", text="No rival is named.", effect=Effect.TO_PERSON)
REWORDED = Criterion(name="rivals", text="No rival is named or shown.", effect=Effect.TO_PERSON)
RULES = Policy(criteria=(PRICES, RIVALS))
LENIENT = Policy(always_human=frozenset(), blocked=frozenset())
BY_PERSON = Policy(mode=Mode.REQUIRE_HUMAN)
BY_NOBODY = Policy(mode=Mode.AUTO_APPROVE)
ODD = Policy(auto_approve_threshold=0.3, auto_reject_threshold=0.2)
HARSH = Policy(auto_approve_threshold=0.9, auto_reject_threshold=0.7)


def breaks(*, prices: float = 0.0, rivals: float = 0.0) -> Evidence:
    """A good creative in which both criteria were examined."""
    return clean(0.95, broken={PRICES: prices, RIVALS: rivals})


TABLE = {
    # 1: the mode approves everything, whatever was found
    "1 clean": Row(policy=BY_NOBODY, is_=(APPROVED, Trigger.AUTO_APPROVE_MODE)),
    "1 no engine ran": Row(policy=BY_NOBODY, found=None, is_=(APPROVED, Trigger.AUTO_APPROVE_MODE)),
    "1 engine failed": Row(policy=BY_NOBODY, found=BROKEN, is_=(APPROVED, Trigger.AUTO_APPROVE_MODE)),
    "1 budget": Row(policy=BY_NOBODY, found=BROKE, is_=(APPROVED, Trigger.AUTO_APPROVE_MODE)),
    "1 blocked": Row(policy=BY_NOBODY, found=touches(HATE, 1.0), is_=(APPROVED, Trigger.AUTO_APPROVE_MODE)),
    # 2: the mode sends everything to a person
    "2 clean": Row(policy=BY_PERSON, is_=(PENDING, Trigger.HUMAN_REQUIRED)),
    "2 no engine ran": Row(policy=BY_PERSON, found=None, is_=(PENDING, Trigger.HUMAN_REQUIRED)),
    "2 engine failed": Row(policy=BY_PERSON, found=BROKEN, is_=(PENDING, Trigger.HUMAN_REQUIRED)),
    "2 budget": Row(policy=BY_PERSON, found=BROKE, is_=(PENDING, Trigger.HUMAN_REQUIRED)),
    "2 blocked": Row(policy=BY_PERSON, found=touches(HATE, 1.0), is_=(PENDING, Trigger.HUMAN_REQUIRED)),
    # 3: no usable evidence
    "3 failed": Row(found=BROKEN, is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 no engine ran": Row(found=None, is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 budget": Row(found=BROKE, is_=(PENDING, Trigger.BUDGET_EXHAUSTED)),
    "3 not a number": Row(found=makers.evidence(math.nan), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 infinite": Row(found=makers.evidence(math.inf), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 above 1": Row(found=makers.evidence(1 + ABOVE), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 below 0": Row(found=clean(0 - BELOW), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 category nan": Row(found=touches(ALCOHOL, math.nan), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 category above 1": Row(found=touches(HATE, 1.01), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 criterion nan": Row(policy=RULES, found=breaks(prices=math.nan), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 criterion above 1": Row(found=breaks(prices=1 + ABOVE), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 before declared": Row(found=BROKEN, declared=(ALCOHOL,), is_=(PENDING, Trigger.ENGINE_ERROR)),
    "3 budget, before declared": Row(found=BROKE, declared=(ALCOHOL,), is_=(PENDING, Trigger.BUDGET_EXHAUSTED)),
    # 4: sensitive, declared or detected
    "4 declared sensitive": Row(declared=(ALCOHOL,), is_=(PENDING, Trigger.SENSITIVE_CATEGORY)),
    "4 declared blocked": Row(declared=(HATE,), is_=(PENDING, Trigger.SENSITIVE_CATEGORY)),
    "4 declared, not in the policy": Row(declared=(ALCOHOL,), policy=LENIENT, is_=(APPROVED, Trigger.AUTO_APPROVE)),
    "4 detected at the limit": Row(found=touches(ALCOHOL, 0.30), is_=(PENDING, Trigger.SENSITIVE_CATEGORY)),
    "4 detected below": Row(found=touches(ALCOHOL, 0.30 - BELOW), is_=(APPROVED, Trigger.AUTO_APPROVE)),
    "4 detected, not in the policy": Row(
        found=touches(ALCOHOL, 1.0), policy=LENIENT, is_=(APPROVED, Trigger.AUTO_APPROVE)
    ),
    "4 before blocked": Row(
        found=clean(0.95, detected={ALCOHOL: 0.5, HATE: 0.99}), is_=(PENDING, Trigger.SENSITIVE_CATEGORY)
    ),
    "4 before auto-reject": Row(found=touches(ADULT, 0.9, approval=0.01), is_=(PENDING, Trigger.SENSITIVE_CATEGORY)),
    "4 a criterion for people at the limit": Row(
        policy=RULES, found=breaks(rivals=0.30), is_=(PENDING, Trigger.SENSITIVE_CRITERION)
    ),
    "4 a criterion for people below": Row(
        policy=RULES, found=breaks(rivals=0.30 - BELOW), is_=(APPROVED, Trigger.AUTO_APPROVE)
    ),
    "4 a criterion for people for sure": Row(
        policy=RULES, found=breaks(rivals=1.0), is_=(PENDING, Trigger.SENSITIVE_CRITERION)
    ),
    "4 a criterion before blocked": Row(
        policy=RULES, found=breaks(rivals=0.5, prices=0.95), is_=(PENDING, Trigger.SENSITIVE_CRITERION)
    ),
    "4 a criterion that the policy does not have": Row(
        found=breaks(rivals=1.0, prices=1.0), is_=(APPROVED, Trigger.AUTO_APPROVE)
    ),
    # 5: blocked for sure
    "5 at the limit": Row(found=touches(HATE, 0.90), is_=(REJECTED, Trigger.BLOCKED_CATEGORY)),
    "5 certain": Row(found=touches(HATE, 1.0), is_=(REJECTED, Trigger.BLOCKED_CATEGORY)),
    "5 of several": Row(
        found=clean(0.95, detected={HATE: 0.4, Category.SCAM: 0.95}), is_=(REJECTED, Trigger.BLOCKED_CATEGORY)
    ),
    "5 though the engine wants a person": Row(
        found=makers.evidence(0.2, recommendation=HUMAN, detected={HATE: 0.95}),
        is_=(REJECTED, Trigger.BLOCKED_CATEGORY),
    ),
    "5 a criterion at the limit": Row(
        policy=RULES, found=breaks(prices=0.90), is_=(REJECTED, Trigger.BLOCKED_CRITERION)
    ),
    # 6: perhaps blocked
    "6 a criterion below the limit of 5": Row(
        policy=RULES, found=breaks(prices=0.90 - BELOW), is_=(PENDING, Trigger.POSSIBLE_BLOCKED)
    ),
    "6 a criterion at the limit": Row(policy=RULES, found=breaks(prices=0.30), is_=(PENDING, Trigger.POSSIBLE_BLOCKED)),
    "6 a criterion below": Row(policy=RULES, found=breaks(prices=0.30 - BELOW), is_=(APPROVED, Trigger.AUTO_APPROVE)),
    "6 below the limit of 5": Row(found=touches(HATE, 0.90 - BELOW), is_=(PENDING, Trigger.POSSIBLE_BLOCKED)),
    "6 at the limit": Row(found=touches(HATE, 0.30), is_=(PENDING, Trigger.POSSIBLE_BLOCKED)),
    "6 below": Row(found=touches(HATE, 0.30 - BELOW), is_=(APPROVED, Trigger.AUTO_APPROVE)),
    "6 before auto-reject": Row(found=touches(HATE, 0.5, approval=0.01), is_=(PENDING, Trigger.POSSIBLE_BLOCKED)),
    # 7: contradictory, or a person is asked for
    "7 asks for a person": Row(found=makers.evidence(0.99, recommendation=HUMAN), is_=(PENDING, Trigger.UNCERTAIN)),
    "7 approve at a low score": Row(found=makers.evidence(0.05), is_=(PENDING, Trigger.UNCERTAIN)),
    "7 approve just below half": Row(found=makers.evidence(0.5 - BELOW), is_=(PENDING, Trigger.UNCERTAIN)),
    "7 approve at half": Row(found=makers.evidence(0.5), is_=(PENDING, Trigger.LOW_CONFIDENCE)),
    "7 reject at a high score": Row(
        found=makers.evidence(0.95, recommendation=REJECT), is_=(PENDING, Trigger.UNCERTAIN)
    ),
    "7 reject just above half": Row(
        found=makers.evidence(0.5 + ABOVE, recommendation=REJECT), is_=(PENDING, Trigger.UNCERTAIN)
    ),
    "7 reject at half": Row(found=makers.evidence(0.5, recommendation=REJECT), is_=(PENDING, Trigger.LOW_CONFIDENCE)),
    "7 reject, which the threshold would approve": Row(
        found=makers.evidence(0.3, recommendation=REJECT), policy=ODD, is_=(PENDING, Trigger.UNCERTAIN)
    ),
    "7 approve, which the threshold would reject": Row(
        found=makers.evidence(0.7), policy=HARSH, is_=(PENDING, Trigger.UNCERTAIN)
    ),
    # 8: bad enough
    "8 at the threshold": Row(found=clean(0.10), is_=(REJECTED, Trigger.AUTO_REJECT)),
    "8 zero": Row(found=clean(0.0), is_=(REJECTED, Trigger.AUTO_REJECT)),
    "8 above": Row(found=clean(0.10 + ABOVE), is_=(PENDING, Trigger.LOW_CONFIDENCE)),
    "8 before 9": Row(
        found=clean(0.05, unexamined=frozenset({Part.VIDEO}), truncated=True), is_=(REJECTED, Trigger.AUTO_REJECT)
    ),
    # 9: something was not looked at
    **{
        f"9 {part} not examined": Row(
            found=clean(1.0, unexamined=frozenset({part})), is_=(PENDING, Trigger.NOT_FULLY_EXAMINED)
        )
        for part in Part
    },
    "9 truncated": Row(found=clean(1.0, truncated=True), is_=(PENDING, Trigger.NOT_FULLY_EXAMINED)),
    "9 a category not examined": Row(
        found=clean(1.0, examined=frozenset(Category) - {HATE}), is_=(PENDING, Trigger.NOT_FULLY_EXAMINED)
    ),
    "9 a category of no interest not examined": Row(
        found=clean(1.0, examined=frozenset()), policy=LENIENT, is_=(APPROVED, Trigger.AUTO_APPROVE)
    ),
    "9 no criterion examined": Row(policy=RULES, found=clean(1.0), is_=(PENDING, Trigger.NOT_FULLY_EXAMINED)),
    "9 one criterion not examined": Row(
        policy=RULES, found=clean(1.0, broken={PRICES: 0.0}), is_=(PENDING, Trigger.NOT_FULLY_EXAMINED)
    ),
    "9 a criterion examined as it was worded before": Row(
        policy=Policy(criteria=(REWORDED,)),
        found=clean(1.0, broken={RIVALS: 1.0}),
        is_=(PENDING, Trigger.NOT_FULLY_EXAMINED),
    ),
    # 10: good enough
    "10 every criterion kept": Row(policy=RULES, found=breaks(), is_=(APPROVED, Trigger.AUTO_APPROVE)),
    "10 at the threshold": Row(found=clean(0.90), is_=(APPROVED, Trigger.AUTO_APPROVE)),
    "10 one": Row(found=clean(1.0), is_=(APPROVED, Trigger.AUTO_APPROVE)),
    # 11: neither
    "11 below the threshold of 10": Row(found=clean(0.90 - BELOW), is_=(PENDING, Trigger.LOW_CONFIDENCE)),
    "11 in the middle": Row(found=clean(0.6), is_=(PENDING, Trigger.LOW_CONFIDENCE)),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_the_decision_table(row: Row) -> None:
    verdict = decide(row.policy, row.declared, row.found)
    assert (verdict.decision, verdict.trigger) == row.is_
    assert verdict.reason


def test_the_table_above_has_every_trigger() -> None:
    assert {row.is_[1] for row in TABLE.values()} == set(Trigger)


# --- confidence and reasons ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "confidence"),
    [
        (0.0, Confidence.HIGH),
        (0.1, Confidence.HIGH),
        (0.1 + ABOVE, Confidence.MEDIUM),
        (0.3, Confidence.MEDIUM),
        (0.3 + ABOVE, Confidence.LOW),
        (0.5, Confidence.LOW),
        (0.7 - BELOW, Confidence.LOW),
        (0.7, Confidence.MEDIUM),
        (0.9 - BELOW, Confidence.MEDIUM),
        (0.9, Confidence.HIGH),
        (1.0, Confidence.HIGH),
    ],
)
def test_confidence_is_how_far_the_score_is_on_its_side(score: float, confidence: Confidence) -> None:
    verdict = decide(Policy(), (), clean(score))
    assert verdict.confidence is confidence
    assert verdict.confidence_score == max(score, 1 - score)
    assert confidence_of(verdict.confidence_score) is confidence


def test_without_evidence_there_is_no_confidence() -> None:
    for found in (None, BROKEN, makers.evidence(math.nan)):
        verdict = decide(Policy(), (), found)
        assert (verdict.confidence, verdict.confidence_score) == (None, 0.0)


def test_reasons_name_what_a_person_should_look_at() -> None:
    def reason(found: Evidence | EngineFailure, *declared: Category) -> str:
        return decide(Policy(), declared, found).reason

    assert "alcohol, gambling" in reason(makers.evidence(), Category.GAMBLING, ALCOHOL)
    assert "alcohol (0.45)" in reason(touches(ALCOHOL, 0.45))
    assert "hate (0.95)" in reason(touches(HATE, 0.95))
    assert "video" in reason(clean(1.0, unexamined=frozenset({Part.VIDEO})))
    assert "overlong" in reason(clean(1.0, truncated=True))
    assert "timed out" in reason(BROKEN)
    assert "prices (0.95): It says so." in decide(RULES, (), breaks(prices=0.95)).reason
    assert "the criterion prices, the criterion rivals" in decide(RULES, (), clean(1.0)).reason
    assert "0.60" in reason(clean(0.6))
