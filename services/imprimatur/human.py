"""What people do with what the AI may not decide, in words. Pure: no I/O, no clock, no SQL, no protobuf."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from imprimatur.evidence import Category, Declared, Evidence, Recommendation
from imprimatur.job import Priority
from imprimatur.policy import Decision


class Agreement(StrEnum):
    """Whether a person decided as the AI had advised."""

    AGREED = "agreed"
    OVERRODE = "overrode"
    NO_ADVICE = "no_advice"  #: it failed, did not run, or asked for a person


_ADVISED = {Recommendation.APPROVE: Decision.APPROVED, Recommendation.REJECT: Decision.REJECTED}


def agreement(advice: Recommendation | None, decision: Decision) -> Agreement:
    """How a person's decision stands to the AI's advice."""
    advised = _ADVISED.get(advice) if advice is not None else None
    if advised is None:
        return Agreement.NO_ADVICE
    return Agreement.AGREED if advised is decision else Agreement.OVERRODE


class AuditAction(StrEnum):
    """What is recorded of the queue."""

    CLAIMED = "claimed"  #: somebody took a review, or took it over from another desk
    RELEASED = "released"  #: a claim was given back, or ended by an admin, or with its job's time in the queue
    EXPIRED = "expired"  #: a claim was found to have run out
    DECIDED = "decided"
    APPEALED = "appealed"  #: about the older job
    REDECIDED = "redecided"  #: somebody had a changed policy decide what waited


class AppealOutcome(StrEnum):
    """What became of the decision that was appealed against."""

    UPHELD = "upheld"
    OVERTURNED = "overturned"


@dataclass(frozen=True, kw_only=True)
class DueHours:
    """By when people are to decide, in hours from when they are asked. 0: whenever they like."""

    high: float = 4.0
    normal: float = 24.0
    low: float = 72.0

    def of(self, priority: Priority) -> float:
        """The hours for a priority."""
        return {Priority.HIGH: self.high, Priority.NORMAL: self.normal, Priority.LOW: self.low}[priority]


@dataclass(frozen=True, kw_only=True)
class Appeal:
    """Why a job appeals, and against what; kept with the appeal, since the older job may be cleaned up before.

    `barred` are those who decided before, as far as their keys told who they were: they do not decide it again.
    """

    reason: str
    appellant: str
    former_decision: Decision
    former_reviewer: str = ""  #: empty: the AI
    former_reason: str = ""
    barred: tuple[str, ...] = ()

    def outcome(self, decision: str) -> AppealOutcome | None:
        """What the appeal's own decision makes of the former one; None before it is made."""
        if decision not in (Decision.APPROVED, Decision.REJECTED):
            return None
        return AppealOutcome.UPHELD if decision == self.former_decision else AppealOutcome.OVERTURNED

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {**vars(self), "former_decision": str(self.former_decision), "barred": list(self.barred)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """From how it is stored; keys of later versions are passed over."""
        known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
        return cls(
            **{**known, "former_decision": Decision(known["former_decision"]), "barred": tuple(known.get("barred", ()))}
        )


def categories_of(
    declared: Iterable[Declared], evidence: Evidence | None, *, detect_min: float
) -> tuple[Category, ...]:
    """What a creative touches, as people look for it: what its seller declares, as far as this version knows it, and
    what the engine found with at least `detect_min`; in the order of their names."""
    found = {hit.category for hit in evidence.categories if hit.score >= detect_min} if evidence else set()
    return tuple(sorted(found | {one for one in declared if isinstance(one, Category)}))
