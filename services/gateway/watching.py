"""From job events to open streams: who watches what, and the newest version each has been given. Streams over many
jobs are in `following`.

A watch carries snapshots. Each watched job has one slot with its newest version, which all its watchers share, and
never a growing queue: a slow client costs no more than that. Events are hints: what is sent is read from the database,
many jobs in one statement; after a gap in the events, and every few seconds, the versions of everything watched are
compared with the database's.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import structlog

from gateway.following import Followers, News, Sent, Subject, gateway_stopping
from gateway.reading import READ_AT_ONCE, SharedReads, job_reads
from gateway.rendering import Snapshot, Version
from imprimatur import metrics
from imprimatur.broker import Broker, Message, Subscription
from imprimatur.errors import MalformedMessage
from imprimatur.runtime import Loop
from imprimatur.storage import jobs
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.wire.messages import JobChange, JobsChanged

log = structlog.get_logger(__name__)

#: Between the pages of what is compared with the database little by little.
_PAGE_PAUSE_SECONDS = 0.25
#: Streams that are told in one turn of the event loop: some 5 ms of work.
_TOLD_AT_ONCE = 50


class Watched:
    """One watched job: its newest version seen, and who waits for a newer one."""

    __slots__ = ("_waiting", "newest", "watchers")

    def __init__(self) -> None:
        self.newest: Version | None = None
        self.watchers = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def put(self, version: Version) -> bool:
        """Keep it if it is newer than what is here; returns whether it is."""
        if self.newest is not None and version.number <= self.newest.number:
            return False
        self.newest = version
        self.wake()
        return True

    def wake(self) -> None:
        """Let everybody look up."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait until something new is here."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)


class Crowd:
    """Lets those who woke together go on in groups, between which the event loop looks at what has come. Whoever still
    stands in line then may find that there is something newer to tell, and nobody else waits for all of them.

    Args:
        at_once: how many in one turn of the event loop.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._room = at_once
        self._line: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait for one's turn, which is now if there is no crowd."""
        loop = asyncio.get_running_loop()
        if self._room == self._at_once:
            loop.call_soon(self._next)
        if self._room > 0:
            self._room -= 1
            return
        mine = loop.create_future()
        self._line.append(mine)
        await mine

    def _next(self) -> None:
        self._room = self._at_once
        while self._line and self._room > 0:
            waiting = self._line.popleft()
            if not waiting.done():
                waiting.set_result(None)
                self._room -= 1
        if self._room < self._at_once:
            asyncio.get_running_loop().call_soon(self._next)


class Watchtower:
    """All watch streams of this gateway.

    Attributes:
        followers: those of them that are over many jobs.

    Args:
        reread_seconds: how often everything watched is compared with the database, events or not.
        heard: called with the routing key of each event and the number of jobs that it tells of, for others in this
            process: an event is received and read but once.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        *,
        reread_seconds: float = 10.0,
        heard: Callable[[str, int], None] = lambda _routing_key, _jobs: None,
    ) -> None:
        self.followers = Followers()
        self._database = database
        self._broker = broker
        self._reread_seconds = reread_seconds
        self._heard = heard
        self._snapshots = job_reads(database)
        self._watched: dict[uuid.UUID, Watched] = {}
        self._dirty: dict[uuid.UUID, float] = {}
        self._crowd = Crowd(_TOLD_AT_ONCE)
        self._gap = False
        self._subscription: Subscription | None = None
        self._reader = Loop("watch-reader", self._read_dirty, interval_seconds=1.0)
        self._rereader = Loop("watch-rereader", self._reread, interval_seconds=reread_seconds)
        self._draining = False

    async def start(self) -> None:
        """Begin to listen."""
        self._subscription = await self._broker.listen(("#",), self._on_message, self._on_gap)
        self._reader.start()
        self._rereader.start()

    async def stop(self) -> None:
        """End every stream with UNAVAILABLE, so that its client resumes elsewhere."""
        self._draining = True
        for watched in self._watched.values():
            watched.wake()
        self.followers.stop()
        await self._reader.stop()
        await self._rereader.stop()
        await self._snapshots.stop()
        if self._subscription is not None:
            await self._subscription.close()

    # --- one job -----------------------------------------------------------------------------------------

    async def watch(
        self, owner: Owner, job_id: uuid.UUID, *, open_within_seconds: float | None = None
    ) -> AsyncGenerator[Version]:
        """The job now, then every newer version that is seen, up to the terminal one. Nothing if there is no
        such job of the owner's.

        Raises:
            TimeoutError: the job could not be read within `open_within_seconds`.
            Unavailable: this gateway is going away.
        """
        with self._watch(job_id) as watched:
            async with asyncio.timeout(open_within_seconds):
                found = (await self._snapshots.of([job_id])).get(job_id)
            if found is None or not owner.owns(found.job):
                return
            watched.put(found.version)
            del found
            number = 0
            while True:
                version = await self._newer(watched, number)
                number = version.number
                yield version
                if version.terminal:
                    return

    async def _newer(self, watched: Watched, than: int) -> Version:
        while True:
            if watched.newest is not None and watched.newest.number > than:
                return watched.newest
            if self._draining:
                raise gateway_stopping()
            await watched.changed()
            await self._crowd.turn()

    # --- many jobs ---------------------------------------------------------------------------------------

    def follow(
        self, owner: Owner, wanted: Filter, *, tenant: str, open_within_seconds: float | None = None
    ) -> AsyncGenerator[bytes | None]:
        """Every unfinished job that matches, then None, then each change after which a job matches; as `Version.answer`
        puts them into bytes.

        Raises:
            TimeoutError, Unavailable, ResourceExhausted: as `Followers.follow`.
        """
        subject = _Matching(self._database, self._snapshots, owner, wanted, tenant)
        return self.followers.follow(owner.tenant_id, subject, open_within_seconds=open_within_seconds)

    @contextmanager
    def _watch(self, job_id: uuid.UUID) -> Iterator[Watched]:
        watched = self._watched.setdefault(job_id, Watched())
        watched.watchers += 1
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[job_id]

    # --- events ------------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        try:
            changed = JobsChanged.decode(message.body)
        except MalformedMessage as fault:
            metrics.messages_set_aside.labels("job.events").inc()
            log.warning("an event cannot be read", error=str(fault), message_id=message.message_id)
            return
        self._heard(message.routing_key, len(changed.changes))
        for change in changed.changes:
            if self._is_behind(change.job_id, change.version):
                self._dirty.setdefault(change.job_id, time.perf_counter())
                self._reader.wake()
            self.followers.note(change)

    def _is_behind(self, job_id: uuid.UUID, version: int) -> bool:
        watched = self._watched.get(job_id)
        return watched is not None and (watched.newest is None or watched.newest.number < version)

    def _on_gap(self) -> None:
        self._gap = True
        self._rereader.wake()

    async def _reread(self) -> None:
        """Compare everything with the database: at once after a gap, else little by little, and of what streams over
        many jobs follow a part."""
        at_once, self._gap = self._gap, False
        pages = list(_pages(self._watched))
        self.followers.compare(everything=at_once)
        for page in pages:
            try:
                async with self._database.read() as reader:
                    versions = await jobs.versions(reader, page)
            except BaseException:
                self._gap = self._gap or at_once
                raise
            now = time.perf_counter()
            for job_id, version in versions.items():
                if self._is_behind(job_id, version):
                    self._dirty.setdefault(job_id, now)
            if self._dirty:
                self._reader.wake()
            if not (at_once or self._gap):
                await asyncio.sleep(min(_PAGE_PAUSE_SECONDS, self._reread_seconds / len(pages) / 2))

    async def _read_dirty(self) -> None:
        while self._dirty:
            some = [self._dirty.popitem() for _ in range(min(len(self._dirty), READ_AT_ONCE))]
            try:
                found = await self._snapshots.of_readable(job_id for job_id, _ in some)
            except BaseException:
                self._dirty.update(some)
                raise
            for job_id, since in some:
                watched = self._watched.get(job_id)
                if watched is not None and job_id in found and watched.put(found[job_id].version):
                    metrics.watch_lag_seconds.observe(time.perf_counter() - since)


class _Matching(Subject):
    """An owner's jobs that pass a filter."""

    read_at_once = 100

    def __init__(
        self,
        database: Database,
        snapshots: SharedReads[uuid.UUID, Snapshot],
        owner: Owner,
        wanted: Filter,
        tenant: str,
    ) -> None:
        self._database = database
        self._snapshots = snapshots
        self._owner = owner
        self._wanted = wanted
        self._tenant = tenant

    def concerns(self, _change: JobChange, _sent: Sent) -> bool:
        """Whether a job matches is seen when it is read."""
        return True

    async def versions(self, *, limit: int) -> Mapping[uuid.UUID, int]:
        """Of those that are unfinished, oldest first."""
        async with self._database.read() as reader:
            return await jobs.unfinished_versions(reader, self._owner, self._wanted, limit=limit)

    async def news(self, ids: Sequence[uuid.UUID], _sent: Sent) -> Mapping[uuid.UUID, News]:
        """Those that match, as they are now. That one does no more is not told."""
        found = await self._snapshots.of_readable(ids)
        matching = (one for one in found.values() if self._owner.owns(one.job) and self._wanted.passes(one.job))
        return {one.job.id: self._shown(one.version) for one in matching}

    def _shown(self, version: Version) -> News:
        return News(version=version.number, ended=version.terminal, answer=lambda: version.answer(self._tenant))


def _pages(ids: Iterable[uuid.UUID]) -> Iterator[list[uuid.UUID]]:
    """In order, so many at a time as one statement reads."""
    ordered = iter(sorted(ids))
    while page := list(islice(ordered, READ_AT_ONCE)):
        yield page
