"""What a policy makes of reviews that are done: decided again (RedecidePending), or only looked at (PreviewPolicy)."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.access import Caller
from gateway.holds import tell_ended
from gateway.paging import foreign_token, position_of, token_of
from gateway.validation import instant_of, limit_within, version_within
from imprimatur import metrics
from imprimatur.errors import InvalidRequest
from imprimatur.evidence import Evidence
from imprimatur.hindsight import Reviewed, Unsaid, decided_again, would_have_decided
from imprimatur.human import categories_of
from imprimatur.policy import Decision, LivePolicy, Policy, Trigger, Verdict, unexamined_criteria
from imprimatur.storage import people, policies, redecisions, tenants
from imprimatur.storage.audit import Actor
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.redecisions import Redecided, Waiting
from imprimatur.v1 import creative_pb2
from imprimatur.v1 import policy_service_pb2 as pb
from imprimatur.wire.enums import to_wire
from imprimatur.wire.hindsight import decided_result, decision_by_person, reviewed_of
from imprimatur.wire.policies import policy_from_wire

#: Jobs decided again in one transaction, which an activation of another version waits for.
MOST_REDECIDED = 500
MOST_PREVIEWED = 1000
#: Judged without letting other calls go on.
_AT_ONCE = 25


# --- decided again ---------------------------------------------------------------------------------------


async def redecide_pending(
    database: Database, who: Caller, request: pb.RedecidePendingRequest
) -> pb.RedecidePendingResponse:
    """Decide by the live policy what waits for a person, or say what would be decided."""
    limit = limit_within(request.limit, MOST_REDECIDED)
    expected = version_within(request.live_version, "live_version")
    asked = pb.RedecidePendingRequest(dry_run=request.dry_run)
    after = _place(request.page_token, asked)
    async with database.begin() as tx:
        live = (await tenants.keep_policies(tx, [who.tenant_id]))[who.tenant_id]
        policies.require_live(live.version, expected)
        batch = await redecisions.lock_waiting(tx, who.tenant_id, after=after, limit=limit)
        found = await _judged(batch.waiting, live)
        if not request.dry_run:
            decided = [_decided(*one, live) for one in found.decided]
            await tell_ended(tx, await people.end_holds(tx, job_ids=[one.job_id for one in decided]))
            by = Actor(person=who.user_id or who.key_name, key_id=who.key_id, key_name=who.key_name)
            await redecisions.redecide(tx, decided, by=by)
    if not request.dry_run:
        for _, _, verdict in found.decided:
            metrics.jobs_redecided.labels(verdict.decision).inc()
    return pb.RedecidePendingResponse(
        policy_version=live.version,
        counts=[
            pb.RedecisionCount(decision=_decision(decision), policy_triggered=_trigger(trigger), count=count)
            for (decision, trigger), count in sorted(found.counts.items())
        ],
        held=found.held,
        without_evidence=found.unsaid[Unsaid.NOT_SEEN],
        by_another_model=found.unsaid[Unsaid.OTHER_MODEL],
        redecided=[
            pb.RedecidedJob(
                job_id=str(waiting.id),
                subject_id=waiting.subject_id,
                decision=_decision(verdict.decision),
                policy_triggered=_trigger(verdict.trigger),
            )
            for waiting, _, verdict in found.decided
        ],
        next_page_token=token_of([str(batch.following)], asked) if batch.following is not None else "",
    )


@dataclass(kw_only=True)
class _Judged:
    """What the policy says of a batch."""

    counts: Counter[tuple[Decision, Trigger]] = field(default_factory=Counter)
    decided: list[tuple[Waiting, Reviewed, Verdict]] = field(default_factory=list)
    held: int = 0
    unsaid: Counter[Unsaid] = field(default_factory=Counter)


async def _judged(batch: Sequence[Waiting], live: LivePolicy) -> _Judged:
    judged = _Judged()
    for place, waiting in enumerate(batch):
        if place % _AT_ONCE == 0:
            await asyncio.sleep(0)
        if waiting.held:
            judged.held += 1
            continue
        reviewed = reviewed_of(waiting.input, waiting.result)
        if reviewed is None:
            judged.unsaid[Unsaid.NOT_SEEN] += 1
            continue
        verdict = decided_again(live.policy, reviewed)
        if isinstance(verdict, Unsaid):
            judged.unsaid[verdict] += 1
            continue
        judged.counts[verdict.decision, verdict.trigger] += 1
        if verdict.decision is not Decision.PENDING:
            judged.decided.append((waiting, reviewed, verdict))
    return judged


def _decided(waiting: Waiting, reviewed: Reviewed, verdict: Verdict, live: LivePolicy) -> Redecided:
    return Redecided(
        job_id=waiting.id,
        decision=verdict.decision,
        policy_triggered=verdict.trigger,
        reason=verdict.reason,
        policy_version=live.version,
        result=decided_result(waiting.result, verdict, policy_version=live.version, reviewed_at=live.at),
        categories=categories_of(reviewed.declared, reviewed.evidence, detect_min=live.policy.detect_min),
        decision_before=reviewed.decision,
        triggered_before=reviewed.trigger,
    )


def _place(token: str, asked: pb.RedecidePendingRequest) -> uuid.UUID | None:
    parts = position_of(token, 1, asked)
    if parts is None:
        return None
    try:
        return uuid.UUID(parts[0])
    except ValueError:
        raise foreign_token() from None


# --- looked at -------------------------------------------------------------------------------------------


async def preview_policy(database: Database, who: Caller, request: pb.PreviewPolicyRequest) -> pb.PreviewPolicyResponse:
    """What a policy would have decided about the newest reviews."""
    limit = limit_within(request.limit, MOST_PREVIEWED)
    created_from = instant_of(request.created_from, "created_from")
    created_before = instant_of(request.created_before, "created_before")
    async with database.read() as reader:
        preview = _Preview(await _tried(reader, who, request))
        async for rows in redecisions.newest_reviewed(
            reader, who.tenant_id, created_from=created_from, created_before=created_before, limit=limit
        ):
            for place, row in enumerate(rows):
                if place % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                preview.look_at(row)
    return preview.answer()


async def _tried(reader: Reader, who: Caller, request: pb.PreviewPolicyRequest) -> Policy:
    match request.WhichOneof("tried"):
        case "policy":
            try:
                return policy_from_wire(request.policy)
            except InvalidRequest as flaw:
                raise flaw.within("policy.") from None
        case "version":
            wanted = version_within(request.version, "version")
            return (await policies.find(reader, who.tenant_id, wanted)).policy
        case _:
            raise InvalidRequest("tried", "is required: give a version or a policy", reason="FIELD_REQUIRED")


class _Preview:
    """The answer, as it grows."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._counts: Counter[tuple[Decision, Decision | None]] = Counter()
        self._differing: list[pb.PreviewedReview] = []
        self._without_criteria = 0

    def look_at(self, row: Any) -> None:
        """One review; passed over when it cannot be read."""
        reviewed = reviewed_of(row.input, row.result)
        if reviewed is None:
            return
        verdict = would_have_decided(self._policy, reviewed)
        now = None if isinstance(verdict, Unsaid) else verdict.decision
        self._counts[reviewed.decision, now] += 1
        self._without_criteria += _lacks_criteria(self._policy, reviewed.evidence)
        if now is not reviewed.decision:
            self._differing.append(_differing(row, reviewed, verdict))

    def answer(self) -> pb.PreviewPolicyResponse:
        """All that was looked at."""
        counts = sorted(self._counts.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        return pb.PreviewPolicyResponse(
            looked_at=self._counts.total(),
            counts=[
                pb.DecisionCount(before=_decision(before), after=_decision(after), count=count)
                for (before, after), count in counts
            ],
            differing=self._differing,
            without_criteria=self._without_criteria,
        )


def _lacks_criteria(policy: Policy, evidence: Evidence | None) -> bool:
    return bool(evidence is not None and unexamined_criteria(policy, evidence))


_WHY_UNSAID = {
    Unsaid.NOT_SEEN: "No engine was asked then, so nobody can say.",
    Unsaid.OTHER_MODEL: "Another model examined it than this policy names, so nobody can say.",
}


def _differing(row: Any, reviewed: Reviewed, verdict: Verdict | Unsaid) -> pb.PreviewedReview:
    said = None if isinstance(verdict, Unsaid) else verdict
    return pb.PreviewedReview(
        job_id=str(row.id),
        subject_id=row.subject_id,
        before=_decision(reviewed.decision),
        before_triggered=_trigger(reviewed.trigger),
        after=_decision(said.decision if said is not None else None),
        after_triggered=_trigger(said.trigger if said is not None else None),
        reason=_WHY_UNSAID[verdict] if isinstance(verdict, Unsaid) else verdict.reason,
        approval_score=reviewed.evidence.approval_score if reviewed.evidence is not None else None,
        by_person=_decision(decision_by_person(row.result)),
    )


def _decision(decision: Decision | None) -> Any:
    return to_wire(creative_pb2.Decision, "DECISION", decision)


def _trigger(trigger: Trigger | None) -> Any:
    return to_wire(creative_pb2.PolicyTrigger, "POLICY_TRIGGER", trigger)
