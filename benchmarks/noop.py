"""A reviewer, or a whole `imprimatur serve`, whose engine approves at once: `python -m benchmarks.noop reviewer …`

Everything else is the product's own: the command line is handed on to it, with only the engine put in place of the
one that the settings name. So what is measured is the cost of the machinery. IMPRIMATUR_NOOP_SECONDS makes the engine
take that long (asleep).
"""

import asyncio
import os

from imprimatur.evidence import Creative, EngineIdentity, Evidence, Recommendation
from reviewer.engines import Engine, registry
from reviewer.settings import EngineSettings

_SECONDS = float(os.environ.get("IMPRIMATUR_NOOP_SECONDS", "0"))


class NoopEngine:
    """Looks at nothing."""

    @property
    def identity(self) -> EngineIdentity:
        """Shown in every result, so that none is taken for a review."""
        return EngineIdentity(name="noop", version="0")

    async def examine(self, creative: Creative) -> Evidence:  # noqa: ARG002  # the face of an engine
        """Approve."""
        if _SECONDS:
            await asyncio.sleep(_SECONDS)
        return Evidence(
            engine=self.identity,
            approval_score=1.0,
            recommendation=Recommendation.APPROVE,
            reason="Nothing was looked at: this engine is there to measure the machinery.",
            categories=(),
        )

    async def close(self) -> None:
        """Nothing to give back."""


def open_noop(settings: EngineSettings) -> Engine:  # noqa: ARG001  # in place of `registry.open_engine`
    """The engine, whatever the settings say."""
    return NoopEngine()


if __name__ == "__main__":
    # By its own name, which a suspect's child process can import; and before the services import it from there.
    from benchmarks.noop import open_noop as importable

    registry.open_engine = importable
    from cli.main import app

    app()
