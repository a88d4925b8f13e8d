"""What a stream over many jobs reads, holds and remembers."""

import asyncio
import tracemalloc
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial

import pytest

from gateway import following
from gateway.following import BYTES_OF_AN_ID, PORTION_BYTES, Followers, News, Reading, Sent, Subject
from gateway.room import Bound
from imprimatur.errors import ResourceExhausted
from imprimatur.identity import new_id
from imprimatur.job import State
from imprimatur.wire.messages import JobChange
from tests.patience import PATIENCE_SECONDS


class Sized(Subject):
    """Jobs at version 1, whose answers have so many bytes each."""

    read_at_once = 100

    def __init__(self, sizes: Sequence[int], *, ended: bool = False) -> None:
        self.sizes = {new_id(): size for size in sizes}
        self.ended = ended
        self.listed = 0
        self.read: list[int] = []

    def concerns(self, _change: JobChange, _sent: Sent) -> bool:
        return True

    async def versions(self, *, limit: int) -> Mapping[uuid.UUID, int]:
        self.listed += 1
        return dict.fromkeys(list(self.sizes)[:limit], 1)

    async def news(self, ids: Sequence[uuid.UUID], _sent: Sent) -> Mapping[uuid.UUID, News]:
        self.read.append(len(ids))
        return {
            job_id: News(version=1, ended=self.ended, answer=partial(bytes, self.sizes[job_id]))
            for job_id in ids
            if job_id in self.sizes
        }


async def portions(jobs: Sized) -> list[list[int]]:
    """The sizes of the answers, as they wait together."""
    waiting, reading = deque(jobs.sizes), Reading(jobs, Sent())
    found = []
    while waiting:
        found.append([len(answer) for answer in await reading.portion(waiting)])
    return found


async def size_of_next(stream: AsyncGenerator[bytes | None]) -> int:
    answer = await anext(stream)
    return 0 if answer is None else len(answer)


async def expect_refusal(stream: AsyncGenerator[bytes | None], reason: str, limit: str, most: str) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        await anext(stream)
    assert (caught.value.reason, caught.value.metadata) == (reason, {"limit": limit, "value": most})
    assert caught.value.retry_after_seconds


def change(tenant: uuid.UUID, job_id: uuid.UUID) -> JobChange:
    return JobChange(job_id=job_id, tenant_id=tenant, version=1, state=State.RUNNING)


@pytest.mark.parametrize(
    "sizes",
    [[10] * 300, [20_000] * 30, [PORTION_BYTES * 3] * 5, [10] * 150 + [PORTION_BYTES] * 20 + [10] * 150],
    ids=["small", "large", "larger than a portion", "of all sizes"],
)
async def test_a_portion_has_so_many_bytes_or_one_answer_and_all_are_told_once(sizes: list[int]) -> None:
    jobs = Sized(sizes)
    found = await portions(jobs)
    assert [size for portion in found for size in portion] == sizes
    assert all(len(portion) == 1 or sum(portion) <= PORTION_BYTES for portion in found)
    assert max(jobs.read) <= jobs.read_at_once
    assert sum(jobs.read) <= 2 * len(sizes)  # little is read in vain


def test_only_so_many_ends_are_remembered_and_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_MOST_ENDED_REMEMBERED", 2)
    sent, end = Sent(), News(version=3, ended=True, answer=bytes)
    first, second, third = (new_id() for _ in range(3))
    for job_id in (first, second, third):
        sent.note(job_id, News(version=2, answer=bytes))
        sent.note(job_id, end)
    assert [sent.lacks(job_id, end) for job_id in (first, second, third)] == [True, False, False]
    assert not sent.live


async def test_when_more_jobs_change_than_are_remembered_everything_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "MOST_WATCHED_TOGETHER", 2)
    tenant, jobs, followers = new_id(), Sized([]), Followers()
    stream = followers.follow(tenant, jobs)
    assert await anext(stream) is None
    jobs.sizes = {new_id(): 1, new_id(): 2}
    for job_id in (new_id(), new_id(), *jobs.sizes):  # the client does not read meanwhile
        followers.note(change(tenant, job_id))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [await anext(stream) for _ in jobs.sizes] == [b"\0", b"\0\0"]
    await stream.aclose()


@pytest.mark.parametrize(
    ("bound", "limit", "most"),
    [
        (Bound(all=100, of_a_tenant=2), "streams", "2"),
        (Bound(all=3, of_a_tenant=3), "all_streams", "3"),
    ],
)
async def test_a_tenant_opens_as_many_streams_as_are_its_share(
    monkeypatch: pytest.MonkeyPatch, bound: Bound, limit: str, most: str
) -> None:
    monkeypatch.setattr(following, "MOST_FOLLOWERS", bound)
    followers, greedy, other = Followers(), new_id(), new_id()
    streams = [followers.follow(tenant, Sized([])) for tenant in (greedy, greedy, other)]
    assert [await anext(stream) for stream in streams] == [None] * 3  # the other's, too
    await expect_refusal(followers.follow(greedy, Sized([])), "TOO_MANY_STREAMS", limit, most)
    await streams[0].aclose()
    again = followers.follow(greedy, Sized([]))
    assert await anext(again) is None
    for stream in (*streams, again):
        await stream.aclose()


@pytest.mark.parametrize(
    ("bound", "limit", "most"),
    [
        (Bound(all=100_000, of_a_tenant=5), "followed_jobs", "5"),
        (Bound(all=7, of_a_tenant=7), "all_followed_jobs", "7"),
    ],
)
async def test_the_streams_of_a_tenant_remember_as_many_jobs_as_are_its_share(
    monkeypatch: pytest.MonkeyPatch, bound: Bound, limit: str, most: str
) -> None:
    monkeypatch.setattr(following, "MOST_REMEMBERED", bound)
    followers, greedy, other = Followers(), new_id(), new_id()
    large = [PORTION_BYTES] * 3  # so that two wait while one is told
    streams = [followers.follow(tenant, Sized(large)) for tenant in (greedy, other)]
    assert [await size_of_next(stream) for stream in streams] == [PORTION_BYTES] * 2
    await expect_refusal(followers.follow(greedy, Sized(large)), "TOO_MANY_JOBS", limit, most)
    await streams[0].aclose()
    again = followers.follow(greedy, Sized(large))
    assert await anext(again) is not None
    for stream in (*streams, again):
        await stream.aclose()


async def test_changes_beyond_what_may_be_remembered_are_found_when_everything_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "MOST_REMEMBERED", Bound(all=100_000, of_a_tenant=3))
    followers, greedy, other, jobs = Followers(), new_id(), new_id(), Sized([])
    streams = [followers.follow(tenant, jobs) for tenant in (greedy, other)]
    assert [await anext(stream) for stream in streams] == [None, None]
    for _ in range(10):
        followers.note(change(greedy, new_id()))  # its client does not read, and none of them matches
    await expect_refusal(followers.follow(greedy, Sized([1])), "TOO_MANY_JOBS", "followed_jobs", "3")
    jobs.sizes = {new_id(): 1}
    followers.note(change(other, *jobs.sizes))
    followers.compare(everything=True)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [await anext(stream) for stream in streams] == [b"\0", b"\0"]
    for stream in streams:
        await stream.aclose()


@pytest.mark.parametrize(("own", "of_all"), [(True, 100), (False, 4)])
async def test_ended_jobs_that_are_remembered_give_way_to_others(
    monkeypatch: pytest.MonkeyPatch, own: bool, of_all: int
) -> None:
    monkeypatch.setattr(following, "MOST_REMEMBERED", Bound(all=of_all, of_a_tenant=3))
    followers, tenant, jobs = Followers(), new_id(), Sized([1, 2, 3], ended=True)
    stream = followers.follow(tenant, jobs)
    assert [await size_of_next(stream) for _ in range(4)] == [1, 2, 3, 0]
    oldest, new = next(iter(jobs.sizes)), new_id()
    jobs.sizes[new] = 7
    for job_id, told in ((new, bytes(7)), (oldest, bytes(1))):  # which was forgotten for the new one
        followers.note(change(tenant, job_id))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await anext(stream) == told
    opening = followers.follow(tenant if own else new_id(), Sized([1, 1, 1]))  # and all of them
    assert await anext(opening) is not None
    await opening.aclose()
    await stream.aclose()


async def test_what_streams_remember_takes_no_more_memory_than_is_said() -> None:
    followers, tenant = Followers(), new_id()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    jobs = Sized([])
    stream = followers.follow(tenant, jobs)
    assert await anext(stream) is None
    for _ in range(5000):
        followers.note(change(tenant, new_id()))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 5000 * BYTES_OF_AN_ID
    await stream.aclose()


async def test_what_streams_follow_is_compared_by_turns_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "COMPARED_IN_A_PASS", 150)
    followers, subjects = Followers(), [Sized([1] * 120) for _ in range(4)]
    streams = [followers.follow(new_id(), subject) for subject in subjects]
    for stream in streams:
        while await anext(stream) is not None:
            pass
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    listed = []
    for everything in (False, False, False, True):
        followers.compare(everything=everything)
        for _ in range(20):  # all that goes on is theirs
            await asyncio.sleep(0)
        listed.append([subject.listed for subject in subjects])
    assert listed == [[2, 2, 1, 1], [2, 2, 2, 2], [3, 3, 2, 2], [4, 4, 3, 3]]
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
