"""What a policy makes of reviews that are done, by what the engine found then; and how two policies differ. Pure.

No engine is asked: where nothing was found, or nothing about a criterion that is asked for now, nothing is approved.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from imprimatur.evidence import Declared, Evidence
from imprimatur.policy import Decision, EngineFailure, Mode, Policy, Trigger, Verdict, decide, decide_failure


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """What the AI's side of a review was. `evidence` is None when no engine ran, or it failed."""

    declared: tuple[Declared, ...]
    evidence: Evidence | None
    decision: Decision
    trigger: Trigger


class Unsaid(StrEnum):
    """Why nobody can say what a policy makes of a review."""

    NOT_SEEN = "not_seen"  #: no engine has seen it
    OTHER_MODEL = "other_model"  #: another model has seen it than the one that the policy names


def decided_again(policy: Policy, reviewed: Reviewed) -> Verdict | Unsaid:
    """What the table says of it now. Of what it cannot say anything is left to a person."""
    if reviewed.evidence is None:
        return Unsaid.NOT_SEEN
    if _asks_another_model(policy, reviewed.evidence):
        return Unsaid.OTHER_MODEL
    return decide(policy, reviewed.declared, reviewed.evidence)


def _asks_another_model(policy: Policy, evidence: Evidence) -> bool:
    """Whether the policy decides by what another model finds. In the other modes nothing rests on it."""
    return policy.mode is Mode.AI_POWERED and policy.model not in (None, evidence.engine.model)


def would_have_decided(policy: Policy, reviewed: Reviewed) -> Verdict | Unsaid:
    """What the policy would have made of it then. Where the engine failed, it would have failed."""
    if reviewed.evidence is not None:
        return decided_again(policy, reviewed)
    if policy.mode is Mode.AUTO_APPROVE:
        return decide(policy, reviewed.declared, None)
    if reviewed.trigger is Trigger.AUTO_APPROVE_MODE and policy.mode is Mode.AI_POWERED:
        return Unsaid.NOT_SEEN
    failure = EngineFailure(message="the engine failed", budget_exhausted=reviewed.trigger is Trigger.BUDGET_EXHAUSTED)
    return decide_failure(policy, reviewed.declared, failure)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One setting in which two policies differ, as plain JSON values; None where one of them has none."""

    field: str
    before: object
    after: object


def changes(before: Policy, after: Policy) -> tuple[Change, ...]:
    """What is different, in the order of the settings; of the criteria each by its name."""
    old, new = dict(_settings(before)), dict(_settings(after))
    return tuple(
        Change(field=field, before=old.get(field), after=new.get(field))
        for field in dict.fromkeys([*old, *new])
        if old.get(field) != new.get(field)
    )


def _settings(policy: Policy) -> Iterator[tuple[str, object]]:
    document = policy.document()
    document.pop("criteria", None)
    yield from document.items()
    for one in policy.criteria:
        yield f"criteria.{one.name}", {"text": one.text, "effect": str(one.effect)}
