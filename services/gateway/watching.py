"""From job events to open streams: who watches what, and the newest version each has been given.

A watch carries snapshots. Each watched job has one slot with its newest version, which all its watchers share, and
never a growing queue: a slow client costs no more than that. Events are hints: what is sent is read from the database,
many jobs in one statement; after a gap in the events, and every few seconds, the versions of everything watched are
compared with the database's.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import structlog

from gateway.reading import READ_AT_ONCE, job_reads
from gateway.rendering import Version
from imprimatur import metrics
from imprimatur.broker import Broker, Message, Subscription
from imprimatur.errors import MalformedMessage, ResourceExhausted, Unavailable
from imprimatur.job import Job
from imprimatur.runtime import Loop
from imprimatur.storage import jobs
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.wire.messages import JobChange, JobsChanged

log = structlog.get_logger(__name__)

#: Live jobs that one WatchJobs stream may follow.
MOST_WATCHED_TOGETHER = 20_000
#: WatchJobs streams of a process: each remembers ids, some 2 MB of them when its client does not keep up.
MOST_FOLLOWERS = 1000
#: Live jobs that all WatchJobs streams of a process may follow together: some 200 MB.
MOST_FOLLOWED = 1_000_000
#: Of so many jobs that ended a WatchJobs stream remembers that it has told of them.
_MOST_ENDED_REMEMBERED = 10_000
#: Between the pages of what is compared with the database little by little.
_PAGE_PAUSE_SECONDS = 0.25
#: WatchJobs streams that list their jobs at a time.
_LISTING_AT_ONCE = 2


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


class Changes:
    """The ids of one tenant's changed jobs, for one subscriber who follows many.

    Args:
        of_interest: which changes are noted; by default all.
    """

    def __init__(self, of_interest: Callable[[JobChange], bool] = lambda _change: True) -> None:
        self.of_interest = of_interest
        self.ids: set[uuid.UUID] = set()
        self.reread = False
        self._fresh = asyncio.Event()

    def add(self, job_id: uuid.UUID) -> None:
        """Note a changed job; past a limit only that everything is to be read again."""
        if len(self.ids) < MOST_WATCHED_TOGETHER:
            self.ids.add(job_id)
        else:
            self.reread = True
        self._fresh.set()

    def wake(self, *, reread: bool) -> None:
        """Let the subscriber look up, at everything if `reread`."""
        self.reread = self.reread or reread
        self._fresh.set()

    async def taken(self) -> tuple[set[uuid.UUID], bool]:
        """Wait for changes and take them: (ids, whether to read everything again)."""
        await self._fresh.wait()
        self._fresh.clear()
        taken, reread = self.ids, self.reread
        self.ids, self.reread = set(), False
        return taken, reread


class Sent:
    """What one follower of many has been given."""

    def __init__(self) -> None:
        self.live: dict[uuid.UUID, int] = {}  #: the versions of those that match and may change again
        self._ended: dict[uuid.UUID, None] = {}  # in the order in which they were sent

    def is_news(self, job: Job) -> bool:
        """Whether it has not been sent in this version; from now on it has."""
        if job.id in self._ended or job.version <= self.live.get(job.id, 0):
            return False
        if job.state.terminal:
            self.live.pop(job.id, None)
            self._ended[job.id] = None
            if len(self._ended) > _MOST_ENDED_REMEMBERED:
                del self._ended[next(iter(self._ended))]
        else:
            self.live[job.id] = job.version
        return True

    def changed_from(self, unfinished: dict[uuid.UUID, int]) -> set[uuid.UUID]:
        """Of all that match and are unfinished now, the news; and what was sent as such and is so no more."""
        news = {job_id for job_id, version in unfinished.items() if version > self.live.get(job_id, 0)}
        return news | (self.live.keys() - unfinished.keys())

    def forget(self, ids: Iterable[uuid.UUID]) -> None:
        """These do not match any more."""
        for job_id in ids:
            self.live.pop(job_id, None)


class Watchtower:
    """All watch streams of this gateway.

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
        self._database = database
        self._broker = broker
        self._reread_seconds = reread_seconds
        self._heard = heard
        self._snapshots = job_reads(database)
        self._watched: dict[uuid.UUID, Watched] = {}
        self._followers: defaultdict[uuid.UUID, dict[Changes, Sent]] = defaultdict(dict)
        self._listing = asyncio.Semaphore(_LISTING_AT_ONCE)
        self._dirty: dict[uuid.UUID, float] = {}
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
        self._wake_followers(reread=False)
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
            self.refuse_when_draining()
            await watched.changed()

    # --- many jobs ---------------------------------------------------------------------------------------

    async def follow(
        self, owner: Owner, wanted: Filter, *, open_within_seconds: float | None = None
    ) -> AsyncGenerator[Version | None]:
        """Every unfinished job that matches, then None, then each change after which a job matches.

        Raises:
            TimeoutError: the jobs could not be listed within `open_within_seconds`.
            Unavailable: this gateway is going away.
            ResourceExhausted: too many jobs match, or too many are followed here.
        """
        with self.following(owner.tenant_id) as (changes, sent):
            async with asyncio.timeout(open_within_seconds):
                unfinished = await self._unfinished(owner, wanted, already=0)
            for page in _pages(unfinished):
                for version in await self._news(owner, wanted, page, sent):
                    yield version
            del unfinished
            yield None
            while True:
                self.refuse_when_draining()
                ids, reread = await changes.taken()
                if reread:
                    ids |= sent.changed_from(await self._unfinished(owner, wanted, already=len(sent.live)))
                for page in _pages(ids):
                    for version in await self._news(owner, wanted, page, sent):
                        yield version

    async def _unfinished(self, owner: Owner, wanted: Filter, *, already: int) -> dict[uuid.UUID, int]:
        async with self._listing, self._database.read() as reader:
            found = await jobs.unfinished_versions(reader, owner, wanted, limit=MOST_WATCHED_TOGETHER + 1)
        self.require_room(len(found), already=already)
        return found

    def require_room(self, number: int, *, already: int) -> None:
        """Refuse to follow so many jobs by one stream, or by one that follows so many `already`.

        Raises:
            ResourceExhausted: too many match, or too many are followed here.
        """
        if number > MOST_WATCHED_TOGETHER:
            raise ResourceExhausted(
                f"more than {MOST_WATCHED_TOGETHER} unfinished jobs match; narrow the filter", reason="TOO_MANY_JOBS"
            )
        followed = sum(len(sent.live) for followers in self._followers.values() for sent in followers.values())
        if followed - already + number > MOST_FOLLOWED:
            raise ResourceExhausted(
                f"the streams of this gateway follow {followed} jobs already; narrow the filter, or watch again later",
                reason="TOO_MANY_JOBS",
            ).retry_after(10.0)

    async def _news(self, owner: Owner, wanted: Filter, ids: Collection[uuid.UUID], sent: Sent) -> list[Version]:
        found = await self._snapshots.of(ids)
        matching = [one for one in found.values() if owner.owns(one.job) and wanted.passes(one.job)]
        sent.forget(set(ids) - {one.job.id for one in matching})
        return [one.version for one in matching if sent.is_news(one.job)]

    def refuse_when_draining(self) -> None:
        """Raises Unavailable when this gateway is going away."""
        if self._draining:
            raise Unavailable("this gateway is stopping; watch again to go on elsewhere", reason="GATEWAY_STOPPING")

    # --- subscribers -------------------------------------------------------------------------------------

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

    @contextmanager
    def following(
        self, tenant_id: uuid.UUID, of_interest: Callable[[JobChange, Sent], bool] = lambda _change, _sent: True
    ) -> Iterator[tuple[Changes, Sent]]:
        """What changes among one tenant's jobs, and room to remember what was sent of it; the stream that follows
        ends by `refuse_when_draining`.

        Raises:
            ResourceExhausted: too many streams follow many jobs here.
        """
        if sum(len(followers) for followers in self._followers.values()) >= MOST_FOLLOWERS:
            metrics.limit_refusals.labels("all_streams").inc()
            raise ResourceExhausted(
                f"{MOST_FOLLOWERS} WatchJobs streams are open at this gateway; try again later",
                reason="TOO_MANY_STREAMS",
                limit="all_streams",
                value=str(MOST_FOLLOWERS),
            ).retry_after(10.0)
        sent = Sent()
        changes = Changes(lambda change: of_interest(change, sent))
        self._followers[tenant_id][changes] = sent
        try:
            yield changes, sent
        finally:
            del self._followers[tenant_id][changes]
            if not self._followers[tenant_id]:
                del self._followers[tenant_id]

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
            for changes in self._followers.get(change.tenant_id, ()):
                if changes.of_interest(change):
                    changes.add(change.job_id)

    def _is_behind(self, job_id: uuid.UUID, version: int) -> bool:
        watched = self._watched.get(job_id)
        return watched is not None and (watched.newest is None or watched.newest.number < version)

    def _on_gap(self) -> None:
        self._gap = True
        self._rereader.wake()

    def _wake_followers(self, *, reread: bool) -> None:
        for followers in self._followers.values():
            for changes in followers:
                changes.wake(reread=reread)

    async def _reread(self) -> None:
        """Compare everything with the database: at once after a gap, else little by little."""
        at_once, self._gap = self._gap, False
        pages = list(_pages(self._watched))
        self._wake_followers(reread=True)
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
                found = await self._snapshots.of(job_id for job_id, _ in some)
            except BaseException:
                self._dirty.update(some)
                raise
            for job_id, since in some:
                watched = self._watched.get(job_id)
                if watched is not None and job_id in found and watched.put(found[job_id].version):
                    metrics.watch_lag_seconds.observe(time.perf_counter() - since)


def _pages(ids: Iterable[uuid.UUID]) -> Iterator[list[uuid.UUID]]:
    """In order, so many at a time as one statement reads."""
    ordered = iter(sorted(ids))
    while page := list(islice(ordered, READ_AT_ONCE)):
        yield page
