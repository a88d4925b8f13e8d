"""What must never happen, whatever the policy and the evidence."""

from hypothesis import given

from imprimatur.criteria import Effect
from imprimatur.evidence import Declared, Evidence, Recommendation
from imprimatur.policy import Decision, EngineFailure, Mode, Policy, Trigger, Verdict, decide, decide_failure
from tests.unit.findings import anything, declarations, deserves_approval, failures, usable
from tests.unit.policies import policies

ai_powered = policies(modes=[Mode.AI_POWERED])


@given(policy=policies(), declared=declarations, failure=failures)
def test_a_failure_approves_nothing_whatever_the_policy_says_by_now(
    policy: Policy, declared: frozenset[Declared], failure: EngineFailure
) -> None:
    verdict = decide_failure(policy, declared, failure)
    assert verdict.decision is Decision.PENDING
    of_failures = Trigger.BUDGET_EXHAUSTED if failure.budget_exhausted else Trigger.ENGINE_ERROR
    assert verdict.trigger is (Trigger.HUMAN_REQUIRED if policy.mode is Mode.REQUIRE_HUMAN else of_failures)


@given(policy=ai_powered, declared=declarations, found=anything)
def test_what_was_wholly_examined_and_found_good_is_approved_and_nothing_else(
    policy: Policy, declared: frozenset[Declared], found: Evidence | EngineFailure | None
) -> None:
    approved = decide(policy, declared, found).decision is Decision.APPROVED
    assert approved == deserves_approval(policy, declared, found)


@given(policy=ai_powered, declared=declarations, found=anything)
def test_nothing_is_rejected_without_usable_evidence_against_it(
    policy: Policy, declared: frozenset[Declared], found: Evidence | EngineFailure | None
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


@given(policy=policies(), declared=declarations, found=anything)
def test_every_case_has_exactly_one_verdict_and_always_the_same(
    policy: Policy, declared: frozenset[Declared], found: Evidence | EngineFailure | None
) -> None:
    verdict = decide(policy, declared, found)
    assert isinstance(verdict, Verdict)
    assert verdict == decide(policy, sorted(declared), found)
    assert 0 <= verdict.confidence_score <= 1


@given(found=anything, declared=declarations, policy=policies())
def test_the_roll_back_switch_leaves_nothing_to_the_engine(
    found: Evidence | EngineFailure | None, declared: frozenset[Declared], policy: Policy
) -> None:
    document = policy.document() | {"mode": "require-human"}
    verdict = decide(Policy.from_document(document), declared, found)
    assert (verdict.decision, verdict.trigger) == (Decision.PENDING, Trigger.HUMAN_REQUIRED)
