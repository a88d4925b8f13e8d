"""The llm engine as the reviewer sees it: one question about one creative, one checked answer, or one error."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from pydantic_ai import Agent, ModelSettings, NativeOutput
from pydantic_ai.capabilities import AbstractCapability, WrapModelRequestHandler
from pydantic_ai.exceptions import AgentRunError, ContentFilterError, UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.usage import RunUsage

from imprimatur import tracing
from imprimatur.evidence import Creative, EngineIdentity, Evidence, Part
from imprimatur.tracing import Kind
from reviewer.engines.llm import answer, pictures, prompts
from reviewer.engines.llm.answer import Answer
from reviewer.engines.llm.faults import attempt_error
from reviewer.engines.llm.question import question

NAME = "llm"


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per million tokens, which is millionths of a dollar per token."""

    input: float
    output: float


class LLMEngine:
    """Examines creatives with a language model.

    Args:
        model_name: what results name it.
        takes_images: whether the model looks at images; if not, they are named as unexamined.
        reasks: how often an answer that does not fit is sent back to the model.
        price: of the model; None for the price list that pydantic-ai brings, where it knows the model.
    """

    def __init__(
        self, model: Model, *, model_name: str, takes_images: bool = True, reasks: int = 1, price: Price | None = None
    ) -> None:
        self.identity = EngineIdentity(name=NAME, version=_version(), model=model_name)
        self._model = model
        self._takes_images = takes_images
        self._price = price
        self._agent = Agent(
            model,
            output_type=NativeOutput(Answer, strict=True),
            instructions=prompts.read(prompts.CURRENT),
            # Retries are decided in one place, and that is `imprimatur.retry`.
            model_settings=ModelSettings(max_retries=0),
            retries={"output": reasks},
            capabilities=[_Unfiltered(), _Traced(model_name)],
        )

    async def examine(self, creative: Creative) -> Evidence:
        """Ask the model about texts and images. Cancelling the call closes its connection.

        Raises:
            imprimatur.errors.AttemptError: as `faults` says; it carries the tokens spent nonetheless.
        """
        usage = RunUsage()
        asked = question(creative, with_images=self._takes_images)
        try:
            found = await self._agent.run(asked, usage=usage, infer_name=False)
        except (AgentRunError, UserError) as error:
            raise attempt_error(error).after_spending(NAME, **self._spent(usage)) from error
        unexamined = _out_of_reach(creative, takes_images=self._takes_images)
        evidence = found.output.evidence(creative, self.identity, unexamined=unexamined)
        return replace(evidence, **self._spent(usage))

    async def close(self) -> None:
        """Close the connections to the provider."""
        async with self._model:
            pass

    def _spent(self, usage: RunUsage) -> "_Spent":
        if self._price is not None:
            cost_micros = usage.input_tokens * self._price.input + usage.output_tokens * self._price.output
        else:
            cost_micros = float(usage.cost or 0) * 1_000_000
        return _Spent(
            input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cost_micros=round(cost_micros)
        )


class _Spent(TypedDict):
    input_tokens: int
    output_tokens: int
    cost_micros: int


class _Unfiltered(AbstractCapability[Any]):
    """An answer that the provider's filter cut short is a refusal: asking again would pay for another."""

    async def after_model_request(
        self,
        ctx: Any,  # noqa: ARG002  # the face of a capability
        *,
        request_context: Any,  # noqa: ARG002
        response: ModelResponse,
    ) -> ModelResponse:
        if response.finish_reason == "content_filter":
            raise ContentFilterError("the answer was filtered")
        return response


class _Traced(AbstractCapability[Any]):
    """A span around each question to the provider, repeated ones included. The provider hears nothing of the trace."""

    def __init__(self, model_name: str) -> None:
        self._asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model_name}

    async def wrap_model_request(
        self,
        ctx: Any,  # noqa: ARG002  # the face of a capability
        *,
        request_context: ModelRequestContext,
        handler: WrapModelRequestHandler,
    ) -> ModelResponse:
        with tracing.span("provider", self._asked, kind=Kind.CLIENT) as span:
            response = await handler(request_context)
            used = response.usage
            span.set({"gen_ai.usage.input_tokens": used.input_tokens, "gen_ai.usage.output_tokens": used.output_tokens})
            return response


def _out_of_reach(creative: Creative, *, takes_images: bool) -> frozenset[Part]:
    unseen = [image for image in creative.images if not (takes_images and pictures.is_shown_whole(image))]
    parts = ((Part.IMAGE, unseen), (Part.VIDEO, creative.video_urls), (Part.AUDIO, creative.audio_urls))
    return frozenset(part for part, present in parts if present)


def _version() -> str:
    """The names of prompt and schema, and a fingerprint of both, for whoever changes one and not its name."""
    schema = json.dumps(Answer.model_json_schema(), sort_keys=True)
    print_ = hashlib.sha256((prompts.read(prompts.CURRENT) + schema).encode()).hexdigest()[:8]
    return f"{prompts.CURRENT}/{answer.SCHEMA}+{print_}"
