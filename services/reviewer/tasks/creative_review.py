"""`creative_review`: an engine looks at one creative, the tenant's live policy decides.

Review fails safe: an engine that fails, however often, leaves the creative with a person.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial

import structlog

from imprimatur import metrics, tracing
from imprimatur.criteria import Criteria
from imprimatur.errors import AttemptError, BudgetExhausted, PermanentError, TransientError
from imprimatur.evidence import Creative, Declared, Evidence
from imprimatur.human import categories_of
from imprimatur.job import AttemptOutcome, Claim, Happening, JobError, after_giving_up, outcome_of
from imprimatur.policy import (
    Decision,
    EngineFailure,
    LivePolicy,
    Mode,
    Policy,
    Trigger,
    Verdict,
    appealed,
    decide,
    decide_failure,
    flaw_of,
    unexamined_criteria,
)
from imprimatur.reuse import Source, digest_of, key_of
from imprimatur.storage import tenants
from imprimatur.storage.attempts import Spent
from imprimatur.storage.conclusions import Conclusion, Shown
from imprimatur.storage.database import Database
from imprimatur.storage.landings import Made
from imprimatur.tracing import Attribute
from imprimatur.wire.creatives import ai_result, creative_of
from reviewer.admission import Admission
from reviewer.engines import Asking, Choosing, Engine, Judging, OpenEngine, Seeing
from reviewer.images.decoding import preparation
from reviewer.images.images import Images
from reviewer.tasks import NotEnough, Report, Waiting, Work
from reviewer.terms import Terms
from reviewer.twins import Twins

log = structlog.get_logger(__name__)

#: An engine that takes longer shows that it is still at work.
_SLOW_AFTER_SECONDS = 2.0
#: How long a tenant's policy is remembered, and of how many tenants.
_REMEMBERED_SECONDS = 1.0
_MOST_REMEMBERED = 10_000


class CreativeReview:
    """Reviews creatives with one engine; suspects with the same engine, opened for each in a process of its own."""

    def __init__(
        self,
        database: Database,
        images: Images,
        engine: Engine,
        open_apart: OpenEngine,
        *,
        terms: Terms,
        twins: Twins,
    ) -> None:
        self._database = database
        self._images = images
        self._engine = engine
        self._open_apart = open_apart
        self._admission = Admission(database, terms)
        self._twins = twins
        self._policies: dict[uuid.UUID, tuple[float, LivePolicy]] = {}

    async def run(self, claim: Claim, report: Report, waiting: Waiting, *, in_full: bool) -> Work:
        """Have the engine examine the creative, unless the tenant approves everything without a review, or an equal
        creative has been examined."""
        live = await self._policy(claim, fresh=in_full)
        if not in_full and live.policy.mode is Mode.AUTO_APPROVE:
            return Work(product=None)
        creative = creative_of(claim.input)
        look = _Look(
            claim=claim,
            chosen=_chosen(self._engine, live.policy),
            asked=live.policy.criteria if isinstance(self._engine, Judging) else None,
            live=live,
            report=report,
            waiting=waiting,
        )
        if live.policy.reuse_evidence and self._twins.shares(claim):
            return await self._first_or_again(look, creative)
        return await self._looked(look, creative)

    async def _first_or_again(self, look: "_Look", creative: Creative) -> Work:
        """Take the evidence of an equal creative, or make it. It costs neither budget nor turn to take it."""
        async with AsyncExitStack() as stack:
            if any(digest_of(image) is None for image in creative.images):  # what is at a URL now, is what counts
                async with _shown_when_slow(look.report):
                    brought = self._images.brought(creative, look.claim.tenant_id, look.waiting)
                    creative = await stack.enter_async_context(brought)
            key = await _key(look, creative)
            earlier = await self._twins.earlier(
                look.claim, key, engine=look.chosen.identity, policy_version=look.live.version
            )
            if earlier is not None:
                product = _Product(evidence=earlier.evidence, asked=look.asked, reused=earlier.source)
                return Work(product=product, spent=Spent(engine=earlier.evidence.engine.name))
            return await self._looked(look, creative)

    async def _looked(self, look: "_Look", creative: Creative) -> Work:
        found = await self._examined(look, creative)
        product = _Product(evidence=found, asked=look.asked, made=self._twins.made(look.claim, found))
        return Work(product=product, spent=_spent(found))

    async def _examined(self, look: "_Look", creative: Creative) -> Evidence:
        claim, chosen, waiting = look.claim, look.chosen, look.waiting
        if isinstance(chosen, Asking):
            chosen.require_ready()
            await self._admission.admit(claim, chosen.provider, waiting)
        async with (
            self._engine_for(claim, chosen, look.live.policy, waiting) as engine,
            _shown_when_slow(look.report),
            self._images.brought(creative, claim.tenant_id, waiting) as whole,
        ):
            ready = await self._images.developed(whole)
            began = time.perf_counter()
            with tracing.span("engine", {"imprimatur.engine.name": engine.identity.name}) as span:
                evidence = await engine.examine(ready)
                if span.recording:
                    span.set(_told(evidence))
            metrics.engine_seconds.labels(engine.identity.name).observe(time.perf_counter() - began)
        if flaw := flaw_of(evidence):
            invalid = TransientError(
                f"the engine's answer is invalid: {flaw}", code="invalid_answer", stage="examining"
            )
            raise invalid.after_spending(**asdict(_spent(evidence)))
        return evidence

    @asynccontextmanager
    async def _engine_for(
        self, claim: Claim, chosen: Engine, policy: Policy, waiting: Waiting
    ) -> AsyncIterator[Engine]:
        if not claim.suspect:
            yield chosen
            return
        metrics.attempts_apart.inc()
        log.warning("a job that lost workers is examined in a process of its own", losses=claim.losses)
        async with AsyncExitStack() as stack:
            with waiting():  # for other suspects, and for a process to start
                engine = await stack.enter_async_context(self._open_apart())
            yield _chosen(engine, policy)

    async def _policy(self, claim: Claim, *, fresh: bool) -> LivePolicy:
        """The policy, or that of a moment ago: what is worked out by an old one is looked at again in the end."""
        now = time.monotonic()
        if not fresh and (known := self._policies.get(claim.tenant_id)) is not None and now < known[0]:
            return known[1]
        async with self._database.read() as reader:
            live = await tenants.live_policy(reader, claim.tenant_id)
        if len(self._policies) >= _MOST_REMEMBERED:
            self._policies.clear()
        self._policies[claim.tenant_id] = (now + _REMEMBERED_SECONDS, live)
        return live

    def conclude(self, claim: Claim, work: Work, live: LivePolicy) -> Conclusion:
        """Decide by the policy that is live now, so that the roll-back switch holds for running jobs too."""
        product: _Product = work.product or _Product()
        evidence = product.evidence
        if evidence is None and live.policy.mode is not Mode.AUTO_APPROVE:
            raise NotEnough
        declared = creative_of(claim.input).declared_categories
        verdict = decide(live.policy, declared, evidence)
        if verdict.trigger is Trigger.NOT_FULLY_EXAMINED and _asks_for_more(live.policy, product):
            raise NotEnough
        if claim.appeal_of is not None:
            verdict = appealed(verdict)
        happening = Happening.REFERRED if verdict.decision is Decision.PENDING else Happening.COMPLETED
        return Conclusion(
            happening=happening,
            outcome=AttemptOutcome.SUCCEEDED,
            shown=_shown(verdict, declared, product, live),
            details=_details(verdict) | _origin(product),
            made=product.made,
            reused_from=product.reused.job_id if product.reused else None,
        )

    def give_up(self, claim: Claim, error: AttemptError, live: LivePolicy) -> Conclusion:
        """Leave the creative with a person; only one that cannot be reviewed at all fails."""
        happening = after_giving_up(claim.type, error)
        shown: Shown | None = None
        details = {"error": error.code, "error_message": error.message}
        if happening is Happening.REFERRED:
            declared = creative_of(claim.input).declared_categories
            verdict = decide_failure(live.policy, declared, _failure(error))
            shown = _shown(verdict, declared, _Product(), live)
            details |= _details(verdict)
        return Conclusion(
            happening=happening,
            outcome=outcome_of(error),
            error=JobError.of(error),
            shown=shown,
            details=details,
        )


@dataclass(frozen=True, kw_only=True)
class _Product:
    """What an attempt comes to its end with: evidence; where that is `reused` from, or what is `made` for others.

    `asked` are the criteria that an engine was asked about; None: it cannot examine any.
    """

    evidence: Evidence | None = None
    asked: Criteria | None = None
    reused: Source | None = None
    made: Made | None = None


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What an attempt begins with; `asked` is as in `_Product`."""

    claim: Claim
    chosen: Engine
    asked: Criteria | None
    live: LivePolicy
    report: Report
    waiting: Waiting


async def _key(look: _Look, creative: Creative) -> bytes:
    make = partial(
        key_of,
        creative,
        tenant_id=look.claim.tenant_id,
        job_type=look.claim.type,
        engine=look.chosen.identity,
        provider=look.chosen.provider if isinstance(look.chosen, Asking) else "",
        criteria=[(one.name, one.text) for one in look.asked or ()],
        sight=(*preparation(), str(look.chosen.image_side_px) if isinstance(look.chosen, Seeing) else ""),
    )
    return await asyncio.to_thread(make) if creative.images else make()  # images are large


def _asks_for_more(policy: Policy, product: _Product) -> bool:
    """Whether the policy has got criteria since about which the engine was not asked, and could have been."""
    if product.evidence is None or product.asked is None:
        return False
    asked = {one.fingerprint for one in product.asked}
    return any(one.fingerprint not in asked for one in unexamined_criteria(policy, product.evidence))


def _chosen(engine: Engine, policy: Policy) -> Engine:
    """The engine with the policy's model and criteria. None stands in for a model that is not to be had; an engine that
    examines no criteria does without, and the policy sees to what follows."""
    chosen = _with_model(engine, policy)
    if policy.criteria and isinstance(chosen, Judging):
        return chosen.with_criteria(policy.criteria)
    return chosen


def _with_model(engine: Engine, policy: Policy) -> Engine:
    if policy.model is None:
        return engine
    if isinstance(engine, Choosing):
        return engine.with_model(policy.model)
    raise PermanentError(
        f"the tenant's policy names the model {policy.model!r}, and the engine {engine.identity.name} has no models",
        code="provider_model",
        stage="examining",
    )


def _failure(error: AttemptError) -> EngineFailure:
    return EngineFailure(message=error.message, budget_exhausted=isinstance(error, BudgetExhausted))


def _told(evidence: Evidence) -> dict[str, Attribute]:
    """What the trace says of it: what it cost, and nothing of what was found."""
    spent = _spent(evidence)
    return {
        "imprimatur.engine.model": evidence.engine.model,
        "imprimatur.engine.input_tokens": spent.input_tokens,
        "imprimatur.engine.output_tokens": spent.output_tokens,
        "imprimatur.engine.cost_micros": spent.cost_micros,
    }


def _spent(evidence: Evidence) -> Spent:
    return Spent(
        engine=evidence.engine.name,
        input_tokens=evidence.input_tokens,
        output_tokens=evidence.output_tokens,
        cost_micros=evidence.cost_micros,
    )


def _shown(verdict: Verdict, declared: Iterable[Declared], product: _Product, live: LivePolicy) -> Shown:
    return Shown(
        decision=verdict.decision,
        policy_triggered=verdict.trigger,
        result=ai_result(
            verdict,
            product.evidence,
            policy_version=live.version,
            reviewed_at=live.at,
            reused=product.reused,
        ),
        result_count=0 if verdict.decision is Decision.PENDING else 1,
        categories=categories_of(declared, product.evidence, detect_min=live.policy.detect_min),
    )


def _details(verdict: Verdict) -> dict[str, str]:
    return {"decision": verdict.decision, "policy_triggered": verdict.trigger, "reason": verdict.reason}


def _origin(product: _Product) -> dict[str, str]:
    return {"reused_from": str(product.reused.job_id)} if product.reused and product.reused.shown else {}


@asynccontextmanager
async def _shown_when_slow(report: Report) -> AsyncIterator[None]:
    showing: list[asyncio.Task[None]] = []

    def show() -> None:
        told = report(30, "examining", "The engine is still examining the creative.")
        showing.append(asyncio.ensure_future(told))

    timer = asyncio.get_running_loop().call_later(_SLOW_AFTER_SECONDS, show)
    try:
        yield
    finally:
        timer.cancel()
        for task in showing:
            task.cancel()
        await asyncio.gather(*showing, return_exceptions=True)
