"""The human queue as clients see it: what waits, the record, and the counts."""

from datetime import datetime

from imprimatur.evidence import Category
from imprimatur.human import DueHours
from imprimatur.job import State
from imprimatur.policy import Trigger
from imprimatur.storage.audit import AuditEntry
from imprimatur.storage.review_queue import Waiting, due_at
from imprimatur.storage.review_statistics import DeciderStats, OverrideStats, WaitingStats
from imprimatur.v1 import creative_pb2, job_pb2
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.wire.creatives import summary_of, timestamp
from imprimatur.wire.enums import to_wire
from imprimatur.wire.jobs import duration, job_to_wire, priority_to_wire


def pending_to_wire(
    waiting: Waiting, tenant: str, due: DueHours, now: datetime, *, for_its_holder: bool = False
) -> pb.PendingReview:
    """One creative that waits for a person.

    Args:
        tenant: the tenant's name.
        for_its_holder: with its images, and with the token of the claim.
    """
    held = bool(waiting.held_by) and waiting.held_until is not None and waiting.held_until > now
    when = due_at(waiting, due)
    return pb.PendingReview(
        job=job_to_wire(waiting.job, tenant),
        creative=summary_of(waiting.input, with_images=for_its_holder),
        waiting_since=timestamp(waiting.since),
        claimed_by=waiting.held_by if held else "",
        claimed_until=timestamp(waiting.held_until) if held and waiting.held_until else None,
        due_at=timestamp(when) if when is not None else None,
        overdue=when is not None and when <= now,
        claim_token=str(waiting.token or "") if for_its_holder else "",
        categories=[category_to_wire(name) for name in waiting.categories if name in set(Category)],
    )


def category_to_wire(name: str) -> creative_pb2.Category.ValueType:
    """A category by its word; unspecified for one that this version does not know."""
    value: creative_pb2.Category.ValueType = to_wire(
        creative_pb2.Category, "CATEGORY", Category(name) if name in set(Category) else None
    )
    return value


def trigger_to_wire(name: str) -> creative_pb2.PolicyTrigger.ValueType:
    """A row of the decision table by its word; unspecified for one that this version does not know."""
    value: creative_pb2.PolicyTrigger.ValueType = to_wire(
        creative_pb2.PolicyTrigger, "POLICY_TRIGGER", Trigger(name) if name in set(Trigger) else None
    )
    return value


def left_to_wire(job_id: str, state: State | None) -> pb.LeftReview:
    """A review that left what is watched; no state: the job is gone."""
    return pb.LeftReview(job_id=job_id, state=to_wire(job_pb2.JobState, "JOB_STATE", state))


def entry_to_wire(entry: AuditEntry) -> pb.AuditEntry:
    """One line of the record."""
    return pb.AuditEntry(
        id=str(entry.id),
        time=timestamp(entry.at),
        action=to_wire(pb.AuditAction, "AUDIT_ACTION", entry.action),
        job_id=str(entry.job_id),
        subject_id=entry.subject_id,
        person=entry.person,
        key_id=str(entry.key_id or ""),
        key_name=entry.key_name,
        reason=entry.reason,
        details=entry.details,
    )


def waiting_stats_to_wire(one: WaitingStats) -> pb.WaitingStats:
    """What waits at one priority."""
    return pb.WaitingStats(
        priority=priority_to_wire(one.priority),
        waiting=one.waiting,
        claimed=one.claimed,
        overdue=one.overdue,
        oldest_age=duration(one.oldest_seconds),
    )


def decider_to_wire(one: DeciderStats) -> pb.DeciderStats:
    """What somebody decided."""
    return pb.DeciderStats(
        reviewer=one.reviewer,
        decisions=one.decisions,
        approved=one.approved,
        agreed=one.agreed,
        overrode=one.overrode,
        active_hours=one.active_hours,
        decisions_per_hour=one.decisions_per_hour,
        median_time=duration(one.median_seconds),
    )


def overrides_to_wire(one: OverrideStats) -> pb.OverrideStats:
    """How often the AI was overridden."""
    return pb.OverrideStats(
        decisions=one.decisions, advised=one.advised, overrode=one.overrode, override_rate=one.override_rate
    )
