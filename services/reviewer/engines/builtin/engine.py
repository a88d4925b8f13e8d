"""The builtin engine as the reviewer sees it: asynchronous, its work done in child processes."""

from imprimatur.evidence import Creative, EngineIdentity, Evidence
from reviewer.children import ChildPool
from reviewer.engines import Starting
from reviewer.engines.builtin import examiner


class BuiltinEngine(Starting):
    """Examines creatives in `processes` child processes of about 150 MB each, one creative at a time each.

    Args:
        processes: how many creatives are examined side by side; further calls wait.
        timeout_seconds: after which one examination is given up and its process replaced.
    """

    def __init__(self, *, processes: int, timeout_seconds: float = 60.0) -> None:
        self._pool = ChildPool(processes, initializer=examiner.load)
        self._timeout_seconds = timeout_seconds

    @property
    def identity(self) -> EngineIdentity:
        """Name, version (with a fingerprint of the weights) and model."""
        return examiner.identity()

    async def start(self) -> None:
        """Load the model in all processes now, rather than with the first creatives.

        Raises:
            imprimatur.errors.TransientError: the model is missing or does not load; the log has the trace.
        """
        await self._pool.start()

    async def examine(self, creative: Creative) -> Evidence:
        """Look at text and images; say what was not looked at.

        The landing page is not part of the creative: it is neither fetched nor named as unexamined.

        Raises:
            imprimatur.errors.UnreviewableInput: an image is broken, too large or of another format.
            imprimatur.errors.TransientError: the process died, took too long or failed.
        """
        return await self._pool.run(examiner.examine, creative, timeout_seconds=self._timeout_seconds)

    async def close(self) -> None:
        """End the child processes."""
        await self._pool.close()
