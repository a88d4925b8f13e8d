"""The human queue as what a stream follows: what waits, then whatever enters, changes or leaves. How it is followed,
is `following`.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial

from gateway.access import Caller
from gateway.following import News, Sent, Subject
from imprimatur.human import DueHours
from imprimatur.job import State
from imprimatur.storage import clock, review_queue
from imprimatur.storage.database import Database
from imprimatur.storage.review_queue import Waiting, Wanted
from imprimatur.v1 import review_service_pb2 as pb
from imprimatur.wire.messages import JobChange
from imprimatur.wire.reviews import left_to_wire, pending_to_wire

SNAPSHOT_COMPLETE = pb.WatchReviewQueueResponse(snapshot_complete=True).SerializeToString()


class Queue(Subject):
    """What waits for a person and matches, most urgent first; news are WatchReviewQueueResponses."""

    read_at_once = 25  #: with their tasks, each of which may be megabytes

    def __init__(self, database: Database, who: Caller, wanted: Wanted, due: DueHours) -> None:
        self._database = database
        self._who = who
        self._wanted = wanted
        self._due = due
        self._being_read: frozenset[uuid.UUID] = frozenset()

    def concerns(self, change: JobChange, sent: Sent) -> bool:
        """The tenant's other jobs change far more often than its queue."""
        waits = change.state is State.AWAITING_REVIEW
        return waits or change.job_id in sent.live or change.job_id in self._being_read

    async def versions(self, *, limit: int) -> Mapping[uuid.UUID, int]:
        """Of all that wait and match now."""
        async with self._database.read() as reader:
            return await review_queue.versions(reader, self._who.owner, self._wanted, due=self._due, limit=limit)

    async def news(self, ids: Sequence[uuid.UUID], sent: Sent) -> Mapping[uuid.UUID, News]:
        """What waits and matches, and what was told and has left."""
        self._being_read = frozenset(ids)  # what changes from now on is looked at again
        owner, tenant = self._who.owner, self._who.tenant_name
        async with self._database.read() as reader:
            found = await review_queue.those_of(reader, owner, self._wanted, ids, due=self._due)
            gone = [job_id for job_id in ids if job_id in sent.live and job_id not in found]
            states = await review_queue.states_of(reader, owner, gone) if gone else {}
            now = await clock.present(reader)
        self._being_read = frozenset()

        def entered(one: Waiting) -> bytes:
            review = pending_to_wire(one, tenant, self._due, now)
            return pb.WatchReviewQueueResponse(review=review).SerializeToString()

        def left(job_id: uuid.UUID) -> bytes:
            return pb.WatchReviewQueueResponse(left=left_to_wire(str(job_id), states.get(job_id))).SerializeToString()

        waiting = {job_id: News(version=one.job.version, answer=partial(entered, one)) for job_id, one in found.items()}
        return waiting | {job_id: News(version=None, answer=partial(left, job_id)) for job_id in gone}
