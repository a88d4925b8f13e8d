"""Clean-up of finished work: by itself every hour, one pass at a time over all gateways, and when somebody asks.

What may go, is `storage.retention`. A pass is made of short steps with a pause after each that removed something, so
that nobody else waits for it.
"""

import time
import uuid
from collections import Counter
from datetime import datetime

import structlog

from imprimatur import metrics
from imprimatur.identity import new_id
from imprimatur.retention import Kind, Retention
from imprimatur.runtime import Loop
from imprimatur.storage import clock, passes
from imprimatur.storage import retention as stored
from imprimatur.storage.database import Database
from imprimatur.storage.retention import Place, Rows, Step

log = structlog.get_logger(__name__)

#: A pass whose gateway was not heard of for so long is taken over: longer than a failing step waits for its next try.
_HOLD_SECONDS = 300.0
_LOOK_SECONDS = 60.0
#: After a step that removed something, and not less than `_REST` times what it took.
_PAUSE_SECONDS = 0.25
_REST = 3.0
#: After one that found nothing.
_BREATH_SECONDS = 0.01
_CALL_SECONDS = 1.0


class Cleaner:
    """One gateway's share of the passes.

    Args:
        every_seconds: from the end of a pass to the next, whichever gateway made it.
        first_seconds: what has just started has other things to do.
    """

    def __init__(
        self,
        database: Database,
        retention: Retention,
        *,
        every_seconds: float = 3600.0,
        first_seconds: float = 30.0,
        look_seconds: float = _LOOK_SECONDS,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._database = database
        self._retention = retention
        self._every_seconds = every_seconds
        self._first_seconds: float | None = first_seconds
        self._pause_seconds = pause_seconds
        self._id = new_id()
        self._loop = Loop("clean-up", self._step, interval_seconds=look_seconds)
        self._now: datetime | None = None  # of the pass under way here
        self._place = Place()
        self._removed: Counter[str] = Counter()
        self._passed_over: datetime | None = None

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    async def stop(self) -> None:
        """Stop; another gateway begins the pass under way anew."""
        await self._loop.stop()

    async def _step(self) -> float | None:
        if self._first_seconds is not None:
            pause, self._first_seconds = self._first_seconds, None
            await self._look()
            return pause
        if self._now is None and not await self._begin():
            return None
        return await self._go_on()

    async def _look(self) -> None:
        async with self._database.read() as reader:
            _tell_success(await passes.last_success(reader))

    async def _begin(self) -> bool:
        async with self._database.begin() as tx:
            self._now = await passes.begin(tx, self._id, every_seconds=self._every_seconds, hold_seconds=_HOLD_SECONDS)
        self._place, self._removed, self._passed_over = Place(), Counter(), None
        if self._now is None:
            await self._look()
        return self._now is not None

    async def _go_on(self) -> float | None:
        assert self._now is not None
        began, succeeded_at = time.monotonic(), None
        async with self._database.begin() as tx:
            if not await passes.keep(tx, self._id, hold_seconds=_HOLD_SECONDS):
                self._now = None
                return None
            step = await stored.clean_some(tx, self._retention, self._place, now=self._now)
            passed_over = _first(self._passed_over, step.passed_over)
            if step.following is None:
                forgotten_until = _first(self._retention.ended_before(Kind.REQUEST_IDS, self._now), passed_over)
                succeeded_at = await passes.end(tx, self._id, forgotten_until=forgotten_until)
        _count(step.rows)
        self._removed.update(step.rows)
        self._passed_over = passed_over
        if step.following is not None:
            self._place = step.following
            took = time.monotonic() - began
            return max(self._pause_seconds, _REST * took) if step.rows else _BREATH_SECONDS
        self._now = None
        _tell_success(succeeded_at)
        if self._removed:
            log.info("finished work was cleaned up", **self._removed)
        return None


async def clean_for(
    database: Database,
    retention: Retention,
    tenant_id: uuid.UUID,
    place: Place | None,
    *,
    dry_run: bool,
    seconds: float = _CALL_SECONDS,
) -> Step:
    """Clean up one tenant's, from `place` on, for about so long; the steps as one."""
    until = time.monotonic() + seconds
    rows: Counter[str] = Counter()
    following = place or Place()
    while following is not None:
        async with database.begin() as tx:
            step = await stored.clean_some(
                tx, retention, following, now=await clock.present(tx), tenant_id=tenant_id, dry_run=dry_run
            )
        if not dry_run:
            _count(step.rows)
        rows.update(step.rows)
        if step.following is None or time.monotonic() >= until:
            return Step(rows=rows, following=step.following)
        following = step.following
    raise AssertionError("a step follows or none does")


def _first(*instants: datetime | None) -> datetime | None:
    return min((instant for instant in instants if instant is not None), default=None)


def _count(rows: Rows) -> None:
    for kind, number in rows.items():
        metrics.rows_removed.labels(kind).inc(number)


def _tell_success(at: datetime | None) -> None:
    metrics.cleanup_succeeded.set(at.timestamp() if at is not None else 0.0)
