"""The engine of the fault suite: plays each creative's script in the reviewer's own process."""

import asyncio
import os
import signal
from pathlib import Path

from imprimatur.errors import RateLimited, TransientError
from imprimatur.evidence import Creative, EngineIdentity, Evidence, Recommendation
from reviewer.engines import Engine
from reviewer.settings import EngineSettings
from tests.faults.scripts import Kind, Script

#: Names the folder of a world's files; the services of a world have it in their environment.
FOLDER_VARIABLE = "IMPRIMATUR_FAULTS_FOLDER"


def open_engine(settings: EngineSettings) -> Engine:
    """In place of the registry's."""
    return PlayedEngine(Path(os.environ[FOLDER_VARIABLE]) / "looked-at")


class PlayedEngine:
    """An `Engine` that remembers in `folder`, over all processes, how often each creative was looked at."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def identity(self) -> EngineIdentity:
        """Shown in every result, so that none is taken for a review."""
        return EngineIdentity(name="played", version="1")

    async def examine(self, creative: Creative) -> Evidence:
        """Take the script's time, then do what it says."""
        script = Script.of(creative.headline)
        first = self._looks(creative.creative_id) == 0
        if script.kind is Kind.POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(script.seconds)
        if first and script.kind is Kind.FAIL:
            raise TransientError("the provider answered 503", code="provider_error")
        if first and script.kind is Kind.LIMITED:
            raise RateLimited("the provider asks to wait", retry_after_seconds=0.2)
        return self._evidence(script.kind)

    async def close(self) -> None:
        """Nothing to give back."""

    def _looks(self, creative_id: str) -> int:
        """How often it was looked at before."""
        with (self._folder / creative_id).open("ab") as marks:
            before = marks.tell()
            marks.write(b"x")
        return before

    def _evidence(self, kind: Kind) -> Evidence:
        score, recommendation = {
            Kind.REJECT: (0.02, Recommendation.REJECT),
            Kind.HUMAN: (0.6, Recommendation.HUMAN),
        }.get(kind, (0.97, Recommendation.APPROVE))
        return Evidence(
            engine=self.identity,
            approval_score=score,
            recommendation=recommendation,
            reason="As the script says.",
            categories=(),
            input_tokens=100,
            output_tokens=10,
        )
