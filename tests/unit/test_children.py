"""The pool of child processes, with real processes and real kills."""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imprimatur.errors import RateLimited, TimedOut, TransientError, UnreviewableInput
from reviewer.children import ChildPool, child_alone
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
async def pool() -> AsyncIterator[ChildPool]:
    pool = ChildPool(2)
    yield pool
    await pool.close()


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent to look does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


async def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (what a process does sets no event)
            await asyncio.sleep(0.01)


def write_pid_and_hang(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    signal.pause()


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)


def refuse() -> None:
    raise UnreviewableInput("images[0]: not an image", stage="decode")


def ask_to_wait() -> None:
    raise RateLimited("slow down", retry_after_seconds=2.5, stage="call")


def fail() -> None:
    raise LookupError("a secret detail")


def return_the_unpicklable() -> object:
    return lambda: None


def thread_settings() -> list[str | None]:
    return [os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")]


def oom_score_adj() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def break_at_start() -> None:
    raise OSError("no model here")


def mark_start() -> None:
    os.environ["CHILD_WAS_INITIALISED"] = "yes"


async def hanging_child(pool: ChildPool, path: Path, timeout_seconds: float | None = None) -> asyncio.Task[None]:
    call = asyncio.create_task(pool.run(write_pid_and_hang, str(path), timeout_seconds=timeout_seconds))
    await until(lambda: path.exists() and path.read_text() != "")
    return call


async def test_a_call_runs_in_another_process_and_the_next_call_in_the_same_one(pool: ChildPool) -> None:
    first = await pool.run(os.getpid)
    assert first != os.getpid()
    assert await pool.run(os.getpid) == first


async def test_two_calls_run_side_by_side_and_a_third_waits(pool: ChildPool, tmp_path: Path) -> None:
    calls = [await hanging_child(pool, tmp_path / name) for name in ("a", "b")]
    third = asyncio.create_task(pool.run(os.getpid))
    done, _ = await asyncio.wait({third}, timeout=0.2)
    assert not done
    calls[0].cancel()
    assert isinstance(await third, int)
    calls[1].cancel()


async def test_a_large_argument_and_result_cross_over_whole(pool: ChildPool) -> None:
    data = os.urandom(5_000_000)
    assert await pool.run(bytes.swapcase, data) == data.swapcase()


async def test_a_timed_out_call_kills_its_child_and_the_next_call_works(pool: ChildPool, tmp_path: Path) -> None:
    await pool.run(thread_settings)  # this module is imported in the child by now, and takes none of the time
    call = await hanging_child(pool, tmp_path / "pid", timeout_seconds=1.0)
    with pytest.raises(TimedOut, match="longer than 1 s"):
        await call
    victim = int((tmp_path / "pid").read_text())
    await until(lambda: not alive(victim))
    assert await pool.run(os.getpid) != victim


async def test_a_cancelled_call_kills_its_child_and_the_next_call_works(pool: ChildPool, tmp_path: Path) -> None:
    call = await hanging_child(pool, tmp_path / "pid")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    victim = int((tmp_path / "pid").read_text())
    await until(lambda: not alive(victim))
    assert await pool.run(os.getpid) != victim


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_child_that_dies_fails_only_its_own_call(pool: ChildPool, tmp_path: Path, number: int) -> None:
    neighbour = await hanging_child(pool, tmp_path / "neighbour")
    with pytest.raises(TransientError) as caught:
        await pool.run(die_by, number)
    assert caught.value.code == "engine_died"
    assert signal.Signals(number).name in caught.value.message
    assert not neighbour.done()
    assert isinstance(await pool.run(os.getpid), int)
    neighbour.cancel()


async def test_a_child_killed_while_idle_costs_at_most_one_call(pool: ChildPool) -> None:
    victim = await pool.run(os.getpid)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: not alive(victim))
    try:
        replacement = await pool.run(os.getpid)
    except TransientError:
        replacement = await pool.run(os.getpid)
    assert replacement != victim


async def test_an_attempt_error_crosses_over_intact(pool: ChildPool) -> None:
    with pytest.raises(UnreviewableInput) as refusal:
        await pool.run(refuse)
    assert (refusal.value.message, refusal.value.code, refusal.value.stage) == (
        "images[0]: not an image",
        "unreviewable_input",
        "decode",
    )
    with pytest.raises(RateLimited) as wait:
        await pool.run(ask_to_wait)
    assert wait.value.retry_after_seconds == 2.5
    assert str(wait.value) == "slow down"


async def test_another_exception_is_transient_and_its_details_stay_in_the_log(
    pool: ChildPool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TransientError) as caught:
        await pool.run(fail)
    assert caught.value.code == "engine_failed"
    assert "secret detail" not in caught.value.message
    assert caught.value.__cause__ is None
    assert "a secret detail" in capsys.readouterr().out


async def test_a_result_that_does_not_pickle_fails_the_call_and_not_the_child(pool: ChildPool) -> None:
    before = await pool.run(os.getpid)
    with pytest.raises(TransientError):
        await pool.run(return_the_unpicklable)
    assert await pool.run(os.getpid) == before


async def test_every_child_is_initialised_once() -> None:
    pool = ChildPool(1, initializer=mark_start)
    try:
        assert await pool.run(os.getenv, "CHILD_WAS_INITIALISED") == "yes"
    finally:
        await pool.close()


async def test_a_child_that_cannot_start_is_a_transient_error_each_time() -> None:
    pool = ChildPool(1, initializer=break_at_start)
    try:
        for _ in range(2):
            with pytest.raises(TransientError) as caught:
                await pool.run(os.getpid)
            assert caught.value.code == "engine_not_started"
    finally:
        await pool.close()


async def test_when_the_system_gives_no_process_only_the_calls_of_that_moment_fail(pool: ChildPool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for _ in range(3):
            with pytest.raises(TransientError) as raised:
                await pool.run(os.getpid)
            assert raised.value.code == "engine_not_started"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(set(await asyncio.gather(pool.run(os.getpid), pool.run(os.getpid)))) == 2


async def test_children_leave_interrupts_to_their_parent(pool: ChildPool) -> None:
    child = await pool.run(os.getpid)
    os.kill(child, signal.SIGINT)
    os.kill(child, signal.SIGTERM)
    assert await pool.run(os.getpid) == child


async def test_children_compute_on_one_thread(pool: ChildPool) -> None:
    assert await pool.run(thread_settings) == ["1", "1"]


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such score")
async def test_when_memory_runs_out_the_kernel_takes_a_child_first(pool: ChildPool) -> None:
    before = oom_score_adj()
    assert await pool.run(oom_score_adj) == 1000
    assert oom_score_adj() == before


async def test_children_stand_behind_their_parent_for_the_processor(pool: ChildPool) -> None:
    assert await pool.run(os.nice, 0) == os.nice(0) + 5


async def test_a_new_child_imports_nothing_of_the_service_around_it(pool: ChildPool) -> None:
    modules = await pool.run(eval, "sorted(__import__('sys').modules)")
    strangers = ("gateway", "notifier", "sqlalchemy", "aio_pika", "numpy")
    assert not [name for name in modules if name.split(".")[0] in strangers]


async def test_close_ends_all_children_and_their_calls(tmp_path: Path) -> None:
    pool = ChildPool(2)
    call = await hanging_child(pool, tmp_path / "pid")
    idle = await pool.run(os.getpid)
    await pool.close()
    assert not alive(idle)
    assert not alive(int((tmp_path / "pid").read_text()))
    with pytest.raises(TransientError):
        await call
    with pytest.raises(TransientError):
        await pool.run(os.getpid)


async def test_a_child_alone_is_initialised_keeps_its_process_and_is_gone_after_the_block() -> None:
    async with child_alone(initializer=mark_start) as child, child_alone() as other:
        first = await child.run(os.getpid)
        assert await child.run(os.getpid) == first
        assert await other.run(os.getpid) not in (first, os.getpid())
        assert await child.run(os.getenv, "CHILD_WAS_INITIALISED") == "yes"
        assert alive(first)
    assert not alive(first)


PARENT = """
import asyncio, os, signal, sys
from reviewer.children import ChildPool

async def main():
    pool = ChildPool(2)
    print(await pool.run(os.getpid), flush=True)
    await asyncio.gather(pool.run({call}), pool.run({call}))

asyncio.run(main())
"""


@pytest.mark.parametrize("call", ["os.getpid), asyncio.sleep(600", "signal.pause"])
async def test_children_idle_or_busy_die_with_a_parent_that_is_killed(call: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT.format(call=call), stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    assert alive(child)
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(child))


async def test_a_pool_serves_many_calls_in_turn(pool: ChildPool) -> None:
    await pool.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        answers = await asyncio.gather(*(pool.run(abs, -number) for number in range(500)))
    assert answers == list(range(500))
