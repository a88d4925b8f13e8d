"""From job events to open streams: who watches what, and the newest version each has been given.

A watch carries snapshots. Each subscriber has one slot with the latest value, never a growing queue, so a slow
client costs one job of memory. Events are hints: what is sent is read from the database, several watched jobs
in one statement; after a gap in the events, and every few seconds, everything watched is read again.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import structlog

from imprimatur import metrics
from imprimatur.broker import Broker, Message, Subscription
from imprimatur.errors import MalformedMessage, ResourceExhausted, Unavailable
from imprimatur.job import Job
from imprimatur.runtime import Loop
from imprimatur.storage import jobs
from imprimatur.storage.database import Database
from imprimatur.storage.jobs import Filter, Owner
from imprimatur.wire.messages import JobsChanged

log = structlog.get_logger(__name__)

_READ_AT_ONCE = 500
#: Live jobs that one WatchJobs stream may follow.
MOST_WATCHED_TOGETHER = 20_000


class Slot:
    """The latest version of one job, for one subscriber."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._fresh = asyncio.Event()

    def put(self, job: Job) -> bool:
        """Keep it if it is newer than what is here; returns whether it is."""
        if self.job is not None and job.version <= self.job.version:
            return False
        self.job = job
        self._fresh.set()
        return True

    def wake(self) -> None:
        """Let the subscriber look up."""
        self._fresh.set()

    async def changed(self) -> None:
        """Wait until something new is here."""
        await self._fresh.wait()
        self._fresh.clear()


class Changes:
    """The ids of one tenant's changed jobs, for one subscriber who follows many."""

    def __init__(self) -> None:
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
            if len(self._ended) > MOST_WATCHED_TOGETHER:
                del self._ended[next(iter(self._ended))]
        else:
            self.live[job.id] = job.version
        return True

    def forget(self, ids: set[uuid.UUID]) -> None:
        """These do not match any more."""
        for job_id in ids:
            self.live.pop(job_id, None)


class Watchtower:
    """All watch streams of this gateway.

    Args:
        reread_seconds: how often everything watched is read again, events or not.
    """

    def __init__(self, database: Database, broker: Broker, *, reread_seconds: float = 10.0) -> None:
        self._database = database
        self._broker = broker
        self._slots: defaultdict[uuid.UUID, set[Slot]] = defaultdict(set)
        self._followers: defaultdict[uuid.UUID, set[Changes]] = defaultdict(set)
        self._dirty: dict[uuid.UUID, float] = {}
        self._subscription: Subscription | None = None
        self._reader = Loop("watch-reader", self._read_dirty, interval_seconds=1.0)
        self._rereader = Loop("watch-rereader", self._reread, interval_seconds=reread_seconds)
        self._draining = False

    async def start(self) -> None:
        """Begin to listen."""
        self._subscription = await self._broker.listen(("#",), self._on_message, self._mark_everything)
        self._reader.start()
        self._rereader.start()

    async def stop(self) -> None:
        """End every stream with UNAVAILABLE, so that its client resumes elsewhere."""
        self._draining = True
        for slots in self._slots.values():
            for slot in slots:
                slot.wake()
        for followers in self._followers.values():
            for changes in followers:
                changes.wake(reread=False)
        await self._reader.stop()
        await self._rereader.stop()
        if self._subscription is not None:
            await self._subscription.close()

    async def watch(
        self, owner: Owner, job_id: uuid.UUID, *, open_within_seconds: float | None = None
    ) -> AsyncIterator[Job]:
        """The job now, then every newer version that is seen, up to the terminal one. Nothing if there is no
        such job of the owner's.

        Raises:
            TimeoutError: the job could not be read within `open_within_seconds`.
            Unavailable: this gateway is going away.
        """
        with self._slot(job_id) as slot:
            async with asyncio.timeout(open_within_seconds), self._database.read() as reader:
                job = await jobs.find(reader, owner, job_id)
            while job is not None:
                slot.put(job)  # so that nothing older counts as news
                yield job
                if job.state.terminal:
                    return
                job = await self._newer(slot, job)

    async def _newer(self, slot: Slot, than: Job) -> Job:
        while True:
            if slot.job is not None and slot.job.version > than.version:
                return slot.job
            self._refuse_when_draining()
            await slot.changed()

    async def follow(
        self, owner: Owner, wanted: Filter, *, open_within_seconds: float | None = None
    ) -> AsyncIterator[Job | None]:
        """Every unfinished job that matches, then None, then each change after which a job matches.

        Raises:
            TimeoutError: the jobs could not be read within `open_within_seconds`.
            Unavailable: this gateway is going away.
            ResourceExhausted: too many jobs match.
        """
        sent = Sent()
        with self._changes(owner.tenant_id) as changes:
            async with asyncio.timeout(open_within_seconds):
                unfinished = await self._unfinished(owner, wanted)
            for job in unfinished:
                if sent.is_news(job):
                    yield job
            yield None
            while True:
                self._refuse_when_draining()
                ids, reread = await changes.taken()
                if reread:
                    ids |= set(sent.live) | {job.id for job in await self._unfinished(owner, wanted)}
                found = await self._read(owner, wanted, ids)
                sent.forget(ids - {job.id for job in found})
                for job in found:
                    if sent.is_news(job):
                        yield job

    async def _unfinished(self, owner: Owner, wanted: Filter) -> list[Job]:
        async with self._database.read() as reader:
            found = await jobs.list_unfinished(reader, owner, wanted, limit=MOST_WATCHED_TOGETHER + 1)
        if len(found) > MOST_WATCHED_TOGETHER:
            raise ResourceExhausted(
                f"more than {MOST_WATCHED_TOGETHER} unfinished jobs match; narrow the filter", reason="TOO_MANY_JOBS"
            )
        return found

    async def _read(self, owner: Owner, wanted: Filter, ids: set[uuid.UUID]) -> list[Job]:
        found: list[Job] = []
        ordered = sorted(ids)
        for start in range(0, len(ordered), _READ_AT_ONCE):
            async with self._database.read() as reader:
                found += await jobs.matching_among(reader, owner, wanted, ordered[start : start + _READ_AT_ONCE])
        return found

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Unavailable("this gateway is stopping; watch again to go on elsewhere", reason="GATEWAY_STOPPING")

    # --- subscribers -------------------------------------------------------------------------------------

    @contextmanager
    def _slot(self, job_id: uuid.UUID) -> Iterator[Slot]:
        slot = Slot()
        self._slots[job_id].add(slot)
        try:
            yield slot
        finally:
            self._slots[job_id].discard(slot)
            if not self._slots[job_id]:
                del self._slots[job_id]

    @contextmanager
    def _changes(self, tenant_id: uuid.UUID) -> Iterator[Changes]:
        changes = Changes()
        self._followers[tenant_id].add(changes)
        try:
            yield changes
        finally:
            self._followers[tenant_id].discard(changes)
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
        for change in changed.changes:
            if change.job_id in self._slots:
                self._dirty.setdefault(change.job_id, time.perf_counter())
                self._reader.wake()
            for changes in self._followers.get(change.tenant_id, ()):
                changes.add(change.job_id)

    def _mark_everything(self) -> None:
        now = time.perf_counter()
        for job_id in self._slots:
            self._dirty.setdefault(job_id, now)
        self._reader.wake()
        for followers in self._followers.values():
            for changes in followers:
                changes.wake(reread=True)

    async def _reread(self) -> None:
        self._mark_everything()

    async def _read_dirty(self) -> None:
        while self._dirty:
            some = [self._dirty.popitem() for _ in range(min(len(self._dirty), _READ_AT_ONCE))]
            try:
                async with self._database.read() as reader:
                    found = await jobs.find_many(reader, [job_id for job_id, _ in some])
            except Exception:
                self._dirty.update(some)
                raise
            for job_id, since in some:
                self._hand_out(found.get(job_id), since)

    def _hand_out(self, job: Job | None, since: float) -> None:
        if job is None:
            return
        for slot in self._slots.get(job.id, ()):
            if slot.put(job):
                metrics.watch_lag_seconds.observe(time.perf_counter() - since)
