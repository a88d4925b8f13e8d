"""How long finished work is kept, by kind. No clock and no storage here: what is removed, is `storage.retention`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

#: Finished jobs are kept so many days unless a setting says otherwise.
JOB_DAYS = 7
#: And so are images.
ASSET_DAYS = 7
#: And evidence for equal creatives.
EVIDENCE_DAYS = 7


class Kind(StrEnum):
    """What has a time of its own, in the order in which it is cleaned up."""

    JOBS = "jobs"  #: with everything below
    EVENTS = "events"  #: their history
    ATTEMPTS = "attempts"  #: who worked on them, with errors, tokens and cost
    WEBHOOKS = "webhooks"  #: messages, with their deliveries and the attempts at those
    ASSETS = "assets"  #: images, counted from the last use of each: they are no job's own
    EVIDENCE = "evidence"  #: for equal creatives, counted from when it was begun: no job's own either
    REQUEST_IDS = "request_ids"  #: by which a repeated submit finds them


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Whole days from the end of a job, by kind. 0 or absent: jobs, images and evidence for ever, all else for as long
    as its job."""

    days: Mapping[Kind, int] = field(
        default_factory=lambda: {Kind.JOBS: JOB_DAYS, Kind.ASSETS: ASSET_DAYS, Kind.EVIDENCE: EVIDENCE_DAYS}
    )

    @property
    def job_days(self) -> int:
        """How long finished jobs are kept; 0: for ever."""
        return self.days.get(Kind.JOBS, 0)

    @property
    def asset_days(self) -> int:
        """How long images are kept after their last use; 0: for ever."""
        return self.days.get(Kind.ASSETS, 0)

    def ended_before(self, kind: Kind, now: datetime) -> datetime | None:
        """What is removed at `now`: that whose job ended before this instant; None: nothing."""
        days = self.days.get(kind, 0)
        return now - timedelta(days=days) if days else None
