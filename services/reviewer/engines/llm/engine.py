"""The llm engine as the reviewer sees it: one question about one creative, one checked answer, or one error."""

import asyncio
import hashlib
import json
from dataclasses import replace
from functools import cache
from typing import Any, TypedDict, TypeVar

import structlog
from pydantic_ai import Agent, ModelSettings, NativeOutput
from pydantic_ai.capabilities import AbstractCapability, WrapModelRequestHandler
from pydantic_ai.exceptions import AgentRunError, ContentFilterError, UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.usage import RunUsage

from imprimatur import metrics, tracing
from imprimatur.budgets import MICROS
from imprimatur.criteria import Criteria
from imprimatur.errors import AttemptError, TimedOut, TransientError
from imprimatur.evidence import Creative, EngineIdentity, Evidence, Image, Part
from imprimatur.tracing import Kind
from reviewer.engines import Asking, Judging, Seeing, note_cost, out_of_time
from reviewer.engines.llm import answer, prompts
from reviewer.engines.llm.answer import Answer, AnswerWithCriteria, answer_about
from reviewer.engines.llm.breaker import Breaker
from reviewer.engines.llm.faults import STAGE, TOO_SLOW, attempt_error
from reviewer.engines.llm.question import question
from reviewer.settings import IMAGE_SIDE_PX, Price

log = structlog.get_logger(__name__)

NAME = "llm"

_Form = TypeVar("_Form", bound=Answer)


class LLMEngine(Asking, Judging, Seeing):
    """Examines creatives with a language model.

    Args:
        model_name: what results name it.
        breaker: of the model's provider.
        takes_images: whether the model looks at images; if not, they are named as unexamined.
        image_side_px: the longest side of an image that it sees in full; larger ones are named so, too.
        reasks: how often an answer that does not fit is sent back to the model.
        price: of the model; None for the price list that pydantic-ai brings, where it knows the model.
        call_seconds: the longest that one answer may take.
    """

    def __init__(
        self,
        model: Model,
        *,
        model_name: str,
        breaker: Breaker,
        takes_images: bool = True,
        image_side_px: int = IMAGE_SIDE_PX,
        reasks: int = 1,
        price: Price | None = None,
        call_seconds: float = 60.0,
    ) -> None:
        self.identity = EngineIdentity(name=NAME, version=_version(prompts.CURRENT), model=model_name)
        self.provider = breaker.provider
        self.image_side_px = image_side_px
        self._breaker = breaker
        self._model = model
        self._takes_images = takes_images
        self._price = price
        self._price_is_missed = False
        # With and without criteria; the instructions are one text, since many models take but one system message.
        self._agents = {
            judging: Agent(
                model,
                output_type=NativeOutput(Answer, strict=True),
                instructions=_instructions(*((prompts.CURRENT, prompts.CRITERIA) if judging else (prompts.CURRENT,))),
                # Retries are decided in one place, and that is `imprimatur.retry`.
                model_settings=ModelSettings(max_retries=0),
                retries={"output": reasks},
                capabilities=[_Unfiltered(), _Asked(model_name, breaker, call_seconds=call_seconds)],
            )
            for judging in (False, True)
        }

    def require_ready(self) -> None:
        """Make sure that the provider is not being left alone.

        Raises:
            imprimatur.errors.NotBegun: it is.
        """
        self._breaker.require_ready()

    def with_criteria(self, criteria: Criteria) -> "EngineWithCriteria":
        """This engine, asked about a tenant's criteria too."""
        return EngineWithCriteria(self, criteria)

    async def examine(self, creative: Creative) -> Evidence:
        """Ask the model about texts and images. Cancelling the call closes its connection.

        Raises:
            imprimatur.errors.AttemptError: as `faults` says; it carries the tokens spent nonetheless.
        """
        evidence, _ = await self.ask(creative, Answer, self.identity)
        return evidence

    async def ask(
        self,
        creative: Creative,
        form: type[_Form],
        identity: EngineIdentity,
        *,
        criteria: Criteria = (),
    ) -> "tuple[Evidence, _Form]":
        """As `examine`, with an answer of that form: the evidence, and the answer itself."""
        usage = RunUsage()
        asked = question(creative, criteria, with_images=self._takes_images)
        try:
            run: Any = await self._agents[bool(criteria)].run(
                asked,
                output_type=None if form is Answer else NativeOutput(form, strict=True),
                usage=usage,
                infer_name=False,
            )
        except AttemptError as error:
            raise error.after_spending(NAME, **self._spent(usage)) from error.__cause__
        except (AgentRunError, UserError) as error:
            raise attempt_error(error).after_spending(NAME, **self._spent(usage)) from error
        except asyncio.CancelledError:
            note_cost(NAME, **self._spent(usage))
            raise
        found: _Form = run.output
        evidence = found.evidence(creative, identity, unexamined=self._out_of_reach(creative))
        return replace(evidence, **self._spent(usage)), found

    async def close(self) -> None:
        """Close the connections to the provider."""
        async with self._model:
            pass

    def _out_of_reach(self, creative: Creative) -> frozenset[Part]:
        unseen = [image for image in creative.images if not self._sees(image)]
        parts = ((Part.IMAGE, unseen), (Part.VIDEO, creative.video_urls), (Part.AUDIO, creative.audio_urls))
        return frozenset(part for part, present in parts if present)

    def _sees(self, image: Image) -> bool:
        """Whether all of it; of an image that was not decoded nobody knows how large it is, nor whether it moves."""
        look = image.look
        return self._takes_images and look is not None and look.shown_whole(most_side_px=self.image_side_px)

    def _spent(self, usage: RunUsage) -> "_Spent":
        """What an examination has cost; counted here, so once for each."""
        if self._price is not None:
            cost_micros = round(self._price.of(usage.input_tokens, usage.cache_read_tokens, usage.output_tokens))
        else:
            cost_micros = round(float(usage.cost or 0) * MICROS)
            self._miss_price(usage)
        model = self.identity.model
        metrics.provider_tokens.labels(self.provider, model, "input").inc(usage.input_tokens)
        metrics.provider_tokens.labels(self.provider, model, "output").inc(usage.output_tokens)
        metrics.provider_cost.labels(self.provider, model).inc(cost_micros / MICROS)
        return _Spent(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cost_micros=cost_micros)

    def _miss_price(self, usage: RunUsage) -> None:
        if usage.cost is None and usage.output_tokens and not self._price_is_missed:
            self._price_is_missed = True
            log.warning(
                "no price of the model is known: it counts as free; see IMPRIMATUR_LLM_PRICES",
                model=self.identity.model,
            )


class EngineWithCriteria(Asking, Seeing):
    """An `Engine`: the llm engine with a tenant's criteria. Its connections are the other's."""

    def __init__(self, engine: LLMEngine, criteria: Criteria) -> None:
        self._engine = engine
        self._criteria = criteria
        # Fixed by what every set of criteria has in common: they themselves are the policy's, and not the engine's.
        version = _version(prompts.CURRENT, prompts.CRITERIA, form=AnswerWithCriteria)
        self.identity = replace(engine.identity, version=version)
        self.provider = engine.provider
        self.image_side_px = engine.image_side_px

    def require_ready(self) -> None:
        """As of the engine without criteria."""
        self._engine.require_ready()

    async def examine(self, creative: Creative) -> Evidence:
        """As of the engine without criteria; what the model says of them is in the evidence."""
        evidence, found = await self._engine.ask(
            creative,
            answer_about(self._criteria),
            self.identity,
            criteria=self._criteria,
        )
        return replace(evidence, criteria=found.about(self._criteria))

    async def close(self) -> None:
        """Nothing of its own to give back."""


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


class _Asked(AbstractCapability[Any]):
    """Around each question to the provider, repeated ones included: the breaker, a time limit, a span, a count. The
    provider hears nothing of the trace."""

    def __init__(self, model_name: str, breaker: Breaker, *, call_seconds: float) -> None:
        self._about = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model_name}
        self._model_name = model_name
        self._breaker = breaker
        self._call_seconds = call_seconds

    async def wrap_model_request(
        self,
        ctx: Any,  # noqa: ARG002  # the face of a capability
        *,
        request_context: ModelRequestContext,
        handler: WrapModelRequestHandler,
    ) -> ModelResponse:
        with self._breaker.watching(), tracing.span("provider", self._about, kind=Kind.CLIENT) as span:
            try:
                response = await self._in_time(request_context, handler)
            except AttemptError as error:
                self._count(error.code)
                raise
            except asyncio.CancelledError:
                if out_of_time():
                    self._count(TimedOut.code)
                raise
            self._count("answered")
            used = response.usage
            span.set({"gen_ai.usage.input_tokens": used.input_tokens, "gen_ai.usage.output_tokens": used.output_tokens})
            return response

    async def _in_time(self, request: ModelRequestContext, handler: WrapModelRequestHandler) -> ModelResponse:
        """Servers that send a little now and then, to keep a connection alive, no time-out of a client ends."""
        try:
            async with asyncio.timeout(self._call_seconds):
                return await handler(request)
        except (AgentRunError, UserError) as error:
            raise attempt_error(error) from error
        except TimeoutError:
            code, message = TOO_SLOW
            raise TransientError(message, code=code, stage=STAGE) from None

    def _count(self, outcome: str) -> None:
        metrics.provider_calls.labels(self._breaker.provider, self._model_name, outcome).inc()


def _instructions(*names: str) -> str:
    return "\n\n".join(map(prompts.read, names))


@cache
def _version(*names: str, form: type[Answer] = Answer) -> str:
    """The names of prompts and schema, and a fingerprint of all, for whoever changes one and not its name."""
    schema = json.dumps(form.model_json_schema(), sort_keys=True)
    print_ = hashlib.sha256((_instructions(*names) + schema).encode()).hexdigest()[:8]
    return f"{'+'.join(names)}/{answer.SCHEMA}+{print_}"
