"""The decision table: every row with its boundaries, confidence and reasons."""

import math
import pickle
from dataclasses import fields
from itertools import product
from typing import Any

import pytest

from imprimatur import policy
from imprimatur.evidence import Category, Evidence, Part
from imprimatur.human import categories_of
from imprimatur.policy import Confidence, Decision, EngineFailure, Mode, Policy, Trigger, confidence_of, decide
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.creatives import creative_of
from tests import makers
from tests.unit.decisions import ALCOHOL, BROKEN, FOUND, HATE, LENIENT, RULES, TABLE, Case, Side, breaks, clean, touches

LAST = len(policy._ROWS)


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_the_decision_table(case: Case) -> None:
    verdict = decide(case.policy, case.declared, case.found)
    assert (verdict.decision, verdict.trigger) == case.is_
    assert verdict.reason


# --- the cases are all there are, and each row of the code is held by some -------------------------------


def test_the_cases_have_every_row_every_trigger_and_every_mode_with_whatever_was_found() -> None:
    assert {case.row for case in TABLE.values()} == set(range(1, LAST + 1))
    assert {case.is_[1] for case in TABLE.values()} == set(Trigger)
    with_mode = [(case.policy.mode, case.found) for case in TABLE.values()]
    for mode, found in product({Mode.AUTO_APPROVE, Mode.REQUIRE_HUMAN}, FOUND.values()):
        assert (mode, found) in with_mode
    assert {case.row for case in TABLE.values() if case.policy.mode is Mode.AI_POWERED} == set(range(3, LAST + 1))


def test_the_cases_lie_on_both_sides_of_every_threshold_wherever_it_is_set() -> None:
    thresholds = [setting.name for setting in fields(Policy) if setting.type is float]
    assert len(thresholds) >= 4
    for name, side in product(thresholds, Side):
        values = {getattr(case.policy, name) for case in TABLE.values() if case.edge == (name, side)}
        assert len(values) > 1, f"{side} {name}"


def decides_all() -> bool:
    try:
        for case in TABLE.values():
            verdict = decide(case.policy, case.declared, case.found)
            if (verdict.decision, verdict.trigger) != case.is_:
                return False
    except AssertionError:  # the code's own: a row was tried that is only for evidence, or none matched
        return False
    return True


@pytest.mark.parametrize("number", range(1, LAST + 1))
def test_without_any_of_its_rows_the_code_does_not_decide_so(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decides_all()
    monkeypatch.setattr(policy, "_ROWS", (*policy._ROWS[: number - 1], *policy._ROWS[number:]))
    assert not decides_all()


@pytest.mark.parametrize("first", range(2, LAST))  # of 1 and 2 at most one ever matches
def test_with_any_two_neighbours_exchanged_the_code_does_not_decide_so(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, [one, other], after = (
        policy._ROWS[: first - 1],
        policy._ROWS[first - 1 : first + 1],
        policy._ROWS[first + 1 :],
    )
    monkeypatch.setattr(policy, "_ROWS", (*before, other, one, *after))
    assert not decides_all()


# --- across versions -------------------------------------------------------------------------------------


def test_a_category_that_only_a_later_version_knows_is_read_as_declared_and_is_a_persons_case() -> None:
    declared: list[Any] = [pb.CATEGORY_GAMBLING, 999]
    written = pb.Creative(creative_id="cr-1", declared_categories=declared)
    read = creative_of(pb.CreativeReviewTask(creative=written).SerializeToString())
    verdict = decide(LENIENT, read.declared_categories, clean(1.0))
    assert (verdict.decision, verdict.trigger) == (Decision.PENDING, Trigger.SENSITIVE_CATEGORY)
    assert "unknown category 999" in verdict.reason
    assert categories_of(read.declared_categories, None, detect_min=0.3) == (Category.GAMBLING,)
    assert pickle.loads(pickle.dumps(read)) == read, "as engines in other processes are given it"


# --- confidence and reasons ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "confidence"),
    [
        (0.0, Confidence.HIGH),
        (0.1, Confidence.HIGH),
        (0.1 + 1e-9, Confidence.MEDIUM),
        (0.3, Confidence.MEDIUM),
        (0.3 + 1e-9, Confidence.LOW),
        (0.5, Confidence.LOW),
        (Side.BELOW.of(0.7), Confidence.LOW),
        (0.7, Confidence.MEDIUM),
        (Side.BELOW.of(0.9), Confidence.MEDIUM),
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
    assert "prices (0.95): It says so." in decide(RULES, (), breaks(prices=0.95)).reason
    assert "the criterion prices, the criterion rivals" in decide(RULES, (), clean(1.0)).reason
    assert "video" in reason(clean(1.0, unexamined=frozenset({Part.VIDEO})))
    assert "overlong" in reason(clean(1.0, truncated=True))
    assert "timed out" in reason(BROKEN)
    assert "0.60" in reason(clean(0.6))
