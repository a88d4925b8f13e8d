"""The answer to GetReviewStats. The SQL is `storage.review_statistics`."""

from datetime import datetime

from imprimatur.human import DueHours
from imprimatur.storage import review_statistics as stored
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Owner
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.wire.creatives import timestamp
from imprimatur.wire.reviews import (
    category_to_wire,
    decider_to_wire,
    overrides_to_wire,
    trigger_to_wire,
    waiting_stats_to_wire,
)


async def stats(
    database: Database, owner: Owner, since: datetime, until: datetime, due: DueHours
) -> pb.GetReviewStatsResponse:
    """What waits now, and what was decided from `since` until before `until`."""
    async with database.read() as reader:
        waiting = await stored.waiting(reader, owner, due)
        everybody, *people = await stored.deciders(reader, owner, since, until)
        categories = await stored.by_category(reader, owner, since, until)
        triggers = await stored.by_trigger(reader, owner, since, until)
        hours = await stored.hours(reader, owner, since, until)
    return pb.GetReviewStatsResponse(
        waiting=[waiting_stats_to_wire(one) for one in waiting],
        everybody=decider_to_wire(everybody),
        reviewers=[decider_to_wire(one) for one in people],
        categories=[
            pb.CategoryOverrides(category=category_to_wire(one.name), overrides=overrides_to_wire(one))
            for one in categories
        ],
        triggers=[
            pb.TriggerOverrides(policy_triggered=trigger_to_wire(one.name), overrides=overrides_to_wire(one))
            for one in triggers
        ],
        hours=[
            pb.DeciderHour(hour=timestamp(one.hour), reviewer=one.reviewer, decisions=one.decisions) for one in hours
        ],
        since=timestamp(since),
        until=timestamp(until),
    )
