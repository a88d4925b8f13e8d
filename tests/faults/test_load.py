"""The users of the fault suite notice what they should: each on a stream that is broken on purpose."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from typing import Any, cast

import grpc
import pytest

from imprimatur.client import ClientError
from imprimatur.v1.job_pb2 import JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED, Job
from tests.faults.load import Load, Told
from tests.faults.scripts import Kind, Script
from tests.faults.test_audit import a_world_without_servers

_RUNNING = JOB_STATE_RUNNING
_ENDED = JOB_STATE_SUCCEEDED


class _Client:
    """Shows these versions, and then fails if it is told to."""

    def __init__(self, jobs: list[Job], error: ClientError | None = None) -> None:
        self._jobs = jobs
        self._error = error

    async def watch(self, _job_id: str) -> AsyncGenerator[Job]:
        for job in self._jobs:
            yield job
        if self._error:
            raise self._error


async def _watched(*states: tuple[int, Any], error: ClientError | None = None) -> tuple[Told, Load]:
    load = Load(world=a_world_without_servers(), rng=random.Random(1))
    load._client = cast(Any, _Client([Job(id="a", version=version, state=state) for version, state in states], error))
    told = Told(script=Script(kind=Kind.APPROVE, seconds=0.0), job_id="a", by_client=True)
    await load._watch_by_client(told)
    return told, load


async def test_a_watch_by_the_client_sees_the_end() -> None:
    told, load = await _watched((1, _RUNNING), (3, _ENDED))
    assert told.end is not None
    assert (load.regressions, load.surprises) == ([], [])


@pytest.mark.parametrize("states", [[(2, _RUNNING), (1, _RUNNING), (3, _ENDED)], [(3, _RUNNING), (3, _ENDED)]])
async def test_a_watch_by_the_client_that_goes_back_or_repeats_is_found(states: list[tuple[int, Any]]) -> None:
    _told, load = await _watched(*states)
    assert len(load.regressions) == 1


async def test_a_watch_by_the_client_that_ends_well_before_the_job_is_found() -> None:
    told, load = await _watched((1, _RUNNING))
    assert told.end is None
    assert len(load.regressions) == 1


async def test_a_client_that_gives_up_its_watch_is_found() -> None:
    error = ClientError(grpc.StatusCode.UNAVAILABLE, "away for too long")
    _told, load = await _watched((1, _RUNNING), error=error)
    assert len(load.surprises) == 1


def test_each_watcher_takes_the_gateways_in_turn_whatever_the_others_do() -> None:
    load = Load(world=a_world_without_servers(), rng=random.Random(1))
    load._stubs = cast(Any, ["one", "two"])
    watchers = [cast(Iterator[str], load._in_turn()) for _ in range(50)]
    firsts = [next(watcher) for watcher in watchers]  # all of them between one watcher's two
    seen = {(first, next(watcher)) for first, watcher in zip(firsts, watchers, strict=True)}
    assert seen == {("one", "two"), ("two", "one")}


async def test_half_of_the_jobs_are_watched_through_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load(world=a_world_without_servers(), rng=random.Random(1))

    class _Accepting(_Client):
        async def submit(self, request: Any) -> Job:
            return Job(id=request.request_id, version=1)

    load._client = cast(Any, _Accepting([]))
    watches: list[str] = []

    async def raw(_told: Told) -> None:
        watches.append("raw")

    async def by_client(_told: Told) -> None:
        watches.append("client")

    monkeypatch.setattr(load, "_watch", raw)
    monkeypatch.setattr(load, "_watch_by_client", by_client)
    for _ in range(10):
        await load.submit(Script(kind=Kind.APPROVE, seconds=0.0))
    await asyncio.gather(*load._tasks)
    assert (watches.count("raw"), watches.count("client")) == (5, 5)
