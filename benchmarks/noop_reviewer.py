"""A reviewer whose engine approves at once: what is left is the cost of the machinery. Never part of the product."""

from contextlib import nullcontext

from imprimatur.evidence import Creative, EngineIdentity, Evidence, Recommendation
from imprimatur.process import run_service, surroundings
from imprimatur.runtime import StopSignal, http_port
from imprimatur.storage.database import Database
from reviewer.service import reviewer
from reviewer.settings import ReviewerSettings


class NoopEngine:
    """Looks at nothing."""

    @property
    def identity(self) -> EngineIdentity:
        """Shown in every result, so that none is taken for a review."""
        return EngineIdentity(name="noop", version="0")

    async def examine(self, creative: Creative) -> Evidence:  # noqa: ARG002  # the face of an engine
        """Approve."""
        return Evidence(
            engine=self.identity,
            approval_score=1.0,
            recommendation=Recommendation.APPROVE,
            reason="Nothing was looked at: this engine is there to measure the machinery.",
            categories=(),
        )

    async def close(self) -> None:
        """Nothing to give back."""


async def run(settings: ReviewerSettings, stop: StopSignal) -> None:
    """As `reviewer.__main__.run`, with that engine."""
    lease_database = Database(settings.database_url, pool_size=1, command_timeout_seconds=1.0)
    try:
        async with (
            http_port(settings.http_host, settings.reviewer_http_port) as http,
            surroundings(settings, http, name="reviewer") as around,
            reviewer(
                around.database,
                lease_database,
                around.broker,
                NoopEngine(),
                lambda: nullcontext(NoopEngine()),
                slots=settings.reviewer_slots,
                lease_seconds=settings.lease_seconds,
                drain_seconds=settings.drain_seconds,
            ) as running,
            http.ready({**around.checks(), "consumers": running.consuming}),
        ):
            await stop.wait()
    finally:
        await lease_database.close()


if __name__ == "__main__":
    run_service(ReviewerSettings, run)
