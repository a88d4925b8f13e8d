"""What must never happen, whatever the policy and the evidence."""

import math
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies import CRITERIA, policies

from imprimatur.criteria import Criterion, Effect
from imprimatur.evidence import Category, CategoryScore, CriterionScore, EngineIdentity, Evidence, Part, Recommendation
from imprimatur.policy import Decision, EngineFailure, Mode, Policy, Trigger, Verdict, decide, decide_failure

T = TypeVar("T")


def mostly(usual: st.SearchStrategy[T], rare: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Nine times of ten `usual`: were every part of a case arbitrary, hardly one would be approved."""
    return st.integers(0, 9).flatmap(lambda number: rare if number == 0 else usual)


def score_of(criterion: Criterion, score: float) -> CriterionScore:
    return CriterionScore(name=criterion.name, fingerprint=criterion.fingerprint, score=score, explanation="")


categories = st.sampled_from(Category)
some_categories = mostly(st.just(frozenset[Category]()), st.frozensets(categories, max_size=3))
scores = mostly(st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf, -0.1, 1.1]))
hits = st.builds(CategoryScore, category=categories, score=mostly(st.floats(0, 0.3), scores))
evidences = st.builds(
    Evidence,
    engine=st.just(EngineIdentity(name="any", version="1")),
    approval_score=mostly(st.floats(0, 1), scores),
    recommendation=st.sampled_from(Recommendation),
    reason=st.text(max_size=5),
    categories=mostly(st.just(()), st.lists(hits, max_size=4).map(tuple)),
    examined_categories=mostly(st.just(frozenset(Category)), st.frozensets(categories)),
    unexamined=mostly(st.just(frozenset[Part]()), st.frozensets(st.sampled_from(Part), max_size=2)),
    truncated=mostly(st.just(False), st.booleans()),
    criteria=mostly(
        st.just(tuple(score_of(one, 0.0) for one in CRITERIA)),
        st.lists(st.builds(score_of, st.sampled_from(CRITERIA), scores), max_size=4).map(tuple),
    ),
)
failures = st.builds(EngineFailure, message=st.text(max_size=5), budget_exhausted=st.booleans())
anything = mostly(evidences, failures | st.none())
ai_powered = policies(modes=[Mode.AI_POWERED])


@given(policy=policies(), declared=some_categories, failure=failures)
def test_a_failure_approves_nothing_whatever_the_policy_says_by_now(
    policy: Policy, declared: frozenset[Category], failure: EngineFailure
) -> None:
    verdict = decide_failure(policy, declared, failure)
    assert verdict.decision is Decision.PENDING
    of_failures = Trigger.BUDGET_EXHAUSTED if failure.budget_exhausted else Trigger.ENGINE_ERROR
    assert verdict.trigger is (Trigger.HUMAN_REQUIRED if policy.mode is Mode.REQUIRE_HUMAN else of_failures)


def usable(found: Evidence | EngineFailure | None) -> bool:
    if not isinstance(found, Evidence):
        return False
    scored = [hit.score for hit in found.categories] + [hit.score for hit in found.criteria]
    return all(0 <= score <= 1 for score in (found.approval_score, *scored))


@given(policy=ai_powered, declared=some_categories, found=anything)
def test_nothing_is_approved_but_what_was_wholly_examined_and_found_good(
    policy: Policy, declared: frozenset[Category], found: Evidence | EngineFailure | None
) -> None:
    verdict = decide(policy, declared, found)
    if verdict.decision is not Decision.APPROVED:
        return
    assert isinstance(found, Evidence)
    assert usable(found)
    assert not found.unexamined
    assert not found.truncated
    listed = policy.always_human | policy.blocked
    assert listed <= found.examined_categories
    assert not declared & listed
    assert all(hit.score < policy.detect_min for hit in found.categories if hit.category in listed)
    asked = {one.fingerprint for one in policy.criteria}
    about = [hit for hit in found.criteria if hit.fingerprint in asked]
    assert {hit.fingerprint for hit in about} == asked
    assert all(hit.score < policy.detect_min for hit in about)
    assert found.recommendation is Recommendation.APPROVE
    assert found.approval_score >= policy.auto_approve_threshold


@given(policy=ai_powered, declared=some_categories, found=anything)
def test_nothing_is_rejected_without_usable_evidence_against_it(
    policy: Policy, declared: frozenset[Category], found: Evidence | EngineFailure | None
) -> None:
    if decide(policy, declared, found).decision is not Decision.REJECTED:
        return
    assert isinstance(found, Evidence)
    assert usable(found)
    blocked = [hit for hit in found.categories if hit.category in policy.blocked and hit.score >= policy.block_min]
    bad = found.approval_score <= policy.auto_reject_threshold and found.recommendation is Recommendation.REJECT
    blocking = {one.fingerprint for one in policy.criteria if one.effect is Effect.BLOCKS}
    broken = [hit for hit in found.criteria if hit.fingerprint in blocking and hit.score >= policy.block_min]
    assert blocked or bad or broken


@given(policy=policies(), declared=some_categories, found=anything)
def test_every_case_has_exactly_one_verdict_and_always_the_same(
    policy: Policy, declared: frozenset[Category], found: Evidence | EngineFailure | None
) -> None:
    verdict = decide(policy, declared, found)
    assert isinstance(verdict, Verdict)
    assert verdict == decide(policy, sorted(declared), found)
    assert 0 <= verdict.confidence_score <= 1


@given(found=anything, declared=some_categories, policy=policies())
def test_the_roll_back_switch_leaves_nothing_to_the_engine(
    found: Evidence | EngineFailure | None, declared: frozenset[Category], policy: Policy
) -> None:
    document = policy.document() | {"mode": "require-human"}
    verdict = decide(Policy.from_document(document), declared, found)
    assert (verdict.decision, verdict.trigger) == (Decision.PENDING, Trigger.HUMAN_REQUIRED)
