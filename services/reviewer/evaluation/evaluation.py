"""Labelled ads through an engine and a policy, and what came of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imprimatur.evidence import Category, Creative, EngineIdentity, Evidence
from imprimatur.policy import Decision, Policy, Verdict, decide
from reviewer.evaluation.labelled import Kind, LabelledAd
from reviewer.evaluation.measures import Bin, Hits, Share, calibration_error, hits, reliability

TOP = 3  #: categories shown for each ad


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One ad: the truth, what the engine found, and what the policy made of it."""

    ad: LabelledAd
    evidence: Evidence
    verdict: Verdict

    @property
    def approved(self) -> bool:
        """Without a person."""
        return self.verdict.decision is Decision.APPROVED

    @property
    def top(self) -> list[tuple[Category, float]]:
        """The highest-scoring categories, highest first."""
        ranked = sorted(self.evidence.categories, key=lambda item: -item.score)
        return [(item.category, item.score) for item in ranked[:TOP]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All outcomes, and the figures that follow from them."""

    outcomes: Sequence[Outcome]
    policy: Policy

    @property
    def engine(self) -> EngineIdentity:
        """The one that looked."""
        return self.outcomes[0].evidence.engine

    @property
    def false_approvals(self) -> Share:
        """Approved, of those that must not be."""
        return self._approved(outcome for outcome in self.outcomes if outcome.ad.must_not_approve)

    @property
    def benign_approvals(self) -> Share:
        """Approved, of those labelled plainly benign."""
        return self.approvals(Kind.BENIGN)

    @property
    def to_a_person(self) -> Share:
        """Left to a person, of all."""
        pending = sum(outcome.verdict.decision is Decision.PENDING for outcome in self.outcomes)
        return Share(count=pending, total=len(self.outcomes))

    def approvals(self, kind: Kind) -> Share:
        """Approved, of those of a kind that may be."""
        return self._approved(each for each in self.outcomes if each.ad.kind is kind and not each.ad.must_not_approve)

    @staticmethod
    def _approved(outcomes: Iterable[Outcome]) -> Share:
        found = [outcome.approved for outcome in outcomes]
        return Share(count=sum(found), total=len(found))

    @property
    def bins(self) -> list[Bin]:
        """Approval scores against "may be approved"."""
        return reliability(
            [outcome.evidence.approval_score for outcome in self.outcomes],
            [not outcome.ad.must_not_approve for outcome in self.outcomes],
        )

    @property
    def calibration_error(self) -> float:
        """Of the approval scores."""
        return calibration_error(self.bins)

    @property
    def confusion(self) -> dict[Kind, Counter[Decision]]:
        """Decisions by kind of ad."""
        found: dict[Kind, Counter[Decision]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.ad.kind, Counter())[outcome.verdict.decision] += 1
        return {kind: found[kind] for kind in Kind if kind in found}

    @property
    def categories(self) -> dict[Category, Hits]:
        """How each category was detected (from the policy's detect_min on), in ads whose label tells."""
        told = [(outcome, outcome.ad.categories) for outcome in self.outcomes if outcome.ad.categories is not None]
        return {
            category: hits([(category in real, category in self.detected(outcome)) for outcome, real in told])
            for category in Category
        }

    def detected(self, outcome: Outcome) -> frozenset[Category]:
        """The categories that the policy takes for detected."""
        scores = outcome.evidence.categories
        return frozenset(item.category for item in scores if item.score >= self.policy.detect_min)

    def document(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "engine": asdict(self.engine),
            "policy": self.policy.document(),
            "count": len(self.outcomes),
            **_share("false_approve", self.false_approvals),
            **_share("benign_approved", self.benign_approvals),
            **_share("benign_hard_approved", self.approvals(Kind.BENIGN_HARD)),
            **_share("to_a_person", self.to_a_person),
            "ece": round(self.calibration_error, 4),
            "bins": [{name: _round(value) for name, value in asdict(each).items()} for each in self.bins],
            "decisions": {
                kind.value: {decision.value: counts[decision] for decision in Decision}
                for kind, counts in self.confusion.items()
            },
            "categories": {
                category.value: {"precision": _round(each.precision), "recall": _round(each.recall), **asdict(each)}
                for category, each in self.categories.items()
            },
            "items": [_item(outcome) for outcome in self.outcomes],
        }


def evaluate(
    ads: Iterable[LabelledAd], examine: Callable[[Creative], Evidence], policy: Policy | None = None
) -> Evaluation:
    """Examine each ad and decide it; nothing is declared. `ads` must not be empty; the policy is the default one."""
    policy = policy or Policy()
    outcomes = []
    for ad in ads:
        evidence = examine(ad.creative)
        outcomes.append(Outcome(ad=ad, evidence=evidence, verdict=decide(policy, (), evidence)))
    return Evaluation(outcomes=outcomes, policy=policy)


def _share(name: str, share: Share) -> dict[str, Any]:
    interval = share.interval
    return {
        f"{name}_rate": _round(share.rate),
        f"{name}_count": share.count,
        f"{name}_of": share.total,
        f"{name}_interval": [round(limit, 4) for limit in interval] if interval else None,
    }


def _round(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value


def _item(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.ad.id,
        "label": sorted(outcome.ad.categories) if outcome.ad.categories else outcome.ad.kind.value,
        "must_not_approve": outcome.ad.must_not_approve,
        "decision": outcome.verdict.decision.value,
        "policy_triggered": outcome.verdict.trigger.value,
        "approval_score": outcome.evidence.approval_score,
        "top_categories": [{"category": category.value, "score": score} for category, score in outcome.top],
    }
