"""Whatever an engine may come with, for Hypothesis; and what of it deserves to be approved, said anew.

`deserves_approval` is no copy of the decision table: it names what must hold, in no order, and knows no rows.
"""

import math
from collections.abc import Iterable
from typing import TypeVar

from hypothesis import strategies as st

from imprimatur.criteria import Criterion
from imprimatur.evidence import (
    Category,
    CategoryScore,
    CriterionScore,
    Declared,
    EngineIdentity,
    Evidence,
    Part,
    Recommendation,
    UnknownCategory,
)
from imprimatur.policy import EngineFailure, Policy
from tests import makers
from tests.unit.policies import CRITERIA

T = TypeVar("T")


def mostly(usual: st.SearchStrategy[T], rare: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Nine times of ten `usual`: were every part of a case arbitrary, hardly one would be approved."""
    return st.integers(0, 9).flatmap(lambda number: rare if number == 0 else usual)


def score_of(criterion: Criterion, score: float) -> CriterionScore:
    """What an engine says of a criterion."""
    return CriterionScore(name=criterion.name, fingerprint=criterion.fingerprint, score=score, explanation="")


categories = st.sampled_from(Category)
unknown = st.just(UnknownCategory("unknown category 20"))
declarations = mostly(st.just(frozenset[Declared]()), st.frozensets(categories | unknown, max_size=3))
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
#: Clean evidence but for one thing, which forbids the default policy to approve.
NEAR_MISSES = (
    makers.evidence(truncated=True),
    makers.evidence(unexamined=frozenset({Part.IMAGE})),
    makers.evidence(examined=frozenset(Category) - {Category.SCAM}),
    makers.evidence(detected={Category.ALCOHOL: Policy.detect_min}),
    makers.evidence(detected={Category.HATE: Policy.detect_min}),
    makers.evidence(detected={Category.HATE: math.nan}),
    makers.evidence(recommendation=Recommendation.HUMAN),
    makers.evidence(recommendation=Recommendation.REJECT),
    makers.evidence(math.nextafter(Policy.auto_approve_threshold, 0)),
    makers.evidence(math.nan),
)
near_misses = st.sampled_from(NEAR_MISSES)
failures = st.builds(EngineFailure, message=st.text(max_size=5), budget_exhausted=st.booleans())
anything = mostly(evidences | near_misses, failures | st.none())


def usable(found: object) -> bool:
    """Evidence of which every number is a probability."""
    if not isinstance(found, Evidence):
        return False
    scored = [hit.score for hit in found.categories] + [hit.score for hit in found.criteria]
    return all(0 <= score <= 1 for score in (found.approval_score, *scored))


def deserves_approval(policy: Policy, declared: Iterable[Declared], found: object) -> bool:
    """Whether a tenant that lets the AI decide may have it approve: all was examined, and nothing speaks against it."""
    listed = policy.always_human | policy.blocked
    return (
        isinstance(found, Evidence)
        and usable(found)
        and not found.unexamined
        and not found.truncated
        and listed <= found.examined_categories
        and set(declared) <= set(Category) - listed
        and all(hit.score < policy.detect_min for hit in found.categories if hit.category in listed)
        and all(_is_kept(one, found, policy.detect_min) for one in policy.criteria)
        and found.recommendation is Recommendation.APPROVE
        and found.approval_score >= max(policy.auto_approve_threshold, 0.5)
    )


def _is_kept(criterion: Criterion, found: Evidence, detect_min: float) -> bool:
    """Whether it was examined, as it is worded now, and nothing speaks for a breach."""
    about = [hit.score for hit in found.criteria if hit.fingerprint == criterion.fingerprint]
    return bool(about) and max(about) < detect_min
