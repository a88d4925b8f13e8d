"""The human queue, watched: what waits, then whatever enters, changes or leaves. Which job changed, is `watching`;
as there, changes are hints, what is sent is read from the database, and a slow client costs a set of ids.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from itertools import islice

from gateway.access import Caller
from gateway.watching import MOST_WATCHED_TOGETHER, Sent, Watchtower
from imprimatur.human import DueHours
from imprimatur.job import State
from imprimatur.storage import clock, review_queue
from imprimatur.storage.database import Database
from imprimatur.storage.review_queue import Wanted
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.wire.messages import JobChange
from imprimatur.wire.reviews import left_to_wire, pending_to_wire

#: Reviews in one statement: with their tasks, each of which may be megabytes.
_READ_AT_ONCE = 25


class QueueWatch:
    """One stream of news about the queue."""

    def __init__(self, database: Database, watchtower: Watchtower, who: Caller, wanted: Wanted, due: DueHours) -> None:
        self._database = database
        self._watchtower = watchtower
        self._who = who
        self._wanted = wanted
        self._due = due
        self._being_read: frozenset[uuid.UUID] = frozenset()

    async def news(self, *, open_within_seconds: float | None) -> AsyncGenerator[pb.WatchReviewQueueResponse]:
        """What waits and matches, most urgent first, the marker, then the news. Never ends by itself.

        Raises:
            TimeoutError: the queue could not be listed within `open_within_seconds`.
            Unavailable: this gateway is going away.
            ResourceExhausted: too many reviews match, or too many jobs are followed here.
        """
        with self._watchtower.following(self._who.tenant_id, self._is_of_interest) as (changes, sent):
            async with asyncio.timeout(open_within_seconds):
                waiting = await self._versions(sent)
            for page in _pages(waiting):
                for one in await self._of(page, sent):
                    yield one
            del waiting
            yield pb.WatchReviewQueueResponse(snapshot_complete=True)
            while True:
                self._watchtower.refuse_when_draining()
                ids, reread = await changes.taken()
                if reread:
                    ids |= sent.changed_from(await self._versions(sent))
                for page in _pages(sorted(ids)):
                    for one in await self._of(page, sent):
                        yield one

    def _is_of_interest(self, change: JobChange, sent: Sent) -> bool:
        """The tenant's other jobs change far more often than its queue."""
        waits = change.state is State.AWAITING_REVIEW
        return waits or change.job_id in sent.live or change.job_id in self._being_read

    async def _versions(self, sent: Sent) -> dict[uuid.UUID, int]:
        async with self._database.read() as reader:
            found = await review_queue.versions(
                reader, self._who.owner, self._wanted, due=self._due, limit=MOST_WATCHED_TOGETHER + 1
            )
        self._watchtower.require_room(len(found), already=len(sent.live))
        return found

    async def _of(self, ids: Collection[uuid.UUID], sent: Sent) -> list[pb.WatchReviewQueueResponse]:
        """What there is to tell of these jobs, in their order."""
        self._being_read = frozenset(ids)  # what changes from now on is looked at again
        owner = self._who.owner
        async with self._database.read() as reader:
            found = await review_queue.those_of(reader, owner, self._wanted, ids, due=self._due)
            gone = [job_id for job_id in ids if job_id in sent.live and job_id not in found]
            states = await review_queue.states_of(reader, owner, gone) if gone else {}
            now = await clock.present(reader)
        news = [found[job_id] for job_id in ids if job_id in found and sent.is_news(found[job_id].job)]
        sent.forget(gone)
        self._being_read = frozenset()
        tenant = self._who.tenant_name
        entered = [pb.WatchReviewQueueResponse(review=pending_to_wire(one, tenant, self._due, now)) for one in news]
        left = [left_to_wire(str(job_id), states.get(job_id)) for job_id in gone]
        return entered + [pb.WatchReviewQueueResponse(left=one) for one in left]


def _pages(ids: Iterable[uuid.UUID]) -> Iterator[list[uuid.UUID]]:
    """In their order, so many at a time as one statement reads."""
    rest = iter(ids)
    while page := list(islice(rest, _READ_AT_ONCE)):
        yield page
