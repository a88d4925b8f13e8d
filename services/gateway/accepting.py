"""From a job that was checked to one that is stored: within the tenant's limits, with its images, and together with
whatever others submit at that moment.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import TypeAlias

import structlog

from gateway.access import Caller
from gateway.assets import with_their_images
from gateway.dispatcher import Dispatcher
from gateway.errors import known
from gateway.quotas import Quotas
from gateway.statistics import Estimates
from imprimatur import metrics
from imprimatur.errors import Contended, RequestError, Unavailable
from imprimatur.gathering import LINGER_SECONDS, Gathering
from imprimatur.job import NewJob, State
from imprimatur.storage import acceptance
from imprimatur.storage.acceptance import Submitted
from imprimatur.storage.database import Database, Transaction

log = structlog.get_logger(__name__)

#: Single submissions in one transaction.
_SUBMITTED_TOGETHER = 128
#: At full load a submit waits so long for company, and takes a third less of the processor for it.
_LONGEST_LINGER_SECONDS = 0.02
#: How long a batch waits for what others have locked, before its jobs go singly; and how many of them at a time, so
#: that whoever submits a single one finds a place between them.
_BATCH_LOCK_SECONDS = 0.2
_SINGLY_TOGETHER = 32
#: So often a transaction is tried in which others want the same concurrency keys, before its jobs go singly.
_MOST_TRIES = 5

#: Writes jobs that were admitted.
_Store: TypeAlias = Callable[[Sequence[NewJob]], Awaitable[Sequence[Submitted | RequestError]]]
#: Writes them in a transaction; so many of them may be put up for claiming in it.
Write: TypeAlias = Callable[[Transaction, Sequence[NewJob], int], Awaitable[list[Submitted]]]


class Accepting:
    """Accepts jobs of all callers of a gateway."""

    def __init__(self, database: Database, dispatcher: Dispatcher, quotas: Quotas, estimates: Estimates) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._quotas = quotas
        self._estimates = estimates
        self._together: Gathering[NewJob, Submitted] = Gathering(
            "submits",
            self._store,
            most=_SUBMITTED_TOGETHER,
            linger_seconds=LINGER_SECONDS,
            longest_linger_seconds=_LONGEST_LINGER_SECONDS,
        )

    async def one(self, who: Caller, new: NewJob, write: Write | None = None) -> Submitted | RequestError:
        """What became of one: stored together with others, or by a `write` of its own.

        Raises:
            Exception: it could not be stored.
        """

        async def store(admitted: Sequence[NewJob]) -> list[Submitted]:
            if write is not None:
                return await self._store(admitted, write=write)
            return [await self._together.add(one) for one in admitted]

        (submitted,) = await self._admitted(who, [new], store)
        return submitted

    async def batch(self, who: Caller, new_jobs: Sequence[NewJob]) -> list[Submitted | RequestError]:
        """What became of each, in their order.

        Raises:
            Unavailable: none of them could be stored.
        """
        return await self._admitted(who, new_jobs, self._store_batch)

    async def _admitted(self, who: Caller, new_jobs: Sequence[NewJob], store: _Store) -> list[Submitted | RequestError]:
        """Some may be refused by the tenant's limits, or for their images."""
        with await self._quotas.admit(who, new_jobs) as admission:
            ready = await self._made_ready(admission.jobs)
            good = [one for one in ready if isinstance(one, NewJob)]
            stored = iter(await store(good) if good else ())
            return admission.answers(new_jobs, [next(stored) if isinstance(one, NewJob) else one for one in ready])

    async def _made_ready(self, new_jobs: Sequence[NewJob]) -> list[NewJob | RequestError]:
        """With how long they may take, as far as that is known; or what is wrong with the images that they name."""
        return [
            await self._estimates.put(one) if isinstance(one, NewJob) and one.estimated_seconds is None else one
            for one in await with_their_images(self._database, new_jobs)
        ]

    async def _store_batch(self, new_jobs: Sequence[NewJob]) -> list[Submitted | RequestError]:
        """In one transaction; or, where some of them do not let that happen, each for itself, as if it came alone."""
        try:
            return [*await self._store(new_jobs, _BATCH_LOCK_SECONDS)]
        except Unavailable:
            raise
        except Exception as fault:  # noqa: BLE001  # the item's own, which is found by asking each
            log.warning("a batch is stored one by one", jobs=len(new_jobs), error=type(fault).__name__)
        answers: dict[uuid.UUID, Submitted | RequestError] = {}
        place = asyncio.Semaphore(_SINGLY_TOGETHER)

        async def store_in_turn(alike: Sequence[NewJob]) -> None:
            for new in alike:
                try:
                    async with place:
                        answers[new.id] = await self._together.add(new)
                except Exception as fault:  # noqa: BLE001  # becomes its answer
                    answers[new.id] = known(fault, rpc="BatchSubmitJobs")

        by_key: defaultdict[str | uuid.UUID, list[NewJob]] = defaultdict(list)
        for new in new_jobs:
            by_key[new.concurrency_key or new.id].append(new)
        await asyncio.gather(*map(store_in_turn, by_key.values()))
        return [answers[new.id] for new in new_jobs]

    async def _store(
        self, new_jobs: Sequence[NewJob], lock_seconds: float | None = None, write: Write | None = None
    ) -> list[Submitted]:
        for tried in count(1):
            try:
                return await self._store_once(new_jobs, lock_seconds, write or self._write)
            except Contended:
                if tried == _MOST_TRIES:
                    raise
        raise AssertionError("counting never ends")

    async def _store_once(
        self, new_jobs: Sequence[NewJob], lock_seconds: float | None, write: Write
    ) -> list[Submitted]:
        with self._dispatcher.room_for(len(new_jobs)) as fast:
            async with self._database.begin(lock_seconds=lock_seconds) as tx:
                submitted = await write(tx, new_jobs, fast)
        if any(one.waits for one in submitted):
            self._dispatcher.wake()
        for one in submitted:
            if one.created:
                metrics.jobs_submitted.labels(one.job.type, one.job.priority.name.lower()).inc()
            if one.superseded is not None:
                metrics.jobs_finished.labels(one.superseded, State.CANCELLED).inc()
        metrics.jobs_released.labels("at_once").inc(sum(one.released for one in submitted))
        return submitted

    async def _write(self, tx: Transaction, new_jobs: Sequence[NewJob], release_at_once: int) -> list[Submitted]:
        return await acceptance.submit(
            tx,
            new_jobs,
            release_at_once=release_at_once,
            together=self._dispatcher.together,
            most_of_a_tenant=self._dispatcher.most_of_a_tenant,
        )
