"""The engine for suspects, with real processes and real kills."""

import asyncio
import os
import pickle
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from imprimatur.errors import PermanentError, RateLimited, TransientError, UnreviewableInput
from imprimatur.evidence import Creative, Evidence
from imprimatur.job import WORKERS_LOST
from reviewer.child import bound_memory
from reviewer.children import child_alone
from reviewer.engines import Engine, Starting
from reviewer.engines.apart import MOST_AT_ONCE, MOST_BYTES, EngineApart
from reviewer.engines.registry import open_engine
from reviewer.settings import EngineName, EngineSettings, ReviewerSettings
from tests import deadly
from tests.contract.polling import eventually
from tests.deadly import DeadlyEngine, Looks, alive, own_children


def creative(headline: str, creative_id: str = "c1") -> Creative:
    return Creative(creative_id=creative_id, headline=headline)


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    return Looks(tmp_path)


@pytest.fixture
def others() -> set[int]:
    """The child processes of this one that are nothing to the test."""
    return own_children()


@pytest.fixture
async def apart(tmp_path: Path, others: set[int]) -> AsyncIterator[EngineApart]:
    yield EngineApart(partial(DeadlyEngine, tmp_path), identity=deadly.IDENTITY)
    assert own_children() <= others, "each child ends with its block"


async def examine(apart: EngineApart, asked: Creative) -> Evidence:
    async with apart.opened() as engine:
        return await engine.examine(asked)


async def test_each_creative_has_a_process_of_its_own_that_is_gone_afterwards(apart: EngineApart, looks: Looks) -> None:
    for name in ("a", "b"):
        async with apart.opened() as engine:
            assert (await engine.examine(creative(deadly.APPROVE, name))).engine == engine.identity
    pids = looks.at("a") + looks.at("b")
    assert len({*pids, os.getpid()}) == 3
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("script", "how"),
    [(deadly.KILL, "SIGKILL"), (deadly.EXIT, "exit code 3|SIGKILL"), (deadly.KILL_CHILD, "SIGKILL")],
)
async def test_a_process_that_dies_of_a_creative_is_proof_against_it(apart: EngineApart, script: str, how: str) -> None:
    with pytest.raises(PermanentError, match=rf"^the engine's process died \(({how})\) while it examined") as caught:
        await examine(apart, creative(script))
    assert (caught.value.code, caught.value.stage) == (WORKERS_LOST, "engine")


async def test_what_an_engine_declares_comes_through_as_it_is(apart: EngineApart) -> None:
    with pytest.raises(RateLimited) as limited:
        await examine(apart, creative(deadly.LIMITED))
    assert limited.value.retry_after_seconds == 0.05
    with pytest.raises(UnreviewableInput, match=r"^images\[0\]"):
        await examine(apart, creative(deadly.UNREADABLE))


async def test_a_bug_of_the_engine_is_no_proof(apart: EngineApart) -> None:
    with pytest.raises(TransientError) as caught:
        await examine(apart, creative(deadly.BREAK))
    assert caught.value.code == "engine_failed"


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such limit")
async def test_a_creative_that_takes_all_memory_fails_its_examination_and_nothing_else(apart: EngineApart) -> None:
    with pytest.raises(TransientError) as caught:
        await examine(apart, creative(deadly.HOARD))
    assert caught.value.code == "engine_failed"


def die() -> Engine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def find_no_key() -> Engine:
    raise OSError("no key here")


@pytest.mark.parametrize("opener", [die, find_no_key])
async def test_an_engine_that_does_not_open_is_no_proof(opener: Callable[[], Engine]) -> None:
    apart = EngineApart(opener, identity=deadly.IDENTITY)
    with pytest.raises(TransientError) as caught:
        await examine(apart, creative(deadly.APPROVE))
    assert caught.value.code == "engine_not_started"


async def test_a_process_that_dies_before_it_has_the_creative_is_no_proof(apart: EngineApart, others: set[int]) -> None:
    async with apart.opened() as engine:
        [pid] = own_children() - others
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive(pid), "dead")
        with pytest.raises(TransientError) as caught:
            await engine.examine(creative(deadly.APPROVE))
    assert caught.value.code == "engine_not_started"


async def test_a_process_that_dies_before_it_begins_with_the_creative_is_no_proof(
    apart: EngineApart, others: set[int]
) -> None:
    async with apart.opened() as engine:
        [pid] = own_children() - others
        os.kill(pid, signal.SIGSTOP)
        examination = asyncio.ensure_future(engine.examine(creative(deadly.APPROVE)))
        await asyncio.sleep(0)  # the creative is on the line, and nobody reads it
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TransientError) as caught:
            await examination
    assert caught.value.code == "engine_not_started"


class StartingEngine(DeadlyEngine, Starting):
    """Leaves a mark when it has started."""

    async def start(self) -> None:
        self._looks.begin("start")


async def test_an_engine_that_can_start_has_started_when_it_is_given(tmp_path: Path, looks: Looks) -> None:
    apart = EngineApart(partial(StartingEngine, tmp_path), identity=deadly.IDENTITY)
    async with apart.opened() as engine:
        assert len(looks.at("start")) == 1
        await engine.examine(creative(deadly.APPROVE))
    assert looks.at("start") == looks.at("c1")


def bound_below(most_bytes: int) -> tuple[int, int]:
    """What limits a process has that was allowed less before."""
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    bound_memory(MOST_BYTES)
    return resource.getrlimit(resource.RLIMIT_DATA)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such limit")
async def test_a_process_that_is_allowed_less_memory_is_allowed_no_more_than_that() -> None:
    less = MOST_BYTES // 2
    async with child_alone() as child:
        assert await child.run(bound_below, less) == (less, less)


async def test_a_cancelled_call_kills_its_process(apart: EngineApart, looks: Looks) -> None:
    call = asyncio.create_task(examine(apart, creative(deadly.WAIT)))
    await eventually(lambda: looks.at("c1"), "begun")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not alive(looks.at("c1")[0])


async def test_a_call_cancelled_before_its_process_is_ready_leaves_none_and_no_error_in_the_log(
    apart: EngineApart, others: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    call = asyncio.create_task(examine(apart, creative(deadly.WAIT)))
    await eventually(lambda: own_children() - others, "a process")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert own_children() <= others
    assert "did not start" not in capsys.readouterr().out


async def test_only_so_many_processes_run_at_once(apart: EngineApart, others: set[int], looks: Looks) -> None:
    names = [f"c{number}" for number in range(MOST_AT_ONCE + 2)]
    calls = [asyncio.create_task(examine(apart, creative(deadly.WAIT, name))) for name in names]
    await eventually(lambda: sum(len(looks.at(name)) for name in names) >= MOST_AT_ONCE, "begun")
    assert len(own_children() - others) == MOST_AT_ONCE
    looks.open_gate()
    assert len(await asyncio.gather(*calls)) == len(names)


async def test_one_that_is_cancelled_while_it_waits_leaves_its_turn_to_the_next(
    apart: EngineApart, others: set[int], looks: Looks
) -> None:
    names = [f"c{number}" for number in range(MOST_AT_ONCE)]
    calls = [asyncio.create_task(examine(apart, creative(deadly.WAIT, name))) for name in names]
    await eventually(lambda: all(looks.at(name) for name in names), "begun")
    waiting, next_one = (asyncio.create_task(examine(apart, creative(deadly.APPROVE, name))) for name in ("w", "n"))
    await asyncio.sleep(0)  # until both wait
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(own_children() - others) == MOST_AT_ONCE
    looks.open_gate()
    await asyncio.gather(*calls, next_one)
    assert (looks.at("w"), len(looks.at("n"))) == ([], 1)


async def test_the_builtin_engine_finds_the_same_apart() -> None:
    settings = EngineSettings(engine=EngineName.BUILTIN)
    engine = open_engine(settings)
    apart = EngineApart(partial(open_engine, settings.of_child()), identity=engine.identity)
    try:
        asked = creative("Fresh bread, every morning")
        assert await examine(apart, asked) == await engine.examine(asked)
    finally:
        await engine.close()


def test_a_child_is_told_the_engines_settings_and_no_other() -> None:
    settings = ReviewerSettings(
        database_url="postgresql://user:db-secret@host/name",
        broker_url="amqp://user:mq-secret@host/",
        engine=EngineName.LLM,
        engine_processes=8,
        llm_model="house-model",
        llm_api_key="sk-needed",
    )
    told = pickle.dumps(settings.of_child())
    assert b"db-secret" not in told
    assert b"mq-secret" not in told
    expected = {name: getattr(settings, name) for name in EngineSettings.model_fields} | {"engine_processes": 1}
    assert pickle.loads(told).model_dump() == expected
