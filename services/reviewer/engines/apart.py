"""The engine for suspects: opened for each creative in a child process of its own, which ends with it.

A suspect is a job that lost two workers (`imprimatur.job.Claim.suspect`): it may be what kills them. Neither this
process nor the engine's shared children come near it, so that whatever it does strikes nobody else. Most suspects are
innocent, lost together with the one that is not: they are examined here as anywhere.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

from imprimatur.criteria import Criteria
from imprimatur.errors import PermanentError, TransientError
from imprimatur.evidence import Creative, EngineIdentity, Evidence
from imprimatur.job import WORKERS_LOST
from reviewer.child import bound_memory
from reviewer.children import DIED, LoneChild, child_alone
from reviewer.engines import Choosing, Engine, Judging, Starting

#: Children at once, each with an engine of its own: about 200 MB with the builtin one. Further suspects
#: wait: starting a child costs about a second of processor, and the other slots need theirs.
MOST_AT_ONCE = 2

#: What a child and each process of its engine may take (Linux): where memory runs out the kernel may end the whole
#: container, this reviewer and all that it holds included. Beyond it an examination fails as any other may.
MOST_BYTES = 2 * 1024**3

#: In a child: its engine, and what runs it.
_engine: ContextVar[Engine] = ContextVar("engine")
_runner: ContextVar[asyncio.Runner] = ContextVar("runner")


class EngineApart:
    """Opens an engine anew for each creative, in a child process.

    Args:
        opener: opens the engine in the child; it must pickle, and crosses over by the line between the processes,
            never by the command line: it may hold secrets.
        identity: of the engine that it opens.
    """

    def __init__(self, opener: Callable[[], Engine], *, identity: EngineIdentity) -> None:
        self._identity = identity
        self._opener = opener
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Engine]:
        """Inside the block: an engine for one creative, ready in a new child. The child ends with the block.

        Entering waits for a turn, and for the child.

        Raises:
            imprimatur.errors.TransientError: the child or its engine does not start (`engine_not_started`).
        """
        async with self._turn, child_alone(initializer=partial(_open, self._opener)) as child:
            yield _EngineInChild(child, self._identity)


class _EngineInChild(Choosing, Judging):
    """An `Engine`, for one creative."""

    def __init__(
        self, child: LoneChild, identity: EngineIdentity, *, model: str | None = None, criteria: Criteria = ()
    ) -> None:
        self.identity = identity
        self._child = child
        self._model = model
        self._criteria = criteria

    def with_model(self, name: str) -> "_EngineInChild":
        """The child's engine with the model of that name."""
        return _EngineInChild(self._child, self.identity, model=name, criteria=self._criteria)

    def with_criteria(self, criteria: Criteria) -> "_EngineInChild":
        """The child's engine, asked about a tenant's criteria too if it can be."""
        return _EngineInChild(self._child, self.identity, model=self._model, criteria=criteria)

    async def examine(self, creative: Creative) -> Evidence:
        """Have the child examine the creative.

        Raises:
            imprimatur.errors.PermanentError: a process died of the examination (`workers_lost`). Nothing else ran in
                it, so that is proof; a process that dies before it has the creative is none.
            imprimatur.errors.AttemptError: as the engine raised it.
        """
        try:
            return await self._child.run(_examine, creative, self._model, self._criteria)
        except TransientError as error:
            if error.code != DIED:
                raise
            raise _proof(error) from error

    async def close(self) -> None:
        """Nothing to give back: the child closes its engine."""


def _proof(error: TransientError) -> PermanentError:
    return PermanentError(
        f"{error.message} while it examined this job alone; it is not tried any more.",
        code=WORKERS_LOST,
        stage=error.stage,
    )


# --- in the child ----------------------------------------------------------------------------------------


def _open(opener: Callable[[], Engine]) -> None:
    if sys.platform == "linux":
        bound_memory(MOST_BYTES)
    engine, runner = opener(), asyncio.Runner()
    if isinstance(engine, Starting):
        runner.run(engine.start())
    _engine.set(engine)
    _runner.set(runner)


def _examine(creative: Creative, model: str | None, criteria: Criteria) -> Evidence:
    return _runner.get().run(_examine_and_close(_engine.get(), creative, model, criteria))


async def _examine_and_close(opened: Engine, creative: Creative, model: str | None, criteria: Criteria) -> Evidence:
    try:
        engine = opened
        if model is not None and isinstance(engine, Choosing):
            engine = engine.with_model(model)
        if criteria and isinstance(engine, Judging):
            engine = engine.with_criteria(criteria)
        return await engine.examine(creative)
    finally:
        await opened.close()
