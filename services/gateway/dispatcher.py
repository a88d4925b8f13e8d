"""Who runs next: puts due jobs up for claiming.

Runs in every gateway; a lock in the database lets one put up at a time, and whoever has it counts the room. RabbitMQ
gets only what can start about now: as many jobs as the live workers have free slots, plus a few. While nothing is held
back a submit takes of that room itself, and its job is put up in the transaction that stores it.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from imprimatur import metrics
from imprimatur.identity import new_id
from imprimatur.job import SUBMITTED, Happening
from imprimatur.runtime import Loop
from imprimatur.storage import dispatch, gateways
from imprimatur.storage.database import Database, Reader
from imprimatur.storage.dispatch import MOST_REISSUED_ASIDE, Backlog, Work

_PASS_SECONDS_WHILE_HELD_BACK = 0.05
#: Between two passes, however often it is woken.
_LEAST_PAUSE_SECONDS = _PASS_SECONDS_WHILE_HELD_BACK / 2
#: Jobs are put up for claiming beyond the free slots for as long as this ahead, at the pace of the last starts, so that
#: no slot waits for the next pass; and no more, since what is put up stands before everybody who comes later.
_AHEAD_SECONDS = 2 * _PASS_SECONDS_WHILE_HELD_BACK
_MOST_AHEAD = 512
#: The pace is counted over so long: jobs are claimed many at a time, and by the pace of such a moment alone a whole
#: round of slots would be given away before whoever comes next.
_COUNTED_SECONDS = 0.5
#: Of many jobs one message asks for as many as a worker has sixteenths of its slots: what a message costs all who touch
#: it is shared then, and no worker gets more with it than it finds room for in a moment.
_SLOTS_FOR_ONE_MORE = 16
#: Of all that may be put up, this part may be in the hands of gateways that share it for their submits.
_SHARED_OUT = 1 / 4
#: How often a gateway tells the others that it lives.
_TELL_SECONDS = 1.0
_STARTED = f"state.{Happening.CLAIMED}"
#: Events after which no more of a tenant's jobs may be under way than before.
_NO_ENDS = frozenset({_STARTED, f"state.{SUBMITTED}", "state.progress"})


class Pace:
    """How many jobs start in a second, over all workers, as the broker tells of them. Falls slowly."""

    def __init__(self) -> None:
        self._starts = 0
        self._per_second = 0.0
        self._counted_at = time.monotonic()

    def heard(self, starts: int) -> None:
        """So many jobs have started."""
        self._starts += starts

    def ahead(self) -> int:
        """How many jobs to put up beyond the free slots; at least one."""
        now = time.monotonic()
        passed = now - self._counted_at
        if passed >= _COUNTED_SECONDS:
            self._per_second = max(self._starts / passed, self._per_second * math.exp(-passed))
            self._starts, self._counted_at = 0, now
        return min(_MOST_AHEAD, 1 + math.ceil(self._per_second * _AHEAD_SECONDS))


class Dispatcher:
    """One gateway's share of deciding what runs next.

    Args:
        pass_seconds: how often to look, unless it is woken; while something is held back, more often.
        silent_seconds: a worker, or a gateway, not heard of for longer does not count.
        most_of_a_tenant: jobs of one without a limit of its own that may be under way; 0: no limit.

    Attributes:
        together: how many jobs reviewers may be asked for in one message.
    """

    def __init__(
        self,
        database: Database,
        *,
        pass_seconds: float = 0.25,
        silent_seconds: float = 5.0,
        most_of_a_tenant: int = 0,
    ) -> None:
        self._database = database
        self._pass_seconds = pass_seconds
        self._silent_seconds = silent_seconds
        self.most_of_a_tenant = most_of_a_tenant
        self.together = 1
        self._loop = Loop("dispatcher", self.pass_once, interval_seconds=pass_seconds)
        self._id = new_id()
        self._told_at = self._ended_at = -math.inf
        self._pace = Pace()
        self._room = 0
        self._taken = self._settled = 0  # of the room, ever: given to submits, and by submits that have ended
        self._held_back = False  # something could start if there were room
        self._at_a_limit = False  # something could start if its tenant had less under way

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    async def stop(self) -> None:
        """Stop; another gateway goes on."""
        await self._loop.stop()

    def wake(self) -> None:
        """Look now: something is due that was not put up with the transaction that made it so."""
        if not self._held_back:  # else there is no room, and it is looked for often
            self._loop.wake()

    def hear(self, routing_key: str, jobs: int) -> None:
        """The broker tells of something that happened to so many jobs."""
        if routing_key == _STARTED:
            self._pace.heard(jobs)
        elif self._at_a_limit and routing_key not in _NO_ENDS:
            self._loop.wake()

    @contextmanager
    def room_for(self, wanted: int) -> Iterator[int]:
        """How many of `wanted` new jobs a transaction inside the block may put up for claiming at once: all while
        nothing is held back."""
        taken = min(wanted, self._room)
        self._room -= taken
        self._taken += taken
        try:
            yield taken
        finally:
            self._settled += taken

    async def pass_once(self) -> float | None:
        """One look at what waits; the next one is soon while something is held back."""
        await asyncio.sleep(max(0.0, self._ended_at + _LEAST_PAUSE_SECONDS - time.monotonic()))
        try:
            await self._tell_of_itself()
            look = await self._look()
            self._held_back = look.due and look.room <= 0
            self._at_a_limit = look.due and look.room > 0
            self._room = _share(look.room, look.most, among=look.gateways)
        except BaseException:
            self._room = 0
            raise
        finally:
            self._ended_at = time.monotonic()
        return min(_PASS_SECONDS_WHILE_HELD_BACK, self._pass_seconds) if self._held_back else None

    async def _look(self) -> "_Look":
        """How it stands when what may start has been put up, by this gateway or by another."""
        # What was due a moment ago most likely is still: then one count will do.
        look = await self._release() if self._held_back or self._at_a_limit else None
        if look is None:
            async with self._database.read() as reader:
                look = await self._count(reader)
            if look.due:
                look = await self._release() or replace(look, room=0)
        return look

    async def _release(self) -> "_Look | None":
        """Put up what may start; returns what is left then. None while others do this.

        It is counted here whatever was counted before: others may have put up jobs until the lock was ours.
        """
        released = 0
        async with self._database.begin() as tx:
            if not await dispatch.is_mine(tx, Work.RELEASING):
                return None
            look = await self._count(tx)
            if look.due and look.room > 0:
                released = await dispatch.release_due(
                    tx, room=look.room, most_of_a_tenant=self.most_of_a_tenant, together=self.together
                )
        metrics.jobs_released.labels("dispatcher").inc(released)
        return replace(look, room=look.room - released)

    async def _count(self, reader: Reader) -> "_Look":
        settled = self._settled  # what commits later may be missing from the count
        backlog = await dispatch.backlog(reader, silent_seconds=self._silent_seconds)
        self.together = max(1, backlog.least_slots // _SLOTS_FOR_ONE_MORE)
        most = backlog.slots + self._pace.ahead()
        room = most - backlog.running - _in_the_way(backlog) - (self._taken - settled)
        self._room = 0  # what is given to submits is not there for a release
        return _Look(due=backlog.due, most=most, room=room, gateways=backlog.gateways)

    async def _tell_of_itself(self) -> None:
        if time.monotonic() - self._told_at >= _TELL_SECONDS:
            async with self._database.begin() as tx:
                await gateways.seen(tx, self._id)
            self._told_at = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How it stands."""

    due: bool  #: something could start if there were room, or if its tenant had less under way
    most: int  #: jobs that may be put up or run
    room: int  #: what of that is left; if anything, no more may start
    gateways: int  #: that live


def _in_the_way(backlog: Backlog) -> int:
    """Released jobs for which places are kept: some may be asked for in vain without keeping others waiting, such as
    those of a type that only later versions know."""
    return backlog.released - min(backlog.reissued, MOST_REISSUED_ASIDE)


def _share(room: int, most: int, *, among: int) -> int:
    """How much of the room this gateway may give to submits before it looks again, when `most` jobs may be put up or
    run. What the others may have left of theirs is not touched, so that all of them together stay within the room."""
    if among <= 1:
        return max(0, room)
    share = max(1, int(most * _SHARED_OUT / among))
    return max(0, min(share, room - (among - 1) * share))
