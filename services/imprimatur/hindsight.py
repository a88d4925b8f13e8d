"""What a policy makes of reviews that are done, by what the engine found then; and how two policies differ. Pure.

No engine is asked: where nothing was found, or nothing about a criterion that is asked for now, nothing is approved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from imprimatur.evidence import Category, Evidence
from imprimatur.policy import Decision, EngineFailure, Mode, Policy, Trigger, Verdict, decide, decide_failure


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """What the AI's side of a review was. `evidence` is None when no engine ran, or it failed."""

    declared: tuple[Category, ...]
    evidence: Evidence | None
    decision: Decision
    trigger: Trigger


def decided_again(policy: Policy, reviewed: Reviewed) -> Verdict | None:
    """What the table says of it now. None without evidence: what no engine has seen is left to a person."""
    return decide(policy, reviewed.declared, reviewed.evidence) if reviewed.evidence is not None else None


def would_have_decided(policy: Policy, reviewed: Reviewed) -> Verdict | None:
    """What the policy would have made of it then. None where nobody can say: the engine was not asked, and now would
    have been."""
    if reviewed.evidence is not None or policy.mode is Mode.AUTO_APPROVE:
        return decide(policy, reviewed.declared, reviewed.evidence)
    if reviewed.trigger is Trigger.AUTO_APPROVE_MODE and policy.mode is Mode.AI_POWERED:
        return None
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
