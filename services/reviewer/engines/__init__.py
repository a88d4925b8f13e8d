"""Engines look at a creative and return evidence. They never decide, and never touch storage or broker."""

from typing import Protocol

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
