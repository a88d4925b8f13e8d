"""Policies, between the contract's message, in which nothing that decides has a default, and the domain."""

from collections.abc import Iterable
from typing import Any

from imprimatur.criteria import Criterion, Effect
from imprimatur.errors import InvalidRequest
from imprimatur.evidence import Category
from imprimatur.policy import Mode, Policy
from imprimatur.v1 import creative_pb2
from imprimatur.v1 import policy_service_pb2 as pb
from imprimatur.wire.enums import from_wire, to_wire

_NUMBERS = ("auto_approve_threshold", "auto_reject_threshold", "detect_min", "block_min")
_LISTS = ("always_human", "blocked")


def policy_to_wire(policy: Policy) -> pb.Policy:
    """A policy, whole."""
    return pb.Policy(
        mode=to_wire(pb.PolicyMode, "POLICY_MODE", policy.mode),
        **{name: getattr(policy, name) for name in _NUMBERS},
        always_human=_list(policy.always_human),
        blocked=_list(policy.blocked),
        model=policy.model or "",
        reuse_evidence=policy.reuse_evidence,
        criteria=[
            pb.Criterion(
                name=one.name, text=one.text, effect=to_wire(pb.CriterionEffect, "CRITERION_EFFECT", one.effect)
            )
            for one in policy.criteria
        ],
    )


def policy_from_wire(seen: pb.Policy) -> Policy:
    """A policy that was submitted.

    Raises:
        InvalidRequest: a setting is missing or not allowed.
    """
    mode = from_wire(pb.PolicyMode, "POLICY_MODE", seen.mode, Mode)
    if mode is None:
        raise InvalidRequest("mode", _one_of(pb.PolicyMode), reason="INVALID_FIELD" if seen.mode else "FIELD_REQUIRED")
    for name in (*_NUMBERS, *_LISTS):
        if not seen.HasField(name):  # type: ignore[arg-type]  # the stubs know the names only as literals
            raise InvalidRequest(name, "is required: a policy is given whole", reason="FIELD_REQUIRED")
    return Policy(
        mode=mode,
        auto_approve_threshold=seen.auto_approve_threshold,
        auto_reject_threshold=seen.auto_reject_threshold,
        detect_min=seen.detect_min,
        block_min=seen.block_min,
        always_human=_categories(seen.always_human.categories, "always_human"),
        blocked=_categories(seen.blocked.categories, "blocked"),
        model=seen.model or None,
        reuse_evidence=seen.reuse_evidence if seen.HasField("reuse_evidence") else Policy.reuse_evidence,
        criteria=tuple(_criterion(one, f"criteria[{place}]") for place, one in enumerate(seen.criteria)),
    )


def _list(categories: Iterable[Category]) -> pb.CategoryList:
    members = [to_wire(creative_pb2.Category, "CATEGORY", one) for one in sorted(categories)]
    return pb.CategoryList(categories=members)


def _categories(values: Iterable[int], name: str) -> frozenset[Category]:
    found: set[Category] = set()
    for place, value in enumerate(values):
        category = from_wire(creative_pb2.Category, "CATEGORY", value, Category)
        if category is None:
            raise InvalidRequest(f"{name}.categories[{place}]", _one_of(creative_pb2.Category))
        if category in found:
            raise InvalidRequest(f"{name}.categories[{place}]", f"{category} is there twice")
        found.add(category)
    return frozenset(found)


def _criterion(seen: pb.Criterion, field: str) -> Criterion:
    effect = from_wire(pb.CriterionEffect, "CRITERION_EFFECT", seen.effect, Effect)
    if effect is None:
        raise InvalidRequest(f"{field}.effect", _one_of(pb.CriterionEffect))
    try:
        return Criterion(name=seen.name, text=seen.text, effect=effect)
    except InvalidRequest as flaw:
        raise flaw.within(f"{field}.") from None


def _one_of(wrapper: Any) -> str:
    return "must be one of " + ", ".join(name for name in wrapper.keys() if not name.endswith("_UNSPECIFIED"))  # noqa: SIM118  # no mapping
