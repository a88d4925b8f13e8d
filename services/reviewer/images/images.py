"""The images of a creative, brought together: inline ones, uploaded ones, and those at a URL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from imprimatur import metrics
from imprimatur.assets import MAX_BYTES, MAX_CREATIVE_BYTES
from imprimatur.errors import PermanentError, UnreviewableInput
from imprimatur.evidence import Creative, Image
from imprimatur.storage import assets
from imprimatur.storage.database import Database
from reviewer.images.darkroom import Darkroom
from reviewer.images.decoding import STAGE
from reviewer.images.fetching import Fetcher, Remaining
from reviewer.tasks import Waiting

#: Fetched images that one worker holds at once, over all its jobs: further creatives wait for room.
MOST_BYTES_HELD = 256 * 1024 * 1024
#: Of the images of one creative; a site that many creatives name is asked by each for itself.
FETCHED_AT_ONCE = 4


class Images:
    """Makes creatives ready for an engine."""

    def __init__(
        self, database: Database, fetcher: Fetcher, darkroom: Darkroom, *, most_bytes_held: int = MOST_BYTES_HELD
    ) -> None:
        self._database = database
        self._fetcher = fetcher
        self._darkroom = darkroom
        self._room = Room(most_bytes_held)

    @asynccontextmanager
    async def brought(self, creative: Creative, tenant_id: uuid.UUID, waiting: Waiting) -> AsyncIterator[Creative]:
        """Inside the block: the creative with the bytes of all its images.

        Raises:
            UnreviewableInput: an image is not there, or is too large.
            TransientError: an image could not be had this time.
            Unavailable: the database is out of reach.
        """
        if not creative.images:
            yield creative
            return
        elsewhere = sum(1 for image in creative.images if not image.data)
        # All of the room at once, and never more of it later: so nobody waits for those who wait for them.
        with waiting():
            place = await self._room.take(min(elsewhere * MAX_BYTES, MAX_CREATIVE_BYTES))
        try:
            whole = await self._brought(creative, tenant_id)
            place.shrink(sum(len(one.data) for one in whole.images) if elsewhere else 0)
            yield whole
        finally:
            place.shrink(0)

    async def developed(self, whole: Creative) -> Creative:
        """The creative with the look of all its images, whose bytes it has.

        Raises:
            UnreviewableInput: an image is none, or is too large.
            TransientError: an image could not be decoded this time.
        """
        return await self._darkroom.develop(whole) if whole.images else whole

    async def close(self) -> None:
        """Give back processes and connections."""
        await self._fetcher.close()
        await self._darkroom.close()

    async def _brought(self, creative: Creative, tenant_id: uuid.UUID) -> Creative:
        """What is at URLs is fetched side by side, and the rest read meanwhile; the first failure ends it all."""
        remaining = Remaining(MAX_CREATIVE_BYTES)
        places = {f"images[{number}]": image for number, image in enumerate(creative.images)}
        brought = {field: image.data for field, image in places.items() if image.data}
        for field, data in brought.items():
            remaining.take(len(data), field)
        metrics.image_bytes.labels("inline").inc(sum(map(len, brought.values())))
        try:
            async with asyncio.TaskGroup() as fetches:
                turns = asyncio.Semaphore(FETCHED_AT_ONCE)
                fetched = {
                    field: fetches.create_task(self._fetched(image.url, field, turns, remaining))
                    for field, image in places.items()
                    if not image.data and image.url
                }
                for field, image in places.items():  # one by one: a creative takes one connection to the database
                    if not image.data and not image.url:
                        brought[field] = await self._kept(image, field, tenant_id, remaining)
        except BaseExceptionGroup as failed:
            raise _most_telling(failed) from None
        brought |= {field: fetch.result() for field, fetch in fetched.items()}
        return replace(creative, images=tuple(replace(image, data=brought[field]) for field, image in places.items()))

    async def _fetched(self, url: str, field: str, turns: asyncio.Semaphore, remaining: Remaining) -> bytes:
        async with turns:
            data = await self._fetcher.fetch(url, field, remaining, most_bytes=MAX_BYTES)
        metrics.image_bytes.labels("fetched").inc(len(data))
        return data

    async def _kept(self, image: Image, field: str, tenant_id: uuid.UUID, remaining: Remaining) -> bytes:
        async with self._database.read() as reader:
            found = await assets.content(reader, tenant_id, image.asset_id) if image.asset_id else None
        if found is None:
            raise _refusal(field, "is not kept any more; upload it and submit the creative again")
        remaining.take(len(found), field)
        metrics.image_bytes.labels("uploaded").inc(len(found))
        return found


def _most_telling(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what failed at once: what no further attempt can mend."""
    return next((one for one in failed.exceptions if isinstance(one, PermanentError)), failed.exceptions[0])


class Place:
    """A part of a Room."""

    def __init__(self, room: "Room", size: int) -> None:
        self._room = room
        self._size = size

    def shrink(self, size: int) -> None:
        """Give back what is more than so many bytes."""
        if size < self._size:
            self._room.give_back(self._size - size)
            self._size = size


class Room:
    """So many bytes, for which takers wait in turn."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, size: int) -> Place:
        """So many of them, once they are free. Cancelling a waiter takes nothing; who wants none waits for nobody."""
        if not size:
            return Place(self, 0)
        async with self._turn:
            while size > self._free:
                self._freed.clear()
                await self._freed.wait()
            self._free -= size
            return Place(self, size)

    def give_back(self, size: int) -> None:
        """So many are free again."""
        self._free += size
        self._freed.set()


def _refusal(field: str, message: str) -> UnreviewableInput:
    return UnreviewableInput(f"{field}: {message}", stage=STAGE)
