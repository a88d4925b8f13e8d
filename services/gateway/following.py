"""Streams over many jobs: what each follows, what it has been given, and how little waits for a client that is slow.

A stream remembers ids and versions. Events add ids to it; what is told of them is read from the database when their
turn comes, a little at a time, so that a client which does not read holds a portion of answers and no more. After a gap
in the events, and every few seconds, what it follows is compared with the database's versions. Which jobs those are,
is its `Subject`'s to know.
"""

import asyncio
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from imprimatur import metrics
from imprimatur.errors import ResourceExhausted, Unavailable
from imprimatur.wire.messages import JobChange

#: Live jobs that one stream may follow; of so many changed ones it remembers which they are.
MOST_WATCHED_TOGETHER = 20_000
#: Streams of a process: each remembers ids, some 2 MB of them when its client does not keep up.
MOST_FOLLOWERS = 1000
#: Live jobs that all streams of a process may follow together: some 200 MB.
MOST_FOLLOWED = 1_000_000
#: Answers that wait while a client does not read, of each stream: so many bytes, or one that is larger.
PORTION_BYTES = 64 * 1024
#: Of so many jobs that ended a stream remembers that it has told of them.
_MOST_ENDED_REMEMBERED = 10_000
#: Streams that list their jobs at a time.
_LISTING_AT_ONCE = 2
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
                del self._ended[next(iter(self._ended))]
        else:
            self.live[job_id] = news.version

    def changed_from(self, unfinished: Mapping[uuid.UUID, int]) -> set[uuid.UUID]:
        """Of all that match and are unfinished now, the news; and what was told as such and is so no more."""
        news = {job_id for job_id, version in unfinished.items() if version > self.live.get(job_id, 0)}
        return news | (self.live.keys() - unfinished.keys())

    def forget(self, job_id: uuid.UUID) -> None:
        """It does not match any more."""
        self.live.pop(job_id, None)


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

    def __init__(self, subject: Subject) -> None:
        self.sent = Sent()
        self.waiting = deque[uuid.UUID]()  #: that are to be told of next
        self._subject = subject
        self._ids: set[uuid.UUID] = set()
        self._reread = False
        self._fresh = asyncio.Event()

    @property
    def followed(self) -> int:
        """Jobs that count towards `MOST_FOLLOWED`."""
        return len(self.sent.live) + len(self.waiting)

    def add(self, change: JobChange) -> None:
        """Note a changed job; past a limit only that everything is to be read again."""
        if not self._subject.concerns(change, self.sent):
            return
        if len(self._ids) < MOST_WATCHED_TOGETHER:
            self._ids.add(change.job_id)
        else:
            self._reread = True
        self._fresh.set()

    def wake(self, *, reread: bool) -> None:
        """Let the stream look up, at everything if `reread`."""
        self._reread = self._reread or reread
        self._fresh.set()

    async def taken(self) -> tuple[set[uuid.UUID], bool]:
        """Wait for changes and take them: (ids, whether to read everything again)."""
        await self._fresh.wait()
        self._fresh.clear()
        taken, reread = self._ids, self._reread
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
        self._listing = asyncio.Semaphore(_LISTING_AT_ONCE)
        self._draining = False

    def stop(self) -> None:
        """End every stream with UNAVAILABLE."""
        self._draining = True
        self.wake(reread=False)

    def note(self, change: JobChange) -> None:
        """A job has changed."""
        for changes in self._of_tenants.get(change.tenant_id, ()):
            changes.add(change)

    def wake(self, *, reread: bool) -> None:
        """Let all streams look up, at everything if `reread`."""
        for followers in self._of_tenants.values():
            for changes in followers:
                changes.wake(reread=reread)

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
            reading = Reading(subject, sent)
            async with asyncio.timeout(open_within_seconds):
                waiting.extend(await self._versions(subject, changes))
            while waiting:
                portion = await reading.portion(waiting)
                while portion:
                    yield portion.popleft()
            yield None
            while True:
                if self._draining:
                    raise gateway_stopping()
                ids, reread = await changes.taken()
                if reread:
                    ids |= sent.changed_from(await self._versions(subject, changes))
                waiting.extend(sorted(ids))
                del ids
                while waiting:
                    portion = await reading.portion(waiting)
                    while portion:
                        yield portion.popleft()

    @contextmanager
    def _following(self, tenant_id: uuid.UUID, subject: Subject) -> Iterator[_Changes]:
        if sum(len(followers) for followers in self._of_tenants.values()) >= MOST_FOLLOWERS:
            metrics.limit_refusals.labels("all_streams").inc()
            raise ResourceExhausted(
                f"{MOST_FOLLOWERS} WatchJobs streams are open at this gateway; try again later",
                reason="TOO_MANY_STREAMS",
                limit="all_streams",
                value=str(MOST_FOLLOWERS),
            ).retry_after(10.0)
        changes = _Changes(subject)
        self._of_tenants[tenant_id].add(changes)
        try:
            yield changes
        finally:
            self._of_tenants[tenant_id].remove(changes)
            if not self._of_tenants[tenant_id]:
                del self._of_tenants[tenant_id]

    async def _versions(self, subject: Subject, changes: _Changes) -> Mapping[uuid.UUID, int]:
        async with self._listing:
            found = await subject.versions(limit=MOST_WATCHED_TOGETHER + 1)
        self._require_room(len(found), already=changes.followed)
        return found

    def _require_room(self, number: int, *, already: int) -> None:
        if number > MOST_WATCHED_TOGETHER:
            raise ResourceExhausted(
                f"more than {MOST_WATCHED_TOGETHER} unfinished jobs match; narrow the filter", reason="TOO_MANY_JOBS"
            )
        followed = sum(changes.followed for followers in self._of_tenants.values() for changes in followers)
        if followed - already + number > MOST_FOLLOWED:
            raise ResourceExhausted(
                f"the streams of this gateway follow {followed} jobs already; narrow the filter, or watch again later",
                reason="TOO_MANY_JOBS",
            ).retry_after(10.0)


def gateway_stopping() -> Unavailable:
    """What every stream ends with when this gateway goes away, so that its client resumes elsewhere."""
    return Unavailable("this gateway is stopping; watch again to go on elsewhere", reason="GATEWAY_STOPPING")
