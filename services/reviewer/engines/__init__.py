"""Engines look at a creative and return evidence. They never decide, and never touch storage or broker."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from imprimatur.evidence import Creative, EngineIdentity, Evidence


class Engine(Protocol):
    """One way to examine creatives. Chosen by configuration; never a silent fallback to another."""

    @property
    def identity(self) -> EngineIdentity:
        """Name, version and model, recorded in every result."""
        ...

    async def examine(self, creative: Creative) -> Evidence:
        """Look at every part of the creative.

        Raises:
            imprimatur.errors.AttemptError: the attempt failed; its class says whether it may be retried.
        """
        ...

    async def close(self) -> None:
        """Give back processes and connections."""
        ...


@runtime_checkable
class Starting(Protocol):
    """An engine that can get everything ready before its first creative comes."""

    async def start(self) -> None:
        """Get ready.

        Raises:
            imprimatur.errors.AttemptError: it cannot start.
        """
        ...


#: `async with open_engine() as engine: ...`: an engine for the block alone. Entering may take long.
OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]
