"""Policies as they are stored and submitted."""

import json
import math

import pytest
from hypothesis import given

from imprimatur.criteria import Criterion, Effect
from imprimatur.errors import InvalidRequest
from imprimatur.evidence import FORBIDDEN, SENSITIVE, Category
from imprimatur.policy import Decision, Policy, decide
from tests import makers
from tests.unit.policies import policies

RULE = {"name": "rivals", "text": "No rival is named.", "effect": "blocks"}


def test_the_defaults_are_those_of_the_design() -> None:
    assert Policy() == Policy.from_document({})
    assert Policy.from_document({"mode": "ai-powered", "auto_approve_threshold": 0.9}) == Policy()
    assert frozenset(Category) == SENSITIVE | FORBIDDEN
    assert not SENSITIVE & FORBIDDEN


@given(policy=policies())
def test_a_policy_survives_being_stored_as_json(policy: Policy) -> None:
    assert Policy.from_document(json.loads(json.dumps(policy.document()))) == policy


@pytest.mark.parametrize(
    ("document", "field_"),
    [
        ({"auto_aprove_threshold": 0.9}, "auto_aprove_threshold"),
        ({"": 1}, ""),
        ({"mode": "yolo"}, "mode"),
        ({"mode": None}, "mode"),
        ({"mode": ["ai-powered"]}, "mode"),
        ({"auto_approve_threshold": 1.01}, "auto_approve_threshold"),
        ({"auto_approve_threshold": -0.01}, "auto_approve_threshold"),
        ({"auto_approve_threshold": "0.9"}, "auto_approve_threshold"),
        ({"auto_approve_threshold": None}, "auto_approve_threshold"),
        ({"auto_approve_threshold": True}, "auto_approve_threshold"),
        ({"auto_approve_threshold": math.nan}, "auto_approve_threshold"),
        ({"auto_approve_threshold": math.inf}, "auto_approve_threshold"),
        ({"auto_approve_threshold": 10**400}, "auto_approve_threshold"),
        ({"auto_approve_threshold": 0.1}, "auto_reject_threshold"),
        ({"auto_reject_threshold": 0.95}, "auto_reject_threshold"),
        ({"detect_min": 0.9}, "detect_min"),
        ({"block_min": 0.3}, "detect_min"),
        ({"detect_min": [0.3]}, "detect_min"),
        ({"model": ""}, "model"),
        ({"model": "m" * 201}, "model"),
        ({"model": 5}, "model"),
        ({"reuse_evidence": "no"}, "reuse_evidence"),
        ({"reuse_evidence": None}, "reuse_evidence"),
        ({"always_human": ["politics"]}, "always_human"),
        ({"always_human": "political"}, "always_human"),
        ({"always_human": {"political": True}}, "always_human"),
        ({"always_human": None}, "always_human"),
        ({"always_human": [None]}, "always_human"),
        ({"blocked": [["hate"]]}, "blocked"),
        ({"blocked": ["alcohol"]}, "blocked"),
        ({"criteria": "no rivals"}, "criteria"),
        ({"criteria": None}, "criteria"),
        ({"criteria": ["no rivals"]}, "criteria[0]"),
        ({"criteria": [RULE | {"name": "No rivals"}]}, "criteria[0].name"),
        ({"criteria": [RULE | {"name": "-rivals"}]}, "criteria[0].name"),
        ({"criteria": [RULE | {"name": "rivals\n"}]}, "criteria[0].name"),
        ({"criteria": [RULE | {"name": "r" * 61}]}, "criteria[0].name"),
        ({"criteria": [RULE | {"name": 5}]}, "criteria[0].name"),
        ({"criteria": [{"text": "No rival."}]}, "criteria[0].name"),
        ({"criteria": [RULE, {"name": "prices"}]}, "criteria[1].text"),
        ({"criteria": [RULE | {"text": " \n"}]}, "criteria[0].text"),
        ({"criteria": [RULE | {"text": "x" * 1001}]}, "criteria[0].text"),
        ({"criteria": [RULE | {"text": "a\0b"}]}, "criteria[0].text"),
        ({"criteria": [RULE | {"text": "a\ud800b"}]}, "criteria[0].text"),
        ({"criteria": [RULE | {"effect": "approves"}]}, "criteria[0].effect"),
        ({"criteria": [RULE | {"weight": 3}]}, "criteria[0].weight"),
        ({"criteria": [RULE, RULE | {"text": "No other."}]}, "criteria[1].name"),
        ({"criteria": [RULE | {"name": f"rule-{number}"} for number in range(21)]}, "criteria"),
    ],
)
def test_an_invalid_policy_is_refused_by_the_name_of_its_field(document: dict[str, object], field_: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Policy.from_document(document)
    assert refused.value.field == field_


def test_a_category_may_move_from_always_human_to_blocked() -> None:
    policy = Policy.from_document({"always_human": ["political"], "blocked": ["alcohol", "hate"]})
    assert (policy.always_human, policy.blocked) == (
        frozenset({Category.POLITICAL}),
        frozenset({Category.ALCOHOL, Category.HATE}),
    )
    assert decide(policy, (), makers.evidence(detected={Category.ALCOHOL: 0.95})).decision is Decision.REJECTED


def test_a_policy_without_criteria_is_stored_as_it_always_was() -> None:
    """So that a version that knows none can read it while others are brought up to date."""
    assert "criteria" not in Policy().document()
    assert Policy.from_document({"criteria": []}) == Policy()


def test_what_is_asked_is_named_by_its_wording_and_not_by_what_follows() -> None:
    first, blocks, reworded = (
        Criterion(name="rivals", text="No rival."),
        Criterion(name="rivals", text="No rival.", effect=Effect.BLOCKS),
        Criterion(name="rivals", text="No rivals."),
    )
    assert first.fingerprint == blocks.fingerprint != reworded.fingerprint
