"""Streams over many jobs: what each follows, what it has been given, and how little waits for a client that is slow.

A stream remembers ids and versions. Events add ids to it; what is told of them is read from the database when their
turn comes, a little at a time, so that a client which does not read holds a portion of answers and no more. After a gap
in the events, and every few seconds, what it follows is compared with the database's versions. Which jobs those are,
is its `Subject`'s to know. Whatever streams remember is counted; of streams and of what they remember each tenant has a
share, so that none keeps out the others.
"""

import asyncio
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from gateway.room import Bound, Room
from imprimatur.errors import ResourceExhausted, Unavailable
from imprimatur.wire.messages import JobChange

#: Live jobs that one stream may follow; of so many changed ones it remembers which they are.
MOST_WATCHED_TOGETHER = 20_000
#: Streams over many jobs.
MOST_FOLLOWERS = Bound(all=1000, of_a_tenant=400)
#: Ids that streams remember, of live jobs, of changed ones and of those that ended.
MOST_REMEMBERED = Bound(all=1_000_000, of_a_tenant=400_000)
#: What remembering one takes, at most, with its share of what holds it.
BYTES_OF_AN_ID = 250
#: Answers that wait while a client does not read, of each stream: so many bytes, or one that is larger.
PORTION_BYTES = 64 * 1024
#: Of so many jobs that ended a stream remembers that it has told of them.
_MOST_ENDED_REMEMBERED = 10_000
#: Streams that list their jobs at a time.
_LISTING_AT_ONCE = 2
#: After so many live jobs no further stream compares its own with the database in one pass.
COMPARED_IN_A_PASS = 100_000
#: As so many counts a stream that follows fewer: what a statement costs in any case.
_LEAST_COMPARED = 100
#: Jobs in the first read of a stream, when nothing is known of their sizes.
_FIRST_READ = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """What there may be to tell of one job.

    Attributes:
        version: which it is in. None: it matches no more, and that is told.
        ended: it will not change again.
        answer: puts it into bytes.
    """

    version: int | None
    ended: bool = False
    answer: Callable[[], bytes]


class Sent:
    """What one stream has told."""

    def __init__(self) -> None:
        self.live: dict[uuid.UUID, int] = {}  #: the versions of those that match and may change again
        self._ended: dict[uuid.UUID, None] = {}  # in the order in which they were sent

    @property
    def remembered(self) -> int:
        """Jobs of which it is known."""
        return len(self.live) + len(self._ended)

    def lacks(self, job_id: uuid.UUID, news: News) -> bool:
        """Whether it was not told before."""
        return news.version is None or (job_id not in self._ended and news.version > self.live.get(job_id, 0))

    def note(self, job_id: uuid.UUID, news: News) -> None:
        """It is told."""
        if news.version is None:
            self.forget(job_id)
        elif news.ended:
            self.forget(job_id)
            self._ended[job_id] = None
            if len(self._ended) > _MOST_ENDED_REMEMBERED:
                self.forget_an_end()
        else:
            self.live[job_id] = news.version

    def changed_from(self, unfinished: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Of all that match and are unfinished now, the news; and what was told as such and is so no more."""
        news = [job_id for job_id, version in unfinished.items() if version > self.live.get(job_id, 0)]
        return news + sorted(self.live.keys() - unfinished.keys())

    def forget(self, job_id: uuid.UUID) -> None:
        """It does not match any more."""
        self.live.pop(job_id, None)

    def forget_an_end(self) -> None:
        """The oldest: a late event may have it told again."""
        if self._ended:
            del self._ended[next(iter(self._ended))]

    def forget_ends(self) -> None:
        """All of them."""
        self._ended.clear()


class Subject(Protocol):
    """What a stream follows: some of one tenant's jobs."""

    @property
    def read_at_once(self) -> int:
        """Jobs in one read, at most."""

    def concerns(self, change: JobChange, sent: Sent, /) -> bool:
        """Whether a change may make news for whom this was told."""

    async def versions(self, *, limit: int) -> Mapping[uuid.UUID, int]:
        """Of all that match and may change again, in the order in which they are to be told first."""

    async def news(self, ids: Sequence[uuid.UUID], sent: Sent, /) -> Mapping[uuid.UUID, News]:
        """How those of these jobs are now that match, and what to tell of those that do no more."""


class _Changes:
    """What one stream has told, and the ids of the jobs that it is still to look at."""

    def __init__(self, subject: Subject, tenant_id: uuid.UUID, room: Room) -> None:
        self.sent = Sent()
        self.waiting = deque[uuid.UUID]()  #: that are to be told of next
        self._subject = subject
        self._tenant_id = tenant_id
        self._room = room
        self._counted = 0
        self._ids: set[uuid.UUID] = set()
        self._reread = False
        self._fresh = asyncio.Event()

    def count(self) -> None:
        """Take room for what is remembered now, and no more."""
        self._counted_as(self.sent.remembered + len(self.waiting) + len(self._ids))

    def close(self) -> None:
        """Nothing is remembered any more."""
        self._counted_as(0)

    def _counted_as(self, number: int) -> None:
        self._room.take(self._tenant_id, number - self._counted)
        self._counted = number

    def add(self, change: JobChange) -> None:
        """Note a changed job; past a limit only that everything is to be read again, when it is this stream's turn."""
        if not self._subject.concerns(change, self.sent):
            return
        if not self._room.left(self._tenant_id):
            self.sent.forget_an_end()
            self.count()
        if len(self._ids) < MOST_WATCHED_TOGETHER and self._room.left(self._tenant_id) > 0:
            self._ids.add(change.job_id)
            self._fresh.set()
            self.count()
        else:
            self._reread = True

    def wake(self, *, reread: bool) -> None:
        """Let the stream look up, at everything if `reread`."""
        self._reread = self._reread or reread
        self._fresh.set()

    async def taken(self) -> tuple[list[uuid.UUID], bool]:
        """Wait for changes and take them: (ids, whether to read everything again)."""
        await self._fresh.wait()
        self._fresh.clear()
        taken, reread = sorted(self._ids), self._reread
        self._ids, self._reread = set(), False
        return taken, reread


class Reading:
    """Turns ids into what is told of them, as much at a time as may wait for a client."""

    def __init__(self, subject: Subject, sent: Sent) -> None:
        self._subject = subject
        self._sent = sent
        self._at_once = _FIRST_READ

    async def portion(self, waiting: deque[uuid.UUID]) -> deque[bytes]:
        """The answers to send next, about the first of those who wait, which are taken out. What is read beyond a
        portion is let go, and read again when its turn comes."""
        some = list(islice(waiting, self._at_once))
        answers = self._fitting(waiting, some, await self._subject.news(some, self._sent))
        # As many are read next as are likely to fit.
        size = sum(map(len, answers))
        likely = PORTION_BYTES * len(answers) // size if size else 2 * self._at_once
        self._at_once = max(1, min(likely, self._subject.read_at_once))
        return answers

    def _fitting(
        self, waiting: deque[uuid.UUID], some: Sequence[uuid.UUID], found: Mapping[uuid.UUID, News]
    ) -> deque[bytes]:
        answers, size = deque[bytes](), 0
        for job_id in some:
            news = found.get(job_id)
            if news is None:
                self._sent.forget(job_id)
            elif self._sent.lacks(job_id, news):
                answer = news.answer()
                size += len(answer)
                if answers and size > PORTION_BYTES:
                    break
                self._sent.note(job_id, news)
                answers.append(answer)
            waiting.popleft()
        return answers


class Followers:
    """All streams over many jobs of this gateway."""

    def __init__(self) -> None:
        self._of_tenants: defaultdict[uuid.UUID, set[_Changes]] = defaultdict(set)
        self._in_turn: OrderedDict[_Changes, None] = OrderedDict()  # who was compared longest ago comes first
        self._streams = Room(
            MOST_FOLLOWERS,
            limit="streams",
            what="WatchJobs and WatchReviewQueue streams are open",
            reason="TOO_MANY_STREAMS",
        )
        self._ids = Room(
            MOST_REMEMBERED, limit="followed_jobs", what="jobs are followed by streams", reason="TOO_MANY_JOBS"
        )
        self._listing = asyncio.Semaphore(_LISTING_AT_ONCE)
        self._draining = False

    def stop(self) -> None:
        """End every stream with UNAVAILABLE."""
        self._draining = True
        for changes in self._in_turn:
            changes.wake(reread=False)

    def note(self, change: JobChange) -> None:
        """A job has changed."""
        for changes in self._of_tenants.get(change.tenant_id, ()):
            changes.add(change)

    def compare(self, *, everything: bool) -> None:
        """Let streams compare what they follow with the database: all at once, or as many as one pass is for, those
        first who did so longest ago."""
        left = COMPARED_IN_A_PASS
        for changes in list(self._in_turn):
            if left <= 0 and not everything:
                return
            left -= max(_LEAST_COMPARED, len(changes.sent.live))
            self._in_turn.move_to_end(changes)
            changes.wake(reread=True)

    async def follow(
        self, tenant_id: uuid.UUID, subject: Subject, *, open_within_seconds: float | None = None
    ) -> AsyncGenerator[bytes | None]:
        """What matches now, then None, then all news.

        Raises:
            TimeoutError: the jobs could not be listed within `open_within_seconds`.
            Unavailable: this gateway is going away.
            ResourceExhausted: too many jobs match, or too many are followed here.
        """
        with self._following(tenant_id, subject) as changes:
            sent, waiting = changes.sent, changes.waiting
            reading, list_all, complete = Reading(subject, sent), True, False
            while True:
                if self._draining:
                    raise gateway_stopping()
                if list_all:
                    async with asyncio.timeout(None if complete else open_within_seconds):
                        ids, list_all = sent.changed_from(await self._versions(subject)), False
                else:
                    ids, list_all = await changes.taken()  # what is known is told first, which makes room
                self._line_up(tenant_id, changes, ids)
                del ids
                while waiting:
                    portion = await reading.portion(waiting)
                    changes.count()
                    while portion:
                        yield portion.popleft()
                if not complete:
                    yield None
                    complete = True

    @contextmanager
    def _following(self, tenant_id: uuid.UUID, subject: Subject) -> Iterator[_Changes]:
        self._streams.require(tenant_id, 1)
        changes = _Changes(subject, tenant_id, self._ids)
        self._streams.take(tenant_id, 1)
        self._of_tenants[tenant_id].add(changes)
        self._in_turn[changes] = None
        try:
            yield changes
        finally:
            changes.close()
            self._streams.take(tenant_id, -1)
            del self._in_turn[changes]
            self._of_tenants[tenant_id].remove(changes)
            if not self._of_tenants[tenant_id]:
                del self._of_tenants[tenant_id]

    async def _versions(self, subject: Subject) -> Mapping[uuid.UUID, int]:
        async with self._listing:
            found = await subject.versions(limit=MOST_WATCHED_TOGETHER + 1)
        if len(found) > MOST_WATCHED_TOGETHER:
            raise ResourceExhausted(
                f"more than {MOST_WATCHED_TOGETHER} unfinished jobs match; narrow the filter", reason="TOO_MANY_JOBS"
            )
        return found

    def _line_up(self, tenant_id: uuid.UUID, changes: _Changes, ids: Collection[uuid.UUID]) -> None:
        """These are to be told of next. What is remembered of ended jobs gives way to them."""
        changes.count()
        if self._ids.left(tenant_id) < len(ids):
            _forget_ends(self._of_tenants[tenant_id])
        if self._ids.free < len(ids):
            _forget_ends(self._in_turn)
        self._ids.require(tenant_id, len(ids))
        changes.waiting.extend(ids)
        changes.count()


def _forget_ends(streams: Iterable[_Changes]) -> None:
    for changes in streams:
        changes.sent.forget_ends()
        changes.count()


def gateway_stopping() -> Unavailable:
    """What every stream ends with when this gateway goes away, so that its client resumes elsewhere."""
    return Unavailable("this gateway is stopping; watch again to go on elsewhere", reason="GATEWAY_STOPPING")
