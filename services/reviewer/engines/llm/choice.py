"""The llm engine with all its models: the one of the settings, and those that a tenant's policy may name instead."""

import asyncio
from collections.abc import Mapping

from imprimatur.criteria import Criteria
from imprimatur.errors import PermanentError
from imprimatur.evidence import Creative, Evidence
from reviewer.engines import Asking, Choosing, Judging, Seeing
from reviewer.engines.llm.engine import EngineWithCriteria, LLMEngine
from reviewer.engines.llm.faults import STAGE


class LLMEngines(Asking, Choosing, Judging, Seeing):
    """An `Engine`: that of the default model, from which one gets to the others.

    Args:
        engines: by the names of their models.
        default: the name of one of them.
    """

    def __init__(self, engines: Mapping[str, LLMEngine], *, default: str) -> None:
        self._engines = engines
        self._default = engines[default]
        self.identity = self._default.identity
        self.provider = self._default.provider
        self.image_side_px = self._default.image_side_px

    def with_model(self, name: str) -> LLMEngine:
        """The engine of another model.

        Raises:
            PermanentError: the settings do not allow it. Nothing stands in for it.
        """
        try:
            return self._engines[name]
        except KeyError:
            raise PermanentError(
                f"the tenant's policy names the model {name!r}, which is neither IMPRIMATUR_LLM_MODEL nor one of "
                "IMPRIMATUR_LLM_MODELS",
                code="provider_model",
                stage=STAGE,
            ) from None

    def with_criteria(self, criteria: Criteria) -> EngineWithCriteria:
        """The engine of the default model, asked about a tenant's criteria too."""
        return self._default.with_criteria(criteria)

    def require_ready(self) -> None:
        """As of the default model."""
        self._default.require_ready()

    async def examine(self, creative: Creative) -> Evidence:
        """With the default model."""
        return await self._default.examine(creative)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))
