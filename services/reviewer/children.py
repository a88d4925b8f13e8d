"""Child processes, from the parent's side: where work runs that may hog the processor, run out of memory or crash.

Parent and child talk over a socket pair in pickled frames. A child is a fresh interpreter that imports
`reviewer.child` and what its functions need, and nothing of the service around it. What is run, and how often it
is tried, is decided elsewhere.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

from imprimatur.errors import TimedOut, TransientError
from reviewer.child import BEGUN, LENGTH, Answer, Broke, Done, Refused

Result = TypeVar("Result")

START_SECONDS = 60.0  #: a child must be ready by then; on an idle machine it takes about half a second
STAGE = "engine"
DIED = "engine_died"  #: the error code of a call whose child died
_NOT_STARTED = "engine_not_started"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")

log = structlog.get_logger(__name__)


# --- calls -----------------------------------------------------------------------------------------------


class ChildPool:
    """`size` child processes, each started when first needed, one call at a time each.

    A call that finds all children busy waits for one without limit: how many may wait is the caller's business.
    `initializer` must be importable by its name; every child calls it once, before its first call.
    """

    def __init__(self, size: int, *, initializer: Callable[[], object] | None = None) -> None:
        self._initializer = initializer
        self._places = [_Place() for _ in range(size)]
        self._free = list(self._places)
        self._turn = asyncio.Semaphore(size)
        self._endings: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Start all children now: the first calls need not wait, and a broken installation shows at once.

        Raises:
            TransientError: a child did not get ready (`engine_not_started`); the log has the trace.
        """
        for place in self._places:
            self._fill(place)
        await asyncio.gather(*(place.child.ready() for place in self._places if place.child))

    async def run(self, function: Callable[..., Result], *args: object, timeout_seconds: float | None = None) -> Result:
        """Call `function(*args)` in a child. Function, arguments and result must pickle.

        The time-out counts from when a child is free for the call. When it strikes, or the awaiting task is
        cancelled, the child is killed and another takes its place at once.

        Raises:
            AttemptError: as the function raised it.
            TimedOut: the call took longer than `timeout_seconds`.
            TransientError: the child died (`engine_died`) or could not start (`engine_not_started`), or the
                function raised something that is no AttemptError (`engine_failed`; the log has its trace).
        """
        request = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        async with self._turn:
            place = self._free.pop()
            try:
                child = self._fill(place)
                await child.ready()
                async with asyncio.timeout(timeout_seconds):
                    answer = await child.ask(request)
            except TimeoutError:
                raise TimedOut(f"the engine took longer than {timeout_seconds:g} s", stage=STAGE) from None
            finally:
                self._free.append(place)
                self._replace_spent(place)
        result: Result = _opened(answer)
        return result

    async def close(self) -> None:
        """Kill all children and wait until they are gone. Calls still running end as `engine_died`."""
        self._closed = True
        for place in self._places:
            self._vacate(place)
        while self._endings:
            await asyncio.gather(*self._endings)

    def _fill(self, place: "_Place") -> "_Child":
        """The place's child, which may still be starting.

        Raises:
            TransientError: no process could be made (`engine_not_started`), or the pool is closed.
        """
        if self._closed:
            raise _shutting_down()
        if place.child is None:
            place.child = _Child(self._initializer)
        return place.child

    def _replace_spent(self, place: "_Place") -> None:
        """Put another in the place of a child that is of no more use; one that never got ready is not replaced yet."""
        child = place.child
        if child is None or not child.spent:
            return
        self._vacate(place)
        if child.started:
            with contextlib.suppress(TransientError):  # the next call tries again
                self._fill(place)

    def _vacate(self, place: "_Place") -> None:
        child, place.child = place.child, None
        if child is not None:
            child.shoot()
            ending = asyncio.get_running_loop().create_task(child.gone())
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)


class LoneChild:
    """A child that nobody else has."""

    def __init__(self, child: "_Child") -> None:
        self._child = child

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Call `function(*args)` in it.

        Raises:
            AttemptError: as the function raised it.
            TransientError: as `ChildPool.run` does. What died before it began with the call is `engine_not_started`,
                and never `engine_died`: it had not seen the arguments.
        """
        request = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        result: Result = _opened(await self._child.ask(request))
        return result


@asynccontextmanager
async def child_alone(*, initializer: Callable[[], object] | None = None) -> AsyncIterator[LoneChild]:
    """Inside the block: a child that has run its initializer. It is gone afterwards, however the block ends.

    Raises:
        TransientError: it did not get ready (`engine_not_started`); the log has the trace.
    """
    child = _Child(initializer)
    try:
        await child.ready()
        yield LoneChild(child)
    finally:
        child.shoot()
        await asyncio.shield(asyncio.create_task(child.gone()))


class _Place:
    """Room for one child."""

    child: "_Child | None" = None


class _Child:
    """One child process and the line to it."""

    def __init__(self, initializer: Callable[[], object] | None) -> None:
        self._process, ours = _spawned()
        self.started = False
        self.spent = False  #: it died, or a call was interrupted: of no more use
        self._wanted = True
        self._starting = asyncio.get_running_loop().create_task(self._start(ours, initializer))

    async def ready(self) -> None:
        """Wait until it has run its initializer. A waiter who is cancelled does not stop it from starting.

        Raises:
            TransientError: it cannot start (`engine_not_started`).
        """
        await asyncio.shield(self._starting)

    async def ask(self, request: bytes) -> Answer:
        """Send a pickled call and wait for its answer.

        Raises:
            TransientError: the child died in the middle of it (`engine_died`), or before (`engine_not_started`).
        """
        self.spent = True
        code = _NOT_STARTED
        try:
            self._writer.writelines((LENGTH.pack(len(request)), request))
            await self._writer.drain()
            await self._reader.readexactly(len(BEGUN))
            code = DIED
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            answer: Answer = pickle.loads(await self._reader.readexactly(length))  # noqa: S301 (our own child)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TransientError(
                f"the engine's process died ({await self._epitaph()})", code=code, stage=STAGE
            ) from error
        self.spent = False
        return answer

    def shoot(self) -> None:
        """SIGKILL, if it lives: it is not wanted any more."""
        self._wanted = False
        self._process.kill()

    async def gone(self) -> None:
        """Wait until it has ended and the line is closed."""
        await asyncio.to_thread(self._process.wait)
        await asyncio.gather(self._starting, return_exceptions=True)
        self._writer.transport.abort()

    async def _start(self, line: socket.socket, initializer: Callable[[], object] | None) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=line)
        try:
            async with asyncio.timeout(START_SECONDS):
                answer = await self.ask(pickle.dumps((initializer or _nothing, ())))
        except (TimeoutError, TransientError) as error:
            if not self._wanted:
                raise _shutting_down() from error
            raise _not_started(str(error) or f"not ready within {START_SECONDS:g} s") from error
        if not isinstance(answer, Done):
            self.spent = True
            raise _not_started(answer.trace if isinstance(answer, Broke) else str(answer.error()))
        self.started = True

    async def _epitaph(self) -> str:
        """How it ended. One that closed its line is ending, and is helped along."""
        self._process.kill()
        code = await asyncio.to_thread(self._process.wait)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _spawned() -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A new process, and our end of the line to it.

    Raises:
        TransientError: the system gives none: no process, memory or file is left (`engine_not_started`).
    """
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "false"}
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise _not_started(str(error)) from error
    with theirs:
        program = f"from reviewer.child import serve; serve({theirs.fileno()}, {os.getpid()})"
        command = (sys.executable, "-P", "-c", program)
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=environment)
        except OSError as error:
            ours.close()
            raise _not_started(str(error)) from error
    return process, ours


def _opened(answer: Answer) -> Any:
    if isinstance(answer, Done):
        return answer.value
    if isinstance(answer, Refused):
        raise answer.error()
    log.error("the engine raised an unexpected error", trace=answer.trace)
    raise TransientError("the engine failed; its log has the details", code="engine_failed", stage=STAGE)


def _not_started(trace: str) -> TransientError:
    log.error("an engine process did not start", trace=trace)
    return TransientError("the engine could not start; its log has the details", code=_NOT_STARTED, stage=STAGE)


def _shutting_down() -> TransientError:
    return TransientError("the engine is shutting down", code=_NOT_STARTED, stage=STAGE)


def _nothing() -> None:
    """The initializer of children that need none."""
