"""Evidence as it is kept and taken again."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from imprimatur.v1 import creative_pb2 as pb
from imprimatur.wire.creatives import evidence_of, kept_evidence
from tests import makers

probabilities = st.floats(0, 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
findings = st.builds(
    Finding,
    category=st.none() | st.sampled_from(Category),
    score=probabilities,
    field=texts,
    quote=texts,
    explanation=texts,
)
pieces = st.builds(
    Evidence,
    engine=st.builds(EngineIdentity, name=texts, version=texts, model=texts),
    approval_score=probabilities,
    recommendation=st.sampled_from(Recommendation),
    reason=texts,
    categories=st.lists(st.builds(CategoryScore, category=st.sampled_from(Category), score=probabilities)).map(tuple),
    findings=st.lists(findings, max_size=3).map(tuple),
    examined_categories=st.frozensets(st.sampled_from(Category)),
    unexamined=st.frozensets(st.sampled_from(Part)),
    truncated=st.booleans(),
    criteria=st.lists(
        st.builds(CriterionScore, name=texts, fingerprint=texts, score=probabilities, explanation=texts), max_size=3
    ).map(tuple),
    input_tokens=st.integers(0, 10),
    cost_micros=st.integers(0, 10),
)


@given(found=pieces)
def test_evidence_is_taken_again_as_it_was_found_and_costs_nothing(found: Evidence) -> None:
    free = replace(found, input_tokens=0, output_tokens=0, cost_micros=0)
    assert evidence_of(kept_evidence(found)) == free


LATER: Any = 99  #: what a later version calls by a word of its own
UNKNOWN: list[dict[str, Any]] = [
    {"recommendation": LATER},
    {"categories": [pb.CategoryScore(category=LATER, score=0.9)]},
    {"unexamined": [LATER]},
]


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_evidence_in_words_of_a_later_version_is_not_taken(unknown: dict[str, Any]) -> None:
    kept = pb.Evidence.FromString(kept_evidence(makers.evidence()))
    kept.MergeFrom(pb.Evidence(**unknown))
    assert evidence_of(kept.SerializeToString()) is None


def test_a_category_that_only_a_later_version_examines_is_passed_over() -> None:
    kept = pb.Evidence.FromString(kept_evidence(makers.evidence()))
    kept.examined_categories.append(LATER)
    assert evidence_of(kept.SerializeToString()) == makers.evidence()
