"""Which reviews are asked for, checked field by field; and page tokens of the queue."""

import uuid
from datetime import UTC, datetime

from gateway import validation
from gateway.paging import foreign_token, position_of, token_of
from imprimatur.errors import InvalidRequest
from imprimatur.evidence import Category
from imprimatur.job import Priority
from imprimatur.policy import Trigger
from imprimatur.storage.jobs import Filter
from imprimatur.storage.review_queue import Place, Wanted
from imprimatur.v1 import creative_pb2, job_pb2
from imprimatur.v1 import review_service_pb2 as pb

_LONGEST_WAIT_SECONDS = 366 * 86_400


def wanted_of(asked: pb.ReviewFilter, reviewer: str, *, to_claim: bool = False) -> Wanted:
    """Check a filter.

    Args:
        reviewer: who asks.
        to_claim: what somebody holds cannot be asked for.
    """
    validation.without_nul(asked, "filter.")
    held_by = validation.text_within(asked.claimed_by, "filter.claimed_by", 200)
    if to_claim and (held_by or asked.claimed_by_me):
        field = "filter.claimed_by" if held_by else "filter.claimed_by_me"
        raise InvalidRequest(field, "must be empty: only what nobody holds can be taken")
    if held_by and asked.claimed_by_me and held_by != reviewer:
        raise InvalidRequest("filter.claimed_by", "names another than who asks, with claimed_by_me; give one of them")
    priorities = validation.members_of(job_pb2.Priority, "PRIORITY", asked.priorities, Priority, "filter.priorities")
    categories = validation.members_of(
        creative_pb2.Category, "CATEGORY", asked.categories, Category, "filter.categories"
    )
    return Wanted(
        jobs=Filter(
            labels=validation.labels_within(asked.labels, "filter.labels", 8),
            user_id=validation.text_within(asked.user_id, "filter.user_id", 200),
            triggers=validation.members_of(
                *(creative_pb2.PolicyTrigger, "POLICY_TRIGGER", asked.policy_triggered, Trigger),
                "filter.policy_triggered",
            ),
            subject_id=validation.text_within(asked.subject_id, "filter.subject_id", 200),
        ),
        priorities=priorities,
        categories=frozenset(str(category) for category in categories),
        held_by=held_by or (reviewer if asked.claimed_by_me else ""),
        free_for=reviewer if asked.unclaimed_only else "",
        waiting_longer_seconds=validation.seconds_within(
            asked.waiting_longer_than, "filter.waiting_longer_than", 0, _LONGEST_WAIT_SECONDS, 0.0
        ),
        overdue_only=asked.overdue_only,
        has_images=asked.has_images if asked.HasField("has_images") else None,
        is_appeal=asked.is_appeal if asked.HasField("is_appeal") else None,
    )


def token_behind(place: Place, asked: pb.ListPendingReviewsRequest) -> str:
    """The page token that continues behind a review."""
    parts = [place.as_of.isoformat(), str(place.stretch), place.since.isoformat(), str(place.job_id)]
    return token_of(parts, _mark(asked))


def place_in(asked: pb.ListPendingReviewsRequest) -> Place | None:
    """Where the page that is asked for begins."""
    parts = position_of(asked.page_token, 4, _mark(asked))
    if parts is None:
        return None
    try:
        as_of, since = datetime.fromisoformat(parts[0]), datetime.fromisoformat(parts[2])
        place = Place(as_of=as_of, stretch=int(parts[1]), since=since, job_id=uuid.UUID(parts[3]))
    except ValueError:
        raise foreign_token() from None
    if as_of.tzinfo is not UTC or since.tzinfo is not UTC or not 0 <= place.stretch < 2 * len(Priority):
        raise foreign_token()
    return place


def _mark(asked: pb.ListPendingReviewsRequest) -> pb.ListPendingReviewsRequest:
    """What makes it another list."""
    return pb.ListPendingReviewsRequest(filter=asked.filter, unclaimed_only=asked.unclaimed_only)
