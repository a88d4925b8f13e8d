"""What a stream over many jobs reads, holds and remembers."""

import asyncio
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial

import pytest

from gateway import following
from gateway.following import PORTION_BYTES, Followers, News, Reading, Sent, Subject
from imprimatur.errors import ResourceExhausted
from imprimatur.identity import new_id
from imprimatur.job import State
from imprimatur.wire.messages import JobChange
from tests.patience import PATIENCE_SECONDS


class Sized(Subject):
    """Jobs at version 1, whose answers have so many bytes each."""

    read_at_once = 100

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = {new_id(): size for size in sizes}
        self.read: list[int] = []

    def concerns(self, _change: JobChange, _sent: Sent) -> bool:
        return True

    async def versions(self, *, limit: int) -> Mapping[uuid.UUID, int]:
        return dict.fromkeys(list(self.sizes)[:limit], 1)

    async def news(self, ids: Sequence[uuid.UUID], _sent: Sent) -> Mapping[uuid.UUID, News]:
        self.read.append(len(ids))
        return {
            job_id: News(version=1, answer=partial(bytes, self.sizes[job_id])) for job_id in ids if job_id in self.sizes
        }


async def portions(jobs: Sized) -> list[list[int]]:
    """The sizes of the answers, as they wait together."""
    waiting, reading = deque(jobs.sizes), Reading(jobs, Sent())
    found = []
    while waiting:
        found.append([len(answer) for answer in await reading.portion(waiting)])
    return found


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
        followers.note(JobChange(job_id=job_id, tenant_id=tenant, version=1, state=State.RUNNING))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert [await anext(stream) for _ in jobs.sizes] == [b"\0", b"\0\0"]
    await stream.aclose()


async def test_jobs_that_wait_to_be_told_of_are_followed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST_FOLLOWED", 50)
    followers = Followers()
    stalled, next_one = (followers.follow(new_id(), Sized([PORTION_BYTES] * 30)) for _ in range(2))
    assert await anext(stalled) is not None
    with pytest.raises(ResourceExhausted, match="30 jobs"):
        await anext(next_one)
    await stalled.aclose()
